"""What the flags of `dairllm-coordinator` say, and what follows from them."""

from dataclasses import dataclass
from pathlib import Path

from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.mesh.addresses import Address
from dairllm.mesh.arithmetic import Arithmetic
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.interfaces import EVERY_ADDRESS, real_interface_addresses

DEFAULT_CONTEXT_LENGTH = 8192


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """local_shard: the local shard's own arguments, None for no such shard. direct_weights: whether shards
    are told where the model was fetched."""

    model: str
    model_name: str | None
    assumed_pretokenizer: str | None
    quantize: str | None
    arithmetic: Arithmetic
    http_host: str
    http_port: int
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    grpc_host: str
    grpc_port: int
    cluster: str
    min_shards: int
    context_length: int | None
    kv_tokens: int | None
    prefix_reuse: PrefixReuse
    guesses: bool
    max_running: int
    max_waiting: int
    recovery_limit_s: float
    direct_weights: bool
    local_shard: tuple[str, ...] | None
    discovery: bool
    ready_file: Path | None

    def served_context_length(self, longest: int, usual: int) -> int:
        """The longest sequence that is served. longest: that the model was made for; usual: with which it computes as it was trained at
        first. Raises InvalidSetting for more."""
        if self.context_length is None:
            return min(usual, DEFAULT_CONTEXT_LENGTH)
        if self.context_length > longest:
            raise InvalidSetting(f"--context-length is {self.context_length}; the model was made for at most {longest} tokens")
        return self.context_length

    @property
    def grpc_hosts(self) -> list[str]:
        """Addresses of this machine at which shards reach it, loopback for those on it; a host that was named is the only one."""
        return ["127.0.0.1", *real_interface_addresses()] if self.grpc_host in EVERY_ADDRESS else [self.grpc_host]

    def grpc_address(self, port: int) -> Address:
        """For processes of this machine. port: the one that is listened at."""
        return Address(_dialable(self.grpc_host), port)

    def http_address(self, port: int) -> Address:
        """For processes of this machine. port: the one that is listened at."""
        return Address(_dialable(self.http_host), port)


def _dialable(host: str) -> str:
    return "127.0.0.1" if host in EVERY_ADDRESS else host
