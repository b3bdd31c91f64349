"""A decoder in float64, layer by layer as its description says: what stages are compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import KvCache, PackedMatrix, Stage, StageSlice, dequantize, quantize_q8_0
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.feed_forward import Activation, DenseFeedForward
from dairllm.model_files.norm import Norm
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import ModelSpec
from dairllm.shard_service.forward.stage_layers import stage_layer, stage_spec
from tests.kernels.computing import as_in_cache

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Decoder:
    """weights: of each unit by role, the numbers that the kernels see."""

    spec: ModelSpec
    block_format: str
    weights: Sequence[Mapping[str, Floats]]

    def stage(self, units: range | None = None, *, max_rows: int = 64, max_context: int = 128, encoding: str = "F32") -> Stage:
        stage = Stage(stage_spec(self.spec, encoding), max_rows=max_rows, max_context=max_context)
        for unit in range(self.spec.num_units) if units is None else units:
            weights = {role: self._packed(numbers) for role, numbers in self.weights[unit].items()}
            if unit == 0:
                stage.set_embedding(weights.pop("token_embedding"), weights)
            elif unit < self.spec.head_index:
                stage.add_layer(unit - 1, stage_layer(self.spec, unit - 1), weights)
            else:
                stage.set_head(weights["output_norm"], weights["output"])
        return stage

    def _packed(self, numbers: Floats) -> Any:
        if numbers.ndim == 1:
            return numbers
        matrix = PackedMatrix(self.block_format, *numbers.shape)
        matrix.pack_rows(0, quantised(numbers, self.block_format))
        return matrix

    def caches(self, layers: range | None = None, num_blocks: int = 16, element_type: str = "F16") -> list[KvCache]:
        """layers: those of a stage, all unless given."""
        of = range(self.spec.num_layers) if layers is None else layers
        shapes = [stage_layer(self.spec, index).cache_shape for index in of]
        return [KvCache(num_blocks, BLOCK_TOKENS, *shape, element_type) for shape in shapes if shape is not None and len(shape) == 3]

    def run(self, ids: NDArray[np.int32], encoding: str = "F32", element_type: str = "F16") -> Floats:
        """Logits of all rows, in one run."""
        part = StageSlice(len(ids), 0, np.arange(8, dtype=np.int32))
        return self.stage(encoding=encoding).run(self.caches(element_type=element_type), ids, [part], np.arange(len(ids)))


def quantised(numbers: Floats, block_format: str) -> bytes:
    return numbers.tobytes() if block_format == "F32" else quantize_q8_0(numbers.reshape(-1))


class Numbers(Protocol):
    """Where random weights come from."""

    def standard_normal(self, size: tuple[int, ...], /) -> Doubles: ...


def random_decoder(spec: ModelSpec, block_format: str = "F32", numbers: Numbers | None = None) -> Decoder:
    numbers = numbers or np.random.default_rng(0)

    def weights(role: str, shape: tuple[int, ...]) -> Floats:
        if len(shape) == 1:
            return (numbers.standard_normal(shape) * 0.3 + (1 if "norm" in role else 0)).astype(np.float32)
        drawn = (numbers.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return dequantize(block_format, quantised(drawn, block_format), drawn.size).reshape(shape)

    units = [{role: weights(role, shape) for role, shape in unit_shapes(spec, index).items()} for index in range(spec.num_units)]
    return Decoder(spec, block_format, units)


def logits64(decoder: Decoder, ids: NDArray[np.int32], element_type: str = "F16") -> Doubles:
    spec = decoder.spec
    x = decoder.weights[0]["token_embedding"][ids].astype(np.float64) * spec.embedding_scale
    added = _Block64(decoder.weights[0], decoder.block_format, element_type).per_layer(spec, ids, x)
    keys: dict[int, tuple[Doubles, Doubles]] = {}
    for index, layer in enumerate(spec.layers):
        block = _Block64(decoder.weights[index + 1], decoder.block_format, element_type)
        assert isinstance(layer.attention, SelfAttention)
        assert isinstance(layer.feed_forward, DenseFeedForward)
        attended, keys[index] = block.attention(layer.attention, block.norm(layer.attention_norm, x, "attention_norm"), keys)
        x = x + layer.residual_scale * block.norm(layer.attention_post_norm, attended, "attention_post_norm")
        fed = block.feed_forward(layer.feed_forward, block.norm(layer.feed_forward_norm, x, "ffn_norm"))
        x = x + layer.residual_scale * block.norm(layer.feed_forward_post_norm, fed, "ffn_post_norm")
        if layer.per_layer_input is not None:
            gated = activate64(layer.per_layer_input.activation, block.multiply(x, "per_layer_gate"), added[:, index])
            x = x + block.norm(layer.per_layer_input.post_norm, block.multiply(gated, "per_layer_output"), "per_layer_post_norm")
        x = x * block.weights["layer_scale"] if layer.output_scale else x
    head = _Block64(decoder.weights[-1], decoder.block_format, element_type)
    logits = head.multiply(head.norm(spec.output_norm, x, "output_norm"), "output") * spec.logit_scale
    return logits if spec.logit_softcap is None else spec.logit_softcap * np.tanh(logits / spec.logit_softcap)


@dataclass(frozen=True, slots=True)
class _Block64:
    weights: Mapping[str, Floats]
    block_format: str
    element_type: str

    def norm(self, norm: Norm | None, x: Doubles, role: str) -> Doubles:
        """Over the last axis."""
        if norm is None:
            return x
        centred = x - x.mean(-1, keepdims=True) if norm.kind == "layer" else x
        weight = self.weights[role].astype(np.float64) + norm.offset_by_one if norm.weighted else 1.0
        return np.asarray(centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + norm.eps) * weight)

    def multiply(self, x: Doubles, role: str) -> Doubles:
        """Plus its bias. Quantised weights see x as int8 in blocks of 32."""
        if self.block_format != "F32":
            blocks = x.reshape(x.shape[0], -1, 32)
            scale = np.abs(blocks).max(-1, keepdims=True) / 127
            x = (np.round(blocks / scale) * scale).reshape(x.shape)
        return np.asarray(x @ self.weights[role].astype(np.float64).T + self.weights.get(f"{role}_bias", np.float32(0)))

    def per_layer(self, spec: ModelSpec, ids: NDArray[np.int32], x: Doubles) -> Doubles:
        """[rows, layers, width]"""
        embedding = spec.per_layer_embedding
        if embedding is None:
            return np.empty((len(ids), spec.num_layers, 0))
        shape = len(ids), spec.num_layers, embedding.width
        projected = self.norm(embedding.norm, self.multiply(x, "per_layer_projection").reshape(shape), "per_layer_norm")
        own = self.weights["per_layer_embedding"][ids].astype(np.float64).reshape(shape)
        return np.asarray(embedding.scale * (projected + embedding.embedding_scale * own))

    def _keys(self, a: SelfAttention, x: Doubles) -> tuple[Doubles, Doubles]:
        """Keys and values as a cache holds them, [positions, kv heads, …]."""
        k = self.multiply(x, "k").reshape(x.shape[0], a.num_kv_heads, a.key_dim)
        v = self.multiply(x, "v").reshape(x.shape[0], a.num_kv_heads, a.value_dim)
        k, v = rotate64(self._head_norm(a, a.k_norm, k, "k_norm"), a.rope), self.norm(a.v_norm, v, "v_norm")
        return as_in_cache(k, self.element_type), as_in_cache(v, self.element_type)

    def attention(
        self, a: SelfAttention, x: Doubles, keys: Mapping[int, tuple[Doubles, Doubles]]
    ) -> tuple[Doubles, tuple[Doubles, Doubles]]:
        """keys: of the layers before. Also returns what this layer has looked at."""
        rows = x.shape[0]
        q = self.multiply(x, "q").reshape(rows, a.num_heads, -1)
        q, gate = q[..., : a.key_dim], q[..., a.key_dim :]
        q = rotate64(self._head_norm(a, a.q_norm, q, "q_norm"), a.rope)
        seen = self._keys(a, x) if a.keys_of is None else keys[a.keys_of]
        k, v = (np.repeat(y, a.num_heads // a.num_kv_heads, axis=1) for y in seen)
        mixed = np.einsum("hij,jhd->ihd", self._weights(a, np.einsum("ihd,jhd->hij", q, k) * a.scale), v)
        if a.output_gate:
            mixed = mixed / (1 + np.exp(-gate))
        return self.multiply(mixed.reshape(rows, -1), "attention_output"), seen

    def _head_norm(self, a: SelfAttention, norm: Norm | None, x: Doubles, role: str) -> Doubles:
        """x [positions, heads, key_dim]"""
        return self.norm(norm, x.reshape(len(x), 1, -1) if a.norm_spans_heads else x, role).reshape(x.shape)

    def _weights(self, a: SelfAttention, scores: Doubles) -> Doubles:
        """scores, weights: [heads, rows, positions]"""
        heads, rows, _ = scores.shape
        if a.softcap is not None:
            scores = a.softcap * np.tanh(scores / a.softcap)
        distance = np.arange(rows)[:, None] - np.arange(rows)
        scores = np.where((distance < 0) | (distance >= (a.window or rows)), -np.inf, scores)
        sinks = self.weights["attention_sinks"].astype(np.float64) if a.sinks else np.full(heads, -np.inf)
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, rows, 1))], -1)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.asarray((weights / weights.sum(-1, keepdims=True))[..., :-1])

    def feed_forward(self, f: DenseFeedForward, x: Doubles) -> Doubles:
        return self.multiply(activate64(f.activation, self.multiply(x, "gate"), self.multiply(x, "up")), "down")


def activate64(activation: Activation, gate: Doubles, up: Doubles) -> Doubles:
    if activation.kind == "silu":
        return np.asarray(gate / (1 + np.exp(-gate)) * up)
    if activation.kind == "gelu_tanh":
        return np.asarray(0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up)
    limit = np.inf if activation.limit is None else activation.limit
    gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    return np.asarray(gate / (1 + np.exp(-activation.alpha * gate)) * (up + 1))


def rotate64(x: Doubles, rope: Rope | None) -> Doubles:
    """x [positions, heads, key_dim]"""
    if rope is None:
        return x
    half = rope.dim // 2
    frequencies = rope.theta ** (-np.arange(half) / half) / np.array(rope.freq_factors or np.ones(half))
    turns = rope.magnitude * np.exp(1j * np.arange(x.shape[0])[:, None] * frequencies)[:, None, :]
    first, second = (slice(0, rope.dim, 2), slice(1, rope.dim, 2)) if rope.interleaved else (slice(0, half), slice(half, rope.dim))
    turned = (x[..., first] + 1j * x[..., second]) * turns
    result = x.copy()
    result[..., first], result[..., second] = turned.real, turned.imag
    return result
