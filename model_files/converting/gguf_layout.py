"""Where GGUF has the values of a role, and in which order of rows: the other way round of how an architecture reads it."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.model_files.attention import Attention, LatentAttention, LinearAttention, SelfAttention
from dairllm.model_files.checkpoints.stored import Names, Rows, Stored, part_of
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.spec import LayerSpec, ModelSpec

Order = npt.NDArray[np.int64]
_ONE_ROW_ROLES = frozenset({"shared_router"})
"""Matrices of one row, which are vectors in GGUF."""
_LAYOUTS = frozenset({"interleaved", "tiled", "architecture", "name", "padding_rows"})
_NEARLY = 1e-5
"""GGUF has numbers in single precision."""
IN_F32 = frozenset({"router", "shared_router"})
"""Matrices that llama.cpp wants in F32."""


class RolePart(NamedTuple):
    """What one role gives to a tensor of GGUF. rows: which of each block of rows; None for all. layer: its number, None outside them."""

    tensor: TensorInfo
    rows: Rows | None
    layer: int | None


class Output(NamedTuple):
    """A tensor to be written."""

    name: str
    parts: tuple[RolePart, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows of a fused tensor are those of all parts."""
        first = self.parts[0].tensor
        if self.parts[0].rows is not None:
            return sum(part.tensor.shape[0] for part in self.parts), first.shape[-1]
        return first.shape[1:] if first.role in _ONE_ROW_ROLES else first.shape

    @property
    def is_f32(self) -> bool:
        """Whatever the others are in."""
        tensor = self.parts[0].tensor
        return tensor.is_numbers or tensor.role in IN_F32


def outputs_of(spec: ModelSpec, units: Sequence[Sequence[TensorInfo]], names: Names) -> list[Output]:
    """All tensors, by the names that an architecture has in GGUF. An output matrix that is the embedding is not written again."""
    parts: dict[str, list[RolePart]] = {}
    embedding = units[0][0].place
    for index, unit in enumerate(units):
        layer = spec.layer_of(index)
        for tensor in unit:
            if tensor.role == "output" and tensor.place == embedding:
                continue
            stored = _place_of(names[tensor.role], tensor.role, layer)
            rows = None if stored.rows is None else stored.rows(part_of(spec, index))
            parts.setdefault(stored.name_in(max(0, index - 1)), []).append(RolePart(tensor, rows, None if layer is None else index - 1))
    return [Output(name, tuple(found)) for name, found in parts.items()]


def _place_of(candidates: Sequence[Stored], role: str, layer: LayerSpec | None) -> Stored:
    """The first one is how it is written today; what linear attention gives out has a name of its own."""
    if role == "attention_output" and layer is not None and isinstance(layer.attention, LinearAttention):
        return candidates[-1]
    return candidates[0]


def row_order(role: str, layer: LayerSpec, read_as: LayerSpec) -> Order | None:
    """Which row of the role's tensor is each row of GGUF's; None: as they are. read_as: the same layer, as GGUF has it."""
    ours, theirs = layer.attention, read_as.attention
    if isinstance(ours, SelfAttention) and isinstance(theirs, SelfAttention) and ours.rope is not None and theirs.rope is not None:
        heads = {"q": ours.num_heads, "q_bias": ours.num_heads, "k": ours.num_kv_heads, "k_bias": ours.num_kv_heads}
        if role in heads and theirs.rope.interleaved and not ours.rope.interleaved:
            return _side_by_side(heads[role], ours.key_dim, ours.rope.dim)
    if isinstance(ours, LatentAttention) and isinstance(theirs, LatentAttention) and theirs.rope.interleaved and not ours.rope.interleaved:
        return _latent_side_by_side(role, ours)
    return _value_heads_apart(role, ours) if _is_tiled_anew(ours, theirs) and isinstance(ours, LinearAttention) else None


def column_order(role: str, layer: LayerSpec, read_as: LayerSpec) -> Order | None:
    """As `row_order`."""
    ours = layer.attention
    if role != "attention_output" or not isinstance(ours, LinearAttention) or not _is_tiled_anew(ours, read_as.attention):
        return None
    return _spread(_heads_apart(ours), ours.value_dim)


