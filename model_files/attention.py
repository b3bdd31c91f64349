"""How a layer looks back: with keys and values of every position, with latents of them, or with a state that it carries along.

Each kind says what it keeps of a sequence: bytes for every token (`state_bytes_per_token`) and bytes whatever the length
(`state_bytes_per_sequence`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from dairllm.model_files.bounds import check_fields, within
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.norm import Norm

MAX_HEADS = 1024
MAX_HEAD_DIM = 1024
MAX_WIDTH = 65_535
MAX_CONTEXT = 1 << 27
_RECURRENT_ELEMENT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions of the first `dim` numbers of a head.

    interleaved: pairs (2i, 2i+1) are rotated instead of (i, i + dim/2). freq_factors, if given, has dim/2 values by which the
    inverse frequencies are divided. magnitude: by which the rotated numbers are multiplied.
    """

    theta: float = within(1.0, 1e12)
    dim: int = within(2, MAX_HEAD_DIM)
    interleaved: bool
    freq_factors: tuple[float, ...] = ()
    magnitude: float = within(1e-3, 1e3, default=1.0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dim % 2:
            raise CorruptModelFile(f"rope dim is {self.dim}; expected an even number")
        if self.freq_factors and len(self.freq_factors) != self.dim // 2:
            raise CorruptModelFile(f"freq_factors has {len(self.freq_factors)} values; expected dim / 2 = {self.dim // 2}")
        for factor in self.freq_factors:
            if type(factor) is not float or not (math.isfinite(factor) and 1e-6 <= factor <= 1e6):
                raise CorruptModelFile(f"freq_factors contains {factor!r}; expected numbers from 1e-06 to 1e+06")

    @property
    def features(self) -> Iterator[str]:
        yield "rope"
        if self.magnitude != 1.0:
            yield "rope:magnitude"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Heads over keys and values of all positions, or of the last `window` ones. Scores are multiplied by `scale`.

    key_dim, value_dim: numbers of a head, in queries and keys and in values. rope: None for a layer without positions.
    q_norm, k_norm: of each head. sinks: each head has a score of its own beside those of the positions. softcap: bound of the scores,
    approached by tanh. output_gate: `q` has twice the rows, the second half of each head being a gate of the head's output.
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
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    output_bias: bool = False
    sinks: bool = False
    softcap: float | None = within(1e-3, 1e6, default=None)
    output_gate: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
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

    def state_bytes_per_token(self, element_bytes: int) -> int:
        """element_bytes: of one number in the cache of keys and values."""
        return (self.k_width + self.v_width) * element_bytes

    @property
    def state_bytes_per_sequence(self) -> int:
        return 0

    @property
    def features(self) -> Iterator[str]:
        yield "attention:full" if self.window is None else "attention:sliding_window"
        yield from self.rope.features if self.rope is not None else ("rope:none",)
        for norm in (self.q_norm, self.k_norm):
            if norm is not None:
                yield "attention:qk_norm"
                yield from norm.features
        used = {
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

    query_rank: of the queries' own latent, None if they have none. key_dim: of a head, without the rotated part. latent_norm: of the
    latents.
    """

    num_heads: int = within(1, MAX_HEADS)
    query_rank: int | None = within(1, MAX_WIDTH, default=None)
    kv_rank: int = within(1, MAX_WIDTH)
    key_dim: int = within(1, MAX_HEAD_DIM)
    value_dim: int = within(1, MAX_HEAD_DIM)
    scale: float = within(1e-6, 1e3)
    rope: Rope
    latent_norm: Norm

    def __post_init__(self) -> None:
        check_fields(self)

    def state_bytes_per_token(self, element_bytes: int) -> int:
        return (self.kv_rank + self.rope.dim) * element_bytes

    @property
    def state_bytes_per_sequence(self) -> int:
        return 0

    @property
    def features(self) -> Iterator[str]:
        yield "attention:latent"
        yield from self.rope.features
        yield from self.latent_norm.features


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """A recurrent state of key_dim x value_dim numbers for each value head, updated by the gated delta rule (arXiv:2412.06464).

    Queries, keys and values pass a causal convolution over `conv_width` positions first. output_norm: of each head's output.
    """

    num_key_heads: int = within(1, MAX_HEADS)
    num_value_heads: int = within(1, MAX_HEADS)
    key_dim: int = within(1, MAX_HEAD_DIM)
    value_dim: int = within(1, MAX_HEAD_DIM)
    conv_width: int = within(1, 64)
    output_norm: Norm

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_value_heads % self.num_key_heads:
            raise CorruptModelFile(f"num_value_heads is {self.num_value_heads}; expected a multiple of num_key_heads, {self.num_key_heads}")

    def state_bytes_per_token(self, element_bytes: int) -> int:
        return 0

    @property
    def state_bytes_per_sequence(self) -> int:
        """The state and the convolution's last inputs, in float32: it is rounded at every position, which a cache's element type is not."""
        recurrent = self.num_value_heads * self.key_dim * self.value_dim
        convolved = (self.conv_width - 1) * (2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim)
        return (recurrent + convolved) * _RECURRENT_ELEMENT_BYTES

    @property
    def features(self) -> Iterator[str]:
        yield "attention:linear"
        yield from self.output_norm.features


Attention = SelfAttention | LatentAttention | LinearAttention
