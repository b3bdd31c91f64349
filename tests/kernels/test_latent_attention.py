"""Attention over latents: right against float64, and the same bits however a sequence is cut, batched or computed."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    DenseBlock,
    KvCache,
    LatentAttentionBlock,
    PackedMatrix,
    PackedStack,
    Stage,
    StageLayer,
    StageNorm,
    StageRope,
    StageSlice,
    StageSpec,
)
from tests.kernels.computing import Floats, Part, assert_same_bits_on_every_isa, run_in_company

Doubles = NDArray[np.float64]
NORM = StageNorm("rms", 1e-6)
HIDDEN, INTERMEDIATE, ROWS, BLOCK_TOKENS, NUM_BLOCKS = 48, 32, 90, 16, 16


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int = 4
    query_rank: int | None = 24
    kv_rank: int = 32
    key_dim: int = 32
    value_dim: int = 32
    rope_dim: int = 16
    interleaved: bool = True
    bias: bool = False

    @property
    def scale(self) -> float:
        return float((self.key_dim + self.rope_dim) ** -0.5)

    @property
    def layer(self) -> StageLayer:
        attention = LatentAttentionBlock(
            num_heads=self.heads, query_rank=self.query_rank, kv_rank=self.kv_rank, key_dim=self.key_dim, value_dim=self.value_dim,
            scale=self.scale, rope=StageRope(10000.0, self.rope_dim, self.interleaved), latent_norm=NORM,
        )  # fmt: skip
        return StageLayer(
            attention_norm=NORM, attention=attention, feed_forward_norm=NORM, feed_forward=DenseBlock(intermediate_size=INTERMEDIATE)
        )


SHAPES = {
    "as deepseek-v3": Shape(),
    "queries without a latent": Shape(query_rank=None),
    "odd dims": Shape(heads=5, query_rank=7, kv_rank=21, key_dim=11, value_dim=13, rope_dim=6),
    "half-split, biases": Shape(heads=3, interleaved=False, bias=True),
    "many heads": Shape(heads=19, kv_rank=18, key_dim=4, value_dim=5, rope_dim=2),
}


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Floats]:
    numbers = np.random.default_rng(seed)
    queries, values, rank = shape.heads * (shape.key_dim + shape.rope_dim), shape.heads * shape.value_dim, shape.query_rank
    sizes: dict[str, tuple[int, ...]] = {"kv_a": (shape.kv_rank + shape.rope_dim, HIDDEN), "attention_output": (HIDDEN, values)}
    sizes |= {"q": (queries, HIDDEN)} if rank is None else {"q_a": (rank, HIDDEN), "q_b": (queries, rank)}
    sizes |= {"k_b": (shape.heads, shape.kv_rank, shape.key_dim), "v_b": (shape.heads, shape.value_dim, shape.kv_rank)}
    sizes |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
    dense = {name: numbers.standard_normal(size) / np.sqrt(size[-1]) for name, size in sizes.items()}
    norms = {"kv_a_norm": shape.kv_rank, "attention_norm": HIDDEN, "ffn_norm": HIDDEN} | ({"q_a_norm": rank} if rank else {})
    dense |= {name: 1 + 0.2 * numbers.standard_normal(width) for name, width in norms.items()}
    if shape.bias:
        biases = {"kv_a_bias": shape.kv_rank + shape.rope_dim, "attention_output_bias": HIDDEN} | ({"q_a_bias": rank} if rank else {})
        dense |= {name: 0.3 * numbers.standard_normal(width) for name, width in biases.items()}
    return {name: weight.astype(np.float32) for name, weight in dense.items()}


def packed(weight: Floats) -> PackedMatrix | PackedStack | Floats:
    if weight.ndim == 1:
        return weight
    if weight.ndim == 2:
        matrix = PackedMatrix("F32", *weight.shape)
        matrix.pack_rows(0, weight.tobytes())
        return matrix
    stack = PackedStack("F32", *weight.shape)
    for index, one in enumerate(weight):
        stack.pack_rows(index, 0, one.tobytes())
    return stack


def stage_of(shape: Shape, weights: dict[str, Floats]) -> Stage:
    stage = Stage(StageSpec(hidden_size=HIDDEN, num_layers=1, output_norm=NORM), max_rows=200, max_context=256)
    stage.add_layer(0, shape.layer, {name: packed(one) for name, one in weights.items()})
    return stage


def cache_of(shape: Shape, element_type: str = "F32") -> KvCache:
    """Full of what nobody may read."""
    cache = KvCache(NUM_BLOCKS, BLOCK_TOKENS, 1, shape.kv_rank + shape.rope_dim, 0, element_type)
    number = np.full(1, np.nan, np.float32 if element_type == "F32" else np.float16)
    for block in range(NUM_BLOCKS):
        cache.write_block(block, number.tobytes() * (cache.block_bytes // number.nbytes))
    return cache


def run_whole(shape: Shape, weights: dict[str, Floats], x: Floats, element_type: str = "F32") -> Floats:
    table = np.arange(NUM_BLOCKS, dtype=np.int32)
    return stage_of(shape, weights).run([cache_of(shape, element_type)], x, [StageSlice(len(x), 0, table)], units=range(1, 2))


def random_rows(seed: int = 5, rows: int = ROWS) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, HIDDEN)).astype(np.float32)


# ---- float64: keys and values of every head, made out of the latents ----


def norm64(x: Doubles, weight: Floats) -> Doubles:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM.eps) * weight)


def rotate64(x: Doubles, interleaved: bool) -> Doubles:
    """x [positions, heads, dim]"""
    half = x.shape[-1] // 2
    turns = np.exp(1j * np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(half) / half))[:, None, :]
    first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
    turned = (x[..., first] + 1j * x[..., second]) * turns
    result = np.empty_like(x)
    result[..., first], result[..., second] = turned.real, turned.imag
    return result


def queries64(shape: Shape, weights: dict[str, Floats], normed: Doubles) -> tuple[Doubles, Doubles]:
    if shape.query_rank is None:
        q = normed @ weights["q"].T
    else:
        latent = norm64(normed @ weights["q_a"].T + weights.get("q_a_bias", np.float32(0)), weights["q_a_norm"])
        q = latent @ weights["q_b"].T
    q = q.reshape(len(normed), shape.heads, -1)
    return q[..., : shape.key_dim], rotate64(q[..., shape.key_dim :], shape.interleaved)


def layer64(shape: Shape, weights: dict[str, Floats], x: Doubles) -> Doubles:
    n, normed = len(x), norm64(x, weights["attention_norm"])
    kv = normed @ weights["kv_a"].T + weights.get("kv_a_bias", np.float32(0))
    latents = norm64(kv[:, : shape.kv_rank], weights["kv_a_norm"])
    rotated = rotate64(kv[:, None, shape.kv_rank :], shape.interleaved)
    keys = np.einsum("jr,hrd->jhd", latents, weights["k_b"].astype(np.float64))
    values = np.einsum("jr,hdr->jhd", latents, weights["v_b"].astype(np.float64))
    q, turned = queries64(shape, weights, normed)
    scores = (np.einsum("ihd,jhd->hij", q, keys) + np.einsum("ihd,jkd->hij", turned, rotated)) * shape.scale
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hij,jhd->ihd", attention / attention.sum(-1, keepdims=True), values).reshape(n, -1)
    x = x + mixed @ weights["attention_output"].T + weights.get("attention_output_bias", np.float32(0))
    normed = norm64(x, weights["ffn_norm"])
    gate = normed @ weights["gate"].T
    return np.asarray(x + (gate / (1 + np.exp(-gate)) * (normed @ weights["up"].T)) @ weights["down"].T)


@pytest.mark.parametrize(("element_type", "tolerance"), [("F32", 2e-5), ("F16", 4e-3), ("Q8_0", 5e-2)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_right_against_float64(shape: Shape, element_type: str, tolerance: float) -> None:
    weights, x = random_weights(shape), random_rows()
    expected = layer64(shape, weights, x.astype(np.float64))
    np.testing.assert_allclose(run_whole(shape, weights, x, element_type), expected, atol=tolerance)


# ---- the same bits ----


@pytest.mark.parametrize("element_type", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_instruction_set_gives_the_same_bits(shape: Shape, element_type: str) -> None:
    weights, x = random_weights(shape), random_rows()
    assert_same_bits_on_every_isa(lambda: run_whole(shape, weights, x, element_type))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_chunks_threads_and_company_change_nothing(data: st.DataObject) -> None:
    """Chunks of one sequence, each in a run with whatever another sequence is at."""
    shape = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    element_type = data.draw(st.sampled_from(["F32", "F16", "Q8_0"]))
    weights = random_weights(shape)
    sequences = random_rows(1), random_rows(2)
    expected = [run_whole(shape, weights, x, element_type) for x in sequences]
    blocks = data.draw(st.permutations(range(NUM_BLOCKS)))
    tables = [np.array(blocks[i * 8 : i * 8 + 8], np.int32) for i in range(2)]
    stage, cache = stage_of(shape, weights), cache_of(shape, element_type)

    def run(parts: list[Part], rows: Floats) -> Floats:
        return stage.run([cache], rows, [StageSlice(end - begin, begin, tables[i]) for i, begin, end in parts], units=range(1, 2))

    found = run_in_company(data, sequences, run)
    for i in range(2):
        np.testing.assert_array_equal(found[i], expected[i])


# ---- mistakes ----


def test_shapes_that_make_no_sense_are_refused() -> None:
    shape = Shape()
    weights = random_weights(shape)
    with pytest.raises(ValueError, match="k_b of layer 0 "):
        stage_of(shape, weights | {"k_b": weights["k_b"][:, :, :30].copy()})
    with pytest.raises(ValueError, match="k_b of layer 0 is a PackedMatrix"):
        stage_of(shape, weights | {"k_b": weights["kv_a"]})
    with pytest.raises(ValueError, match="kv_rank with the dim of rope is 1040"):
        _ = Shape(kv_rank=1024).layer
    stage, cache = stage_of(shape, weights), KvCache(NUM_BLOCKS, BLOCK_TOKENS, 1, 48, 16)
    with pytest.raises(ValueError, match="is for 1 kv heads of 48 keys and 16 values, expected 1 kv heads of 48 keys and 0 values"):
        stage.run([cache], random_rows(), [StageSlice(ROWS, 0, np.arange(8))], units=range(1, 2))
