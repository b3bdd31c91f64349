"""How a layer looks back: with keys and values of every position, with latents of them, or with a state that it carries along.

Each kind says what it keeps of a sequence: bytes for every token (`state_bytes_per_token`) and bytes whatever the length
(`state_bytes_per_sequence`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.bounds import check_fields, within
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.norm import Norm

MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_WIDTH = 65_535
MAX_CONTEXT = 1 << 27
MAX_LAYERS = 1024
NO_ROTATION = 1e30
"""A divisor of a frequency after which no position turns a pair by more than nothing (in single precision)."""
_RECURRENT_ELEMENT_BYTES = 4


def cache_row_bytes(element_type: str, numbers: int) -> int:
    """What so many numbers of a position take in a cache of keys and values. Quantised, they end with a shorter block (c/kv_cache.h)."""
    layout = BLOCK_FORMATS[element_type]
    scale_bytes = layout.block_bytes - layout.block_size if layout.block_size > 1 else 0
    return numbers * (layout.block_bytes - scale_bytes) // layout.block_size + scale_bytes * -(-numbers // layout.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions of the first `dim` numbers of a head.

    interleaved: pairs (2i, 2i+1) are rotated instead of (i, i + dim/2). freq_factors, if given, has dim/2 values by which the
    inverse frequencies are divided; NO_ROTATION leaves a pair as it is. magnitude: by which the rotated numbers are multiplied.
    long_freq_factors: those of contexts of more than original_context tokens (LongRoPE, arXiv:2402.13753); see `for_context`.
    """

    theta: float = within(1.0, 1e12)
    dim: int = within(2, MAX_HEAD_DIM)
    interleaved: bool
    freq_factors: tuple[float, ...] = ()
    magnitude: float = within(1e-3, 1e3, default=1.0)
    long_freq_factors: tuple[float, ...] = ()
    original_context: int | None = within(1, MAX_CONTEXT, default=None)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % 2:
            raise CorruptModelFile(f"rope dim is {self.dim}; expected an even number")
        if bool(self.long_freq_factors) != (self.original_context is not None):
            raise CorruptModelFile(
                f"original_context is {self.original_context}; expected one where there are long_freq_factors, else none"
            )
        self._check_factors("freq_factors", self.freq_factors)
        self._check_factors("long_freq_factors", self.long_freq_factors)

    def _check_factors(self, name: str, factors: tuple[float, ...]) -> None:
        if factors and len(factors) != self.dim // 2:
            raise CorruptModelFile(f"{name} has {len(factors)} values; expected dim / 2 = {self.dim // 2}")
        for factor in factors:
            if type(factor) is not float or not (math.isfinite(factor) and 1e-6 <= factor <= NO_ROTATION):
                raise CorruptModelFile(f"{name} contains {factor!r}; expected numbers from 1e-06 to {NO_ROTATION:g}")

    def for_context(self, context_length: int) -> "Rope":
        """The rotation where no sequence has more than so many tokens: one that does not depend on the length any more."""
        if self.original_context is None:
            return self
        factors = self.long_freq_factors if context_length > self.original_context else self.freq_factors
        return replace(self, freq_factors=factors, long_freq_factors=(), original_context=None)

    @property
    def features(self) -> Iterator[str]:
        yield "rope"
        if self.magnitude != 1.0:
            yield "rope:magnitude"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Heads over keys and values of all positions, or of the last `window` ones. Scores are multiplied by `scale`.

    key_dim, value_dim: numbers of a head, in queries and keys and in values. rope: None for a layer without positions.
    q_norm, k_norm, v_norm: of each head, before positions are rotated; norm_spans_heads: of all heads together. sinks: each head has a
    score of its own beside those of the positions. softcap: bound of the scores, approached by tanh. output_gate: `q` has twice the rows,
    the second half of each head being a gate of the head's output, by its sigmoid. keys_of: the layer whose keys and values this one
    looks at, having none of its own.
    """

    num_heads: int = within(1, MAX_HEADS)
    num_kv_heads: int = within(1, MAX_HEADS)
    key_dim: int = within(2, MAX_HEAD_DIM)
    value_dim: int = within(2, MAX_HEAD_DIM)
    scale: float = within(1e-6, 1e3)
    rope: Rope | None = None
    window: int | None = within(1, MAX_CONTEXT, default=None)
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    v_norm: Norm | None = None
    norm_spans_heads: bool = False
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    softcap: float | None = within(1e-3, 1e6, default=None)
    output_gate: bool = False
    keys_of: int | None = within(0, MAX_LAYERS - 1, default=None)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keys_of is not None and (self.k_norm, self.v_norm, self.k_bias, self.v_bias) != (None, None, False, False):
            raise CorruptModelFile(f"keys_of is {self.keys_of}; expected no norm and no bias of keys and values that are not its own")
        if self.num_heads % self.num_kv_heads:
            raise CorruptModelFile(f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads, {self.num_kv_heads}")
        if self.key_dim % 2 or self.value_dim % 2:
            raise CorruptModelFile(f"heads have {self.key_dim} keys and {self.value_dim} values; expected even numbers")
        if self.rope is not None and self.rope.dim > self.key_dim:
            raise CorruptModelFile(f"rope dim is {self.rope.dim}; expected at most key_dim, {self.key_dim}")

    @property
    def q_width(self) -> int:
        return self.num_heads * self.key_dim

    @property
    def k_width(self) -> int:
        return self.num_kv_heads * self.key_dim

    @property
    def v_width(self) -> int:
        return self.num_kv_heads * self.value_dim

    @property
    def output_width(self) -> int:
        """What the heads give together."""
        return self.num_heads * self.value_dim

    @property
    def without_biases(self) -> "SelfAttention":
        return replace(self, q_bias=False, k_bias=False, v_bias=False, output_bias=False)

    def state_bytes_per_token(self, element_type: str) -> int:
        """element_type: of the cache of keys and values."""
        return self.num_kv_heads * (cache_row_bytes(element_type, self.key_dim) + cache_row_bytes(element_type, self.value_dim))

    @property
    def state_bytes_per_sequence(self) -> int:
        return 0

    @property
    def features(self) -> Iterator[str]:
        yield "attention:full" if self.window is None else "attention:sliding_window"
        yield from self.rope.features if self.rope is not None else ("rope:none",)
        for norm in (self.q_norm, self.k_norm, self.v_norm):
            yield from norm.features if norm is not None else ()
        used = {
            "attention:qk_norm": (self.q_norm, self.k_norm) != (None, None),
            "attention:v_norm": self.v_norm is not None,
            "attention:norm_spans_heads": self.norm_spans_heads,
            "attention:shared_keys": self.keys_of is not None,
            "attention:unequal_head_dims": self.key_dim != self.value_dim,
            "attention:bias": self.q_bias or self.k_bias or self.v_bias or self.output_bias,
            "attention:sinks": self.sinks,
            "attention:softcap": self.softcap is not None,
            "attention:output_gate": self.output_gate,
        }
        yield from (name for name, is_used in used.items() if is_used)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Keys and values of all heads are made from one latent of `kv_rank` numbers and one rotated key of rope.dim (MLA, arXiv:2405.04434).

    query_rank: of the queries' own latent, None if they have none. key_dim: of a head, without the rotated part, which follows.
    latent_norm: of the latents, not of the rotated key. bias: of `q_a`, `kv_a` and the output.

    Head h's query is `k_b[h]` times its first key_dim numbers: a latent like the cached ones, to be multiplied with them. What it finds
    is a latent again, of which `v_b[h]` makes the head's value_dim numbers.
    """

    num_heads: int = within(1, MAX_HEADS)
    query_rank: int | None = within(1, MAX_WIDTH, default=None)
    kv_rank: int = within(1, MAX_WIDTH)
    key_dim: int = within(1, MAX_HEAD_DIM)
    value_dim: int = within(1, MAX_HEAD_DIM)
    scale: float = within(1e-6, 1e3)
    rope: Rope
    latent_norm: Norm
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def q_width(self) -> int:
        return self.num_heads * (self.key_dim + self.rope.dim)

    @property
    def output_width(self) -> int:
        """What the heads give together."""
        return self.num_heads * self.value_dim

    def state_bytes_per_token(self, element_type: str) -> int:
        return cache_row_bytes(element_type, self.kv_rank + self.rope.dim)

    @property
    def state_bytes_per_sequence(self) -> int:
        return 0

    @property
    def features(self) -> Iterator[str]:
        yield "attention:latent"
        yield from self.rope.features
        if self.bias:
            yield "attention:bias"
        yield from self.latent_norm.features


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A recurrent state of key_dim x value_dim numbers for each value head, updated by the gated delta rule (arXiv:2412.06464).

    Queries, keys and values, which one matrix gives in this order, pass a causal convolution over `conv_width` positions and silu first.
    output_norm: of each head's output, which is then multiplied by silu of its gate. tiled: value head i has the query and the key of head
    i % num_key_heads, else of i // (num_value_heads / num_key_heads).
    """

    num_key_heads: int = within(1, MAX_HEADS)
    num_value_heads: int = within(1, MAX_HEADS)
    key_dim: int = within(1, MAX_HEAD_DIM)
    value_dim: int = within(1, MAX_HEAD_DIM)
    conv_width: int = within(1, 64)
    output_norm: Norm
    tiled: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_value_heads % self.num_key_heads:
            raise CorruptModelFile(f"num_value_heads is {self.num_value_heads}; expected a multiple of num_key_heads, {self.num_key_heads}")

    def state_bytes_per_token(self, element_type: str) -> int:
        return 0

    @property
    def qkv_width(self) -> int:
        """Queries, keys and values together: what the convolution passes over."""
        return 2 * self.num_key_heads * self.key_dim + self.value_width

    @property
    def value_width(self) -> int:
        return self.num_value_heads * self.value_dim

    @property
    def state_bytes_per_sequence(self) -> int:
        """The state and the convolution's last inputs, in float32: it is rounded at every position, which a cache's element type is not."""
        recurrent = self.num_value_heads * self.key_dim * self.value_dim
        convolved = (self.conv_width - 1) * self.qkv_width
        return (recurrent + convolved) * _RECURRENT_ELEMENT_BYTES

    @property
    def features(self) -> Iterator[str]:
        yield "attention:linear"
        yield from self.output_norm.features


Attention = SelfAttention | LatentAttention | LinearAttention