def factor_of(role: str, layer: LayerSpec, read_as: LayerSpec) -> float:
    """By which values are multiplied where the scores get another scale than they should: queries have it instead."""
    ours, theirs = layer.attention, read_as.attention
    if (
        not isinstance(ours, SelfAttention)
        or not isinstance(theirs, SelfAttention)
        or math.isclose(ours.scale, theirs.scale, rel_tol=_NEARLY)
    ):
        return 1.0
    scaled = ("q_norm",) if ours.q_norm is not None and ours.q_norm.weighted else ("q", "q_bias")
    return ours.scale / theirs.scale if role in scaled else 1.0


def _is_tiled_anew(ours: Attention, theirs: Attention) -> bool:
    return _is_tiled(theirs) and not _is_tiled(ours)


def _side_by_side(num_heads: int, head_dim: int, rotated: int) -> Order:
    """Pairs (i, i + rotated/2) become neighbours."""
    pairs = np.arange(rotated).reshape(2, -1).T.reshape(-1)
    head = np.concatenate([pairs, np.arange(rotated, head_dim)])
    rows: Order = (np.arange(num_heads)[:, None] * head_dim + head).reshape(-1)
    return rows


def _latent_side_by_side(role: str, attention: LatentAttention) -> Order | None:
    """The rotated numbers stand behind the others of each head, and behind the latent."""
    widths = {"q": (attention.num_heads, attention.key_dim), "q_b": (attention.num_heads, attention.key_dim)}
    widths |= {"kv_a": (1, attention.kv_rank), "kv_a_bias": (1, attention.kv_rank)}
    if role not in widths:
        return None
    (count, plain), rotated = widths[role], attention.rope.dim
    one = np.concatenate([np.arange(plain), plain + _side_by_side(1, rotated, rotated)])
    rows: Order = (np.arange(count)[:, None] * (plain + rotated) + one).reshape(-1)
    return rows


def _value_heads_apart(role: str, attention: LinearAttention) -> Order | None:
    heads = _heads_apart(attention)
    if role in ("qkv", "conv"):
        keys = 2 * attention.num_key_heads * attention.key_dim
        return np.concatenate([np.arange(keys), keys + _spread(heads, attention.value_dim)])
    widths: Mapping[str, int] = {"output_gate": attention.value_dim, "alpha": 1, "beta": 1, "time_step_bias": 1, "decay": 1}
    return _spread(heads, widths[role]) if role in widths else None


def _heads_apart(attention: LinearAttention) -> Order:
    """Value heads of one key head are neighbours; GGUF has the first of each, then the second of each."""
    return np.arange(attention.num_value_heads).reshape(attention.num_key_heads, -1).T.reshape(-1)


def _spread(heads: Order, width: int) -> Order:
    return (heads[:, None] * width + np.arange(width)).reshape(-1)


def differences(expected: ModelSpec, found: ModelSpec) -> Iterator[str]:
    """What a file would be read as that is not what it should be, in names of fields; not how rows are ordered and what
    scores are multiplied by, which are made to fit."""
    yield from _differences("", _facts(expected), _facts(found))
    for index, (layer, read_as) in enumerate(zip(expected.layers, found.layers, strict=False)):
        if _is_interleaved(layer.attention) and not _is_interleaved(read_as.attention):
            yield f"layers[{index}].attention.rope.interleaved"
        if _is_tiled(layer.attention) and not _is_tiled(read_as.attention):
            yield f"layers[{index}].attention.tiled"


def _is_tiled(attention: Attention) -> bool:
    return isinstance(attention, LinearAttention) and attention.tiled


def _is_interleaved(attention: Attention) -> bool:
    rope = None if isinstance(attention, LinearAttention) else attention.rope
    return rope is not None and rope.interleaved


def _facts(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = {field.name for field in dataclasses.fields(value)} - _LAYOUTS - ({"scale"} if isinstance(value, SelfAttention) else set())
        return {name: _facts(getattr(value, name)) for name in sorted(names)}
    return [_facts(one) for one in value] if isinstance(value, tuple) else value


def _differences(where: str, expected: object, found: object) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        for name in expected:
            yield from _differences(f"{where}.{name}" if where else str(name), expected[name], found[name])
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, pair in enumerate(zip(expected, found, strict=True)):
            yield from _differences(f"{where}[{index}]", *pair)
    elif isinstance(expected, float) and isinstance(found, float):
        if abs(expected - found) > _NEARLY * max(abs(expected), abs(found)):
            yield where
    elif expected != found:
        yield where
