"""Who may join: the checks on a shard's first message."""

import math
from collections.abc import Iterator

from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.shard_reports import ShardCapabilities, ShardHello
from dairllm.mesh.errors import DairllmError, InvalidRequest, WrongCluster, WrongProtocol
from dairllm.mesh.peers import MAX_NAME_CHARS

MAX_ADDRESSES = 64
MAX_MEMORY_BYTES = 1 << 50
"""A pebibyte: more than any machine has, so a larger number is a mistake."""
MAX_S_PER_BYTE = 1e-3
"""A kilobyte per second."""


def refusal_of(hello: ShardHello, expected: ClusterConfig) -> DairllmError | None:
    """Why the shard may not join, whoever else is in the cluster; None if it may."""
    if hello.cluster_hash != expected.cluster_hash:
        return WrongCluster(
            f"shard '{_printable(hello.name)}' belongs to the cluster with hash '{_printable(hello.cluster_hash)}', "
            f"this coordinator to '{expected.cluster_hash}': start both with the same --cluster"
        )
    if hello.protocol_major != expected.protocol_major:
        return WrongProtocol(
            f"shard '{_printable(hello.name)}' speaks protocol {hello.protocol_major}.{hello.protocol_minor} "
            f"(version {_printable(hello.software_version)}), this coordinator {expected.protocol_major}.{expected.protocol_minor}: "
            "major numbers must be equal"
        )
    return next(_malformations(hello), None)


def _malformations(hello: ShardHello) -> Iterator[InvalidRequest]:
    name = hello.name
    if not name or name != name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        expected = f"1 to {MAX_NAME_CHARS} printable characters without spaces around them"
        yield InvalidRequest(f"the shard's name is '{_printable(name)}' ({len(name)} characters), expected {expected}", "name")
    if not hello.boot_id or len(hello.boot_id) > MAX_NAME_CHARS or not hello.boot_id.isprintable():
        yield InvalidRequest(
            f"shard '{name}' has the boot_id '{_printable(hello.boot_id)}', expected 1 to {MAX_NAME_CHARS} printable characters", "boot_id"
        )
    if not 1 <= len(hello.addresses) <= MAX_ADDRESSES:
        yield InvalidRequest(f"shard '{name}' gave {len(hello.addresses)} addresses, expected 1 to {MAX_ADDRESSES}", "addresses")
    yield from _wrong_numbers(name, hello.capabilities)


def _wrong_numbers(name: str, capabilities: ShardCapabilities) -> Iterator[InvalidRequest]:
    budget, reserved = capabilities.memory_budget_bytes, capabilities.reserved_bytes
    if not 0 < budget <= MAX_MEMORY_BYTES:
        yield InvalidRequest(
            f"shard '{name}' has a memory budget of {budget} bytes, expected 1 to {MAX_MEMORY_BYTES}", "memory_budget_bytes"
        )
    if not 0 <= reserved <= budget:
        yield InvalidRequest(f"shard '{name}' reserves {reserved} bytes of {budget}, expected 0 to all of them", "reserved_bytes")
    value = capabilities.decode_s_per_byte
    if not (math.isfinite(value) and 0 <= value <= MAX_S_PER_BYTE):
        expected = f"expected 0 (unknown) to {MAX_S_PER_BYTE}"
        yield InvalidRequest(f"shard '{name}' reports decode_s_per_byte {value}, {expected}", "decode_s_per_byte")


def _printable(text: str) -> str:
    """Text of a stranger, fit for a message: no control characters, not long."""
    return "".join(c if c.isprintable() else "?" for c in text[: MAX_NAME_CHARS + 1])
