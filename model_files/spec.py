"""What a forward pass must know of a model: its shape and the constants of its arithmetic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from dairllm.model_files.errors import CorruptModelFile

MAX_NAME_LENGTH = 256


class _IntBounds(NamedTuple):
    lowest: int
    highest: int


# Several times what the largest published models need, and small enough that no product of two of them overflows 63 bits.
_INT_BOUNDS: Mapping[str, _IntBounds] = MappingProxyType(
    {
        "num_layers": _IntBounds(1, 1024),
        "hidden_size": _IntBounds(1, 65_535),
        "intermediate_size": _IntBounds(1, 1 << 20),
        "num_heads": _IntBounds(1, 1024),
        "num_kv_heads": _IntBounds(1, 1024),
        "head_dim": _IntBounds(2, 1024),
        "vocab_size": _IntBounds(1, 1 << 21),
        "context_length": _IntBounds(1, 1 << 27),
        "rope_dim": _IntBounds(2, 1024),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape and constants of a decoder-only transformer; CorruptModelFile if they contradict each other.

    `head_dim` and `rope_dim` count elements, `rope_dim` <= `head_dim`, both even. `rope_interleaved`: pairs (2i, 2i+1) are
    rotated instead of (i, i + rope_dim/2). `rope_freq_factors`, if given, has rope_dim/2 values by which the inverse
    frequencies are divided. Attention scores are multiplied by `attention_scale`.
    """

    architecture: str
    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rms_norm_eps: float
    rope_theta: float
    rope_dim: int
    rope_interleaved: bool
    rope_freq_factors: tuple[float, ...] | None
    attention_scale: float

    def __post_init__(self) -> None:
        validate_spec(self)

    @property
    def num_units(self) -> int:
        """Units of assignment: the embedding, every layer, the head."""
        return self.num_layers + 2


def validate_spec(spec: ModelSpec) -> None:
    """Raise CorruptModelFile, in one sentence, unless every field is of its type, in its bounds and consistent."""
    _check_names(spec)
    for field, bounds in _INT_BOUNDS.items():
        _check_int(field, getattr(spec, field), bounds)
    _check_float("rms_norm_eps", spec.rms_norm_eps, 1e-12, 1.0)
    _check_float("rope_theta", spec.rope_theta, 1.0, 1e12)
    _check_float("attention_scale", spec.attention_scale, 1e-6, 1e3)
    if not isinstance(spec.rope_interleaved, bool):
        raise CorruptModelFile(f"rope_interleaved is {spec.rope_interleaved!r}; expected true or false")
    _check_heads(spec)
    _check_freq_factors(spec)


def _check_names(spec: ModelSpec) -> None:
    for field in ("architecture", "name"):
        value = getattr(spec, field)
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_LENGTH:
            raise CorruptModelFile(f"{field} is {str(value)[:60]!r}; expected 1 to {MAX_NAME_LENGTH} characters")


def _check_int(field: str, value: object, bounds: _IntBounds) -> None:
    if type(value) is not int or not bounds.lowest <= value <= bounds.highest:
        raise CorruptModelFile(f"{field} is {value!r}; expected an integer from {bounds.lowest} to {bounds.highest}")


def _check_float(field: str, value: object, lowest: float, highest: float) -> None:
    if type(value) is not float or not lowest <= value <= highest:
        raise CorruptModelFile(f"{field} is {value!r}; expected a number from {lowest:g} to {highest:g}")


def _check_heads(spec: ModelSpec) -> None:
    if spec.num_heads % spec.num_kv_heads:
        raise CorruptModelFile(f"num_heads is {spec.num_heads}; expected a multiple of num_kv_heads, {spec.num_kv_heads}")
    if spec.head_dim % 2 or spec.rope_dim % 2 or spec.rope_dim > spec.head_dim:
        raise CorruptModelFile(
            f"rope_dim is {spec.rope_dim} and head_dim is {spec.head_dim}; expected even numbers, rope_dim at most head_dim"
        )


def _check_freq_factors(spec: ModelSpec) -> None:
    factors = spec.rope_freq_factors
    if factors is None:
        return
    if not isinstance(factors, tuple) or len(factors) != spec.rope_dim // 2:
        raise CorruptModelFile(f"rope_freq_factors has {len(factors)} values; expected rope_dim / 2 = {spec.rope_dim // 2}")
    for factor in factors:
        if type(factor) is not float or not (math.isfinite(factor) and 1e-6 <= factor <= 1e6):
            raise CorruptModelFile(f"rope_freq_factors contains {factor!r}; expected numbers from 1e-06 to 1e+06")
