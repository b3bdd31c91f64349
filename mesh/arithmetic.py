"""What decides the bits of an answer, besides the model, the request and its seed (docs/kernels.md, 'Which answers are comparable').

A plan, the number of machines, their instruction sets and what happened to them do not. The arithmetic is the same for all shards of a
cluster, and for as long as its coordinator runs.
"""

from dataclasses import dataclass

from dairllm.kernels_pyx import ARITHMETIC_VERSION
from dairllm.mesh.cache_types import DEFAULT_CACHE_TYPE

ARITHMETIC_FEATURE = f"arithmetic:{ARITHMETIC_VERSION}"
"""Among a shard's features: shards whose kernels round by other rules are in no plan with these."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """wire: the encoding that rounds the residual stream between any two units, one of WIRE_ENCODINGS. kv_cache: element type of keys and
    values, one of KV_ELEMENT_TYPES."""

    wire: str
    kv_cache: str

    def __str__(self) -> str:
        """Equal texts mean equal bits: 'rules=3,wire=Q8_0_OUTLIERS,kv_cache=F16'."""
        return f"rules={ARITHMETIC_VERSION},wire={self.wire},kv_cache={self.kv_cache}"


DEFAULT_ARITHMETIC = Arithmetic("Q8_0_OUTLIERS", DEFAULT_CACHE_TYPE)
