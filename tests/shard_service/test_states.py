"""Frames through layers that carry states along: equal rows whatever a sequence has been through, or none at all."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from dairllm.kernels_pyx import PackedMatrix
from dairllm.mesh.peers import Peer
from dairllm.mesh.ring.frames import MicroBatch, RingId, SequenceBegin, SequenceSlice
from dairllm.mesh.sampling import SamplingParams
from dairllm.model_files.attention import LinearAttention
from dairllm.model_files.manifest import Unit
from dairllm.model_files.norm import Norm
from dairllm.model_files.roles import is_numbers, unit_shapes
from dairllm.model_files.spec import ModelSpec
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.forward.building import build_stage
from dairllm.shard_service.forward.compute_stage import ComputeStage
from dairllm.shard_service.forward.sent_rows import SentRows
from dairllm.shard_service.forward.sequences import SequenceTable
from dairllm.shard_service.kv_cache.layers import KvCaches
from dairllm.shard_service.kv_cache.states import LayerStates
from dairllm.shard_service.weights.assembler import LoadedUnit
from dairllm.shard_service.weights.writers import Weights
from tests.instruments.descriptions import layer_of, spec_of

LINEAR = LinearAttention(num_key_heads=1, num_value_heads=2, key_dim=16, value_dim=24, conv_width=3, output_norm=Norm(kind="rms", eps=1e-6))
WIRE = "Q8_0"
GEOMETRY = CacheGeometry(num_blocks=32, block_tokens=16, context_length=128, max_batch_rows=64, element_type="F16")
PROMPT = tuple(np.random.default_rng(1).integers(0, 50, 40).tolist())


def hybrid() -> ModelSpec:
    full = layer_of()
    linear = replace(full, attention=LINEAR)
    return replace(spec_of(4), layers=(linear, full, linear, full))


MODEL = hybrid()


def weights_of(unit: int) -> dict[str, Weights]:
    numbers = np.random.default_rng(unit)
    weights: dict[str, Weights] = {}
    for role, shape in unit_shapes(MODEL, unit).items():
        dense: NDArray[np.float32] = (numbers.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        if is_numbers(role, shape):
            weights[role] = -np.exp(dense) if role == "decay" else dense + np.float32("norm" in role)
            continue
        weights[role] = matrix = PackedMatrix("F32", *shape)
        matrix.pack_rows(0, dense.tobytes())
    return weights


class Shard:
    """The embedding and all layers: what it sends are the rows that come out of them."""

    def __init__(self, geometry: CacheGeometry = GEOMETRY) -> None:
        span = range(0, MODEL.head_index)
        facts = tuple(Unit(index=index, tensors=(), size_bytes=0, digest=b"") for index in span)
        self.assignment = AssignmentFacts(1, b"model", MODEL, facts, "", (), Peer("next", ()), geometry, WIRE)
        self.caches = KvCaches()
        kv = self.caches.arrange(self.assignment)
        units = [LoadedUnit(unit, b"model", weights_of(unit.index)) for unit in facts]
        sent_rows = SentRows(1, 0)
        parts = build_stage(self.assignment, units)
        self.stage = ComputeStage(self.assignment, parts, kv, SequenceTable(MODEL, geometry), sent_rows, "a")

    def compute(self, *slices: SequenceSlice, begins: Sequence[SequenceBegin] = (), ends: Sequence[int] = ()) -> tuple[SequenceSlice, ...]:
        frame = MicroBatch(1, 1, WIRE, tuple(begins), slices, tuple(map(RingId, ends)))
        result = self.stage.compute(frame, 0)
        assert isinstance(result, MicroBatch)
        return result.slices

    def rows(self, *slices: SequenceSlice) -> bytes:
        return b"".join(slice_.activations for slice_ in self.compute(*slices))

    @property
    def states(self) -> list[LayerStates]:
        return [cache for unit in self.assignment.layer_units if isinstance(cache := self.caches.get(unit), LayerStates)]


def begin(number: int = 1) -> SequenceBegin:
    return SequenceBegin(RingId(number), len(PROMPT), SamplingParams())


def part(first: int, end: int, number: int = 1, tokens: Sequence[int] = PROMPT) -> SequenceSlice:
    """Blocks 8 * number and on."""
    blocks = range(-(-first // GEOMETRY.block_tokens), -(-end // GEOMETRY.block_tokens))
    return SequenceSlice(RingId(number), first, tuple(tokens[first:end]), tuple(number * 8 - 8 + block for block in blocks), num_samples=0)


@pytest.fixture(scope="module")
def expected() -> bytes:
    """The prompt at once."""
    [only] = Shard().compute(part(0, 40), begins=[begin()])
    return only.activations


def rows_of(expected: bytes, first: int, end: int) -> bytes:
    size = len(expected) // len(PROMPT)
    return expected[first * size : end * size]


@pytest.mark.parametrize("cuts", [(1, 2, 3), (16, 32), (5, 17, 39), tuple(range(1, 40))])
def test_chunks_change_nothing(expected: bytes, cuts: tuple[int, ...]) -> None:
    shard, found = Shard(), b""
    shard.compute(begins=[begin()])
    for first, end in zip((0, *cuts), (*cuts, 40), strict=True):
        found += shard.rows(part(first, end))
    assert found == expected


def test_a_sequence_goes_back_to_where_its_last_run_began(expected: bytes) -> None:
    shard = Shard()
    shard.compute(begins=[begin()])
    assert shard.rows(part(0, 20)) == rows_of(expected, 0, 20)
    for _ in range(3):
        assert shard.rows(part(20, 33)) == rows_of(expected, 20, 33)
    assert shard.rows(part(33, 40)) == rows_of(expected, 33, 40)
    other = (*PROMPT[:33], *(0,) * 7)
    assert shard.rows(part(33, 36, tokens=other)) != rows_of(expected, 33, 36)
    assert shard.rows(part(33, 40)) == rows_of(expected, 33, 40)
    assert shard.rows(part(0, 40)) == expected


def test_where_no_state_is_the_slice_fails_alone(expected: bytes) -> None:
    shard = Shard()
    shard.compute(part(0, 20), begins=[begin(1), begin(2)])
    failed, other = shard.compute(part(7, 12), part(0, 40, 2))
    assert failed.has_failed
    assert not failed.activations
    assert other.activations == expected
    [again] = shard.compute(part(12, 20))
    assert again.has_failed, "what follows cannot be computed either"
    assert shard.rows(part(0, 40)) == expected


def test_more_sequences_than_places_lose_their_states_and_never_mix_them(expected: bytes) -> None:
    numbers = range(1, 9)
    shard = Shard(replace(GEOMETRY, num_blocks=64, context_length=512))
    assert shard.states[0].num_places == 2
    for number in numbers:
        shard.compute(part(0, 20, number), begins=[begin(number)])
    results = [shard.compute(part(20, 40, number))[0] for number in numbers]
    assert sum(not result.has_failed for result in results) >= 2
    assert any(result.has_failed for result in results)
    for result in results:
        assert result.has_failed or result.activations == rows_of(expected, 20, 40)


def test_ended_sequences_leave_their_places(expected: bytes) -> None:
    shard = Shard()
    for number in range(1, 4):
        shard.compute(part(0, 20, number), begins=[begin(number)])
    shard.compute(ends=[1, 2, 3])
    assert not any(states.has((0, 1, 2), 20) or states.has((8, 9, 10), 20) for states in shard.states)
    shard.compute(begins=[begin(1)])
    assert shard.rows(part(0, 20)) == rows_of(expected, 0, 20)


def test_states_are_handed_over(expected: bytes) -> None:
    """With the cache's blocks, as FetchKv does it."""
    old, new = Shard(), Shard()
    old.compute(part(0, 20), begins=[begin()])
    old.compute(part(20, 33))
    new.compute(begins=[replace(begin(), block_ids=(0, 1, 2), token_ids=PROMPT[:33])])
    for unit in old.assignment.layer_units:
        source, target = old.caches.get(unit), new.caches.get(unit)
        if isinstance(source, LayerStates) and isinstance(target, LayerStates):
            whole: dict[object, bytearray] = {}
            for key, offset, data in source.read({0, 1, 2}, 1000):
                assert offset == len(whole.setdefault(key, bytearray()))
                whole[key] += data
                if len(whole[key]) == target.state_bytes:
                    target.write(key, whole[key])
        elif not isinstance(source, LayerStates) and not isinstance(target, LayerStates):
            assert source is not None
            assert target is not None
            for block in range(3):
                target.write_block(block, source.read_block(block))
    assert new.rows(part(33, 40)) == rows_of(expected, 33, 40)
    assert new.rows(part(20, 40)) == rows_of(expected, 20, 40), "also from where the old owner's last run began"


def test_states_outlive_a_change_of_size(expected: bytes) -> None:
    shard = Shard()
    shard.compute(part(0, 20), begins=[begin()])
    for num_blocks in (64, 8):
        geometry = replace(GEOMETRY, num_blocks=num_blocks)
        shard.assignment = replace(shard.assignment, geometry=geometry)
        shard.caches.shrink(shard.assignment)
        kv = shard.caches.arrange(shard.assignment)
        units = [LoadedUnit(unit, b"model", weights_of(unit.index)) for unit in shard.assignment.units]
        parts = build_stage(shard.assignment, units)
        table = shard.stage.sequences.under(MODEL, geometry, {1})
        shard.stage = ComputeStage(shard.assignment, parts, kv, table, SentRows(1, 0), "a")
        assert shard.states[0].num_places == num_blocks * GEOMETRY.block_tokens // GEOMETRY.context_length
        assert shard.caches.size_bytes <= shard.assignment.kv_cache_bytes
    assert shard.rows(part(20, 40)) == rows_of(expected, 20, 40)
    shard.caches.keep_blocks(())
    [failed] = shard.compute(part(40, 41, tokens=(*PROMPT, 3)))
    assert failed.has_failed
