"""Names that shards take when nobody gives them one."""

import socket

from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.peers import COORDINATOR_NAME, MAX_NAME_CHARS


def default_shard_name() -> str:
    """The host's name, as far as it can be one of a shard."""
    name = on_one_line(socket.gethostname())[:MAX_NAME_CHARS].strip()
    return "shard" if name in ("", COORDINATOR_NAME) else name


def next_shard_name(first: str, number: int) -> str:
    """For the shard that finds this name taken: 'host-2', 'host-3'."""
    suffix = f"-{number}"
    return first[: MAX_NAME_CHARS - len(suffix)] + suffix
