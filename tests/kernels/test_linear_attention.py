"""Layers that carry a state along: right against float64, and the same bits however a sequence is cut, batched, set back or computed."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    DenseBlock,
    LinearAttentionBlock,
    PackedMatrix,
    Stage,
    StageLayer,
    StageNorm,
    StageSlice,
    StageSpec,
    StateMemory,
)
from tests.kernels.computing import Floats, Part, assert_same_bits_on_every_isa, run_in_company

Doubles = NDArray[np.float64]
NORM = StageNorm("rms", 1e-6)
HIDDEN, INTERMEDIATE, ROWS = 48, 32, 30


@dataclass(frozen=True, slots=True)
class Shape:
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 32
    value_dim: int = 32
    conv_width: int = 4
    tiled: bool = False

    @property
    def channels(self) -> int:
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def layer(self) -> StageLayer:
        attention = LinearAttentionBlock(
            num_key_heads=self.key_heads, num_value_heads=self.value_heads, key_dim=self.key_dim, value_dim=self.value_dim,
            conv_width=self.conv_width, output_norm=NORM, tiled=self.tiled,
        )  # fmt: skip
        return StageLayer(
            attention_norm=NORM, attention=attention, feed_forward_norm=NORM, feed_forward=DenseBlock(intermediate_size=INTERMEDIATE)
        )


SHAPES = {
    "as qwen3.5": Shape(),
    "tiled": Shape(tiled=True),
    "odd dims": Shape(key_heads=3, value_heads=3, key_dim=5, value_dim=7),
    "several parts": Shape(key_heads=1, value_heads=2, key_dim=24, value_dim=150),
    "whole parts": Shape(key_heads=1, value_heads=3, key_dim=16, value_dim=128),
    "no convolution": Shape(conv_width=1, value_dim=17),
    "wide convolution": Shape(conv_width=9, key_dim=10),
}


def random_weights(shape: Shape, seed: int = 0) -> dict[str, Floats]:
    numbers = np.random.default_rng(seed)
    values = shape.value_heads * shape.value_dim
    matrices = {"qkv": (shape.channels, HIDDEN), "output_gate": (values, HIDDEN), "attention_output": (HIDDEN, values)}
    matrices |= {"alpha": (shape.value_heads, HIDDEN), "beta": (shape.value_heads, HIDDEN)}
    matrices |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
    dense = {name: numbers.standard_normal(size) / np.sqrt(size[1]) for name, size in matrices.items()}
    dense["conv"] = numbers.standard_normal((shape.channels, shape.conv_width))
    dense["decay"] = -np.exp(numbers.uniform(-3, 1, shape.value_heads))
    dense["time_step_bias"] = numbers.uniform(-4, 2, shape.value_heads)
    norms = {"linear_norm": shape.value_dim, "attention_norm": HIDDEN, "ffn_norm": HIDDEN}
    dense |= {name: 1 + 0.2 * numbers.standard_normal(width) for name, width in norms.items()}
    return {name: weight.astype(np.float32) for name, weight in dense.items()}


def packed(weight: Floats) -> PackedMatrix:
    matrix = PackedMatrix("F32", *weight.shape)
    matrix.pack_rows(0, weight.tobytes())
    return matrix


def stage_of(shape: Shape, weights: dict[str, Floats], num_layers: int = 1) -> Stage:
    spec = StageSpec(hidden_size=HIDDEN, num_layers=num_layers, output_norm=NORM)
    stage = Stage(spec, max_rows=64, max_context=256)
    for index in range(num_layers):
        stage.add_layer(
            index, shape.layer, {name: packed(one) if one.ndim == 2 and name != "conv" else one for name, one in weights.items()}
        )
    return stage


def memory_of(shape: Shape, num_slots: int = 8) -> StateMemory:
    """Full of what nobody may read."""
    [numbers] = shape.layer.cache_shape  # type: ignore[misc]
    memory = StateMemory(num_slots, numbers)
    for slot in range(num_slots):
        memory.write(slot, 0, np.full(numbers, np.nan, np.float32).tobytes())
    return memory


def slice_of(num_rows: int, first: int, read: int, written: int) -> StageSlice:
    return StageSlice(num_rows, first, np.zeros(16, np.int32), np.array([[read, written]], np.int32))


def run_whole(shape: Shape, weights: dict[str, Floats], x: Floats) -> Floats:
    return stage_of(shape, weights).run([memory_of(shape)], x, [slice_of(len(x), 0, -1, 3)], units=range(1, 2))


def random_rows(seed: int = 5, rows: int = ROWS) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, HIDDEN)).astype(np.float32)


# ---- float64 ----


def norm64(x: Doubles, weight: Floats) -> Doubles:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + NORM.eps) * weight)


def silu64(x: Doubles) -> Doubles:
    return np.asarray(x / (1 + np.exp(-x)))


def delta64(shape: Shape, q: Doubles, k: Doubles, v: Doubles, decay: Doubles, beta: Doubles) -> Doubles:
    """q, k [rows, value heads, key_dim], v [rows, value heads, value_dim]; decay, beta [rows, value heads]"""
    state = np.zeros((shape.value_heads, shape.key_dim, shape.value_dim))
    out = np.empty_like(v)
    for row in range(len(v)):
        state *= decay[row][:, None, None]
        change = (v[row] - np.einsum("hkv,hk->hv", state, k[row])) * beta[row][:, None]
        state += np.einsum("hk,hv->hkv", k[row], change)
        out[row] = np.einsum("hkv,hk->hv", state, q[row])
    return out


def layer64(shape: Shape, weights: dict[str, Floats], x: Doubles) -> Doubles:
    w, n = {name: weight.astype(np.float64) for name, weight in weights.items()}, len(x)
    normed = norm64(x, weights["attention_norm"])
    inputs = np.concatenate([np.zeros((shape.conv_width - 1, shape.channels)), normed @ w["qkv"].T])
    mixed = silu64(sum(inputs[j : j + n] * w["conv"][:, j] for j in range(shape.conv_width)))  # type: ignore[arg-type]
    width = shape.key_heads * shape.key_dim
    q, k = (mixed[:, i * width : (i + 1) * width].reshape(n, shape.key_heads, shape.key_dim) for i in range(2))
    q, k = (y / np.sqrt((y * y).sum(-1, keepdims=True) + 1e-6) for y in (q, k))
    times = shape.value_heads // shape.key_heads
    q, k = (np.tile(y, (1, times, 1)) if shape.tiled else np.repeat(y, times, axis=1) for y in (q, k))
    v = mixed[:, 2 * width :].reshape(n, shape.value_heads, shape.value_dim)
    decay = np.exp(w["decay"] * np.log1p(np.exp(normed @ w["alpha"].T + w["time_step_bias"])))
    beta = 1 / (1 + np.exp(-(normed @ w["beta"].T)))
    out = norm64(delta64(shape, q / np.sqrt(shape.key_dim), k, v, decay, beta), weights["linear_norm"]).reshape(n, -1)
    x = x + (out * silu64(normed @ w["output_gate"].T)) @ w["attention_output"].T
    normed = norm64(x, weights["ffn_norm"])
    return np.asarray(x + (silu64(normed @ w["gate"].T) * (normed @ w["up"].T)) @ w["down"].T)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_right_against_float64(shape: Shape) -> None:
    weights, x = random_weights(shape), random_rows()
    np.testing.assert_allclose(run_whole(shape, weights, x), layer64(shape, weights, x.astype(np.float64)), atol=2e-5)


# ---- the same bits ----


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_instruction_set_gives_the_same_bits(shape: Shape) -> None:
    weights, x = random_weights(shape), random_rows()
    assert_same_bits_on_every_isa(lambda: run_whole(shape, weights, x))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_chunks_threads_and_company_change_nothing(data: st.DataObject) -> None:
    """Chunks of one sequence, each in a run with whatever another sequence is at, which has a memory of its own only by its slots."""
    shape = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
    weights = random_weights(shape)
    sequences = random_rows(1), random_rows(2)
    expected = [run_whole(shape, weights, x) for x in sequences]
    stage, memory = stage_of(shape, weights), memory_of(shape, 4)
    slots = [[0, 1], [2, 3]]

    def run(parts: list[Part], rows: Floats) -> Floats:
        slices = [slice_of(end - begin, begin, slots[i][0] if begin else -1, slots[i][1]) for i, begin, end in parts]
        for part in parts:
            slots[part.sequence].reverse()
        return stage.run([memory], rows, slices, units=range(1, 2))

    found = run_in_company(data, sequences, run)
    for i in range(2):
        np.testing.assert_array_equal(found[i], expected[i])


def test_a_state_moves_to_another_memory_bit_for_bit() -> None:
    shape = SHAPES["several parts"]
    weights, x = random_weights(shape), random_rows()
    stage, old, new = stage_of(shape, weights), memory_of(shape), memory_of(shape, 2)
    stage.run([old], x[:20], [slice_of(20, 0, -1, 5)], units=range(1, 2))
    for offset in range(0, old.state_bytes, 1000):
        new.write(1, offset, old.read(5, offset, min(1000, old.state_bytes - offset)))
    new.resize(3)
    rest = stage.run([new], x[20:], [slice_of(ROWS - 20, 20, 1, 2)], units=range(1, 2))
    np.testing.assert_array_equal(rest, run_whole(shape, weights, x)[20:])


def test_what_a_run_goes_on_from_stays_as_it_is() -> None:
    """So that a sequence can be set back to it: the same rows twice, and others in their place."""
    shape = Shape()
    weights, x, other = random_weights(shape), random_rows(1), random_rows(2)
    stage, memory = stage_of(shape, weights), memory_of(shape)
    stage.run([memory], x[:9], [slice_of(9, 0, -1, 0)], units=range(1, 2))
    once, instead, again = (
        stage.run([memory], rows, [slice_of(len(rows), 9, 0, written)], units=range(1, 2))
        for rows, written in ((x[9:20], 1), (other[9:14], 2), (x[9:20], 1))
    )
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, run_whole(shape, weights, x)[9:20])
    np.testing.assert_array_equal(instead, run_whole(shape, weights, np.concatenate([x[:9], other[9:14]]))[9:])


def test_layers_have_states_of_their_own() -> None:
    shape = Shape()
    weights, x = random_weights(shape), random_rows()
    stage, memories = stage_of(shape, weights, 2), [memory_of(shape), memory_of(shape)]
    table = np.zeros(16, np.int32)
    slots = [np.array(pairs, np.int32) for pairs in ([[-1, 1], [-1, 4]], [[1, 0], [4, 5]])]
    found = [
        stage.run(memories, x[begin:end], [StageSlice(end - begin, begin, table, slots[i])], units=range(1, 3))
        for i, (begin, end) in enumerate(((0, 11), (11, ROWS)))
    ]
    expected = run_whole(shape, weights, run_whole(shape, weights, x))
    np.testing.assert_array_equal(np.concatenate(found), expected)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("slices", "words"),
    [
        ([StageSlice(3, 0, np.zeros(1, np.int32))], "a slice has no state_slots"),
        ([slice_of(3, 0, 1, 2)], "reads state 1 and writes 2"),
        ([slice_of(3, 2, -1, 2)], "reads state -1 and writes 2"),
        ([slice_of(3, 2, 1, 8)], "reads state 1 and writes 8, expected two below 8"),
        ([slice_of(3, 2, 8, 1)], "reads state 8"),
        ([slice_of(3, 2, 1, 1)], "state 1 is written by one slice and used by another"),
        ([slice_of(1, 2, 1, 2), slice_of(2, 2, 3, 2)], "state 2 is written"),
        ([slice_of(1, 2, 1, 2), slice_of(2, 2, 2, 3)], "state 2 is written"),
        ([StageSlice(3, 0, np.zeros(1, np.int32), np.zeros((2, 2), np.int32))], r"state_slots has the shape \(2, 2\), expected \(1, 2\)"),
    ],
)
def test_slots_that_make_no_sense_are_refused(slices: list[StageSlice], words: str) -> None:
    shape = Shape()
    stage = stage_of(shape, random_weights(shape))
    with pytest.raises(ValueError, match=words):
        stage.run([memory_of(shape)], random_rows(rows=3), slices, units=range(1, 2))


def test_shapes_that_make_no_sense_are_refused() -> None:
    shape = Shape()
    weights = random_weights(shape)
    stage = stage_of(shape, weights)
    with pytest.raises(ValueError, match="is for states of 16 numbers, expected states of"):
        stage.run([StateMemory(2, 16)], random_rows(rows=3), [slice_of(3, 0, -1, 0)], units=range(1, 2))
    with pytest.raises(ValueError, match="conv has the shape"):
        stage_of(shape, weights | {"conv": weights["conv"].T.copy()})
    with pytest.raises(ValueError, match="num_value_heads is 3, expected a multiple of num_key_heads, which is 2"):
        _ = Shape(value_heads=3).layer
    with pytest.raises(ValueError, match="state_numbers is 17, expected a multiple of 16"):
        StateMemory(1, 17)
    with pytest.raises(ValueError, match="slot_id is 2"):
        StateMemory(2, 16).read(2, 0, 4)
    with pytest.raises(ValueError, match="the number of bytes is 5"):
        StateMemory(2, 16).read(1, 60, 5)
