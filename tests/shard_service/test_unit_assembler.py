"""Units packed from pieces of any size equal units packed at once."""

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import PackedMatrix, PackedStack, dequantize, quantize_q8_0, quantize_rows
from dairllm.mesh.errors import DairllmError, InvalidModel, PeerUnreachable, UnknownModel, WeightsDiffer
from dairllm.mesh.peers import Peer
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.model_files.memory import weights_bytes
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.weights.assembler import LoadedUnit, UnitAssembler
from dairllm.shard_service.weights.reading import UnitPlace
from dairllm.shard_service.weights.sources import LocalFiles, Piece
from dairllm.shard_service.weights.store import LayerStore, LoadCounts
from dairllm.shard_service.weights.writers import Weights
from tests.instruments.descriptions import spec_of

RANDOM = np.random.default_rng(0)
MODEL = spec_of(1)


def tensor_info(name: str, role: str, block_format: str, shape: tuple[int, ...], offset: int, size: int) -> TensorInfo:
    pieces = (TensorPiece(offset_bytes=offset, size_bytes=size),)
    return TensorInfo(name=name, role=role, block_format=block_format, shape=shape, pieces=pieces)


def tensor(role: str, offset: int, *shape: int) -> tuple[TensorInfo, bytes]:
    if len(shape) == 1:
        data = RANDOM.standard_normal(shape[0]).astype(np.float32).tobytes()
        return tensor_info(role, role, "F32", shape, offset, len(data)), data
    if role.endswith("_bias"):
        data = RANDOM.standard_normal(shape).astype(np.float32).tobytes()
        return tensor_info(role, role, "F32", shape, offset, len(data)), data
    data = quantize_q8_0(RANDOM.standard_normal(np.prod(shape)).astype(np.float32))
    return tensor_info(role, role, "Q8_0", shape, offset, len(data)), data


def unit(index: int, *parts: tuple[TensorInfo, bytes]) -> tuple[Unit, bytes]:
    data = b"".join(data for _, data in parts)
    tensors = tuple(facts for facts, _ in parts)
    return Unit(index=index, tensors=tensors, size_bytes=len(data), digest=hashlib.sha256(data).digest()), data


TABLE = tensor("token_embedding", 0, 50, 64)
HEAD_TABLE = (tensor_info("token_embedding", "output", "Q8_0", (50, 64), 0, TABLE[0].size_bytes), TABLE[1])
EMBEDDING = unit(0, TABLE)
LAYER = unit(1, tensor("attention_norm", 9000, 64), tensor("q", 10000, 33, 64), tensor("k", 20000, 16, 64), tensor("ffn_norm", 30000, 64))
EXPERTS = unit(
    1,
    tensor("expert_gate", 1000, 5, 33, 64),
    tensor("expert_down", 20000, 5, 16, 32),
    tensor("expert_gate_bias", 40000, 5, 33),
    tensor("ffn_norm", 50000, 64),
)
HEAD = unit(2, tensor("output_norm", 40000, 64), HEAD_TABLE)


def assemble(facts: Unit, data: bytes, sizes: list[int]) -> LoadedUnit:
    assembler = UnitAssembler(facts, b"model", lambda tensor: None)
    start = 0
    for size in [*sizes, len(data)]:
        piece = data[start : start + size]
        assembler.hash(piece)
        assembler.pack(piece)
        start += len(piece)
    return assembler.finish()


def numbers_of(weights: Weights) -> object:
    if isinstance(weights, PackedMatrix):
        return weights.dequantize_rows(np.arange(weights.outputs, dtype=np.int32)).tolist()
    if isinstance(weights, PackedStack):
        return [weights.dequantize_rows(index).tolist() for index in range(weights.num_matrices)]
    return weights.tolist()


def values(loaded: LoadedUnit) -> dict[str, object]:
    return {role: numbers_of(weights) for role, weights in loaded.weights.items()}


WHOLE = {facts.digest: values(assemble(facts, data, [])) for facts, data in (LAYER, EXPERTS)}


@settings(max_examples=50)
@given(st.sampled_from([LAYER, EXPERTS]), st.lists(st.integers(1, 3000), max_size=30))
def test_pieces_do_not_matter(layer: tuple[Unit, bytes], sizes: list[int]) -> None:
    facts, data = layer
    assert values(assemble(facts, data, sizes)) == WHOLE[facts.digest]


def test_a_stack_holds_the_matrix_of_each_expert() -> None:
    facts, data = EXPERTS
    whole = WHOLE[facts.digest]
    expected = [dequantize("Q8_0", data[index * 33 * 68 : (index + 1) * 33 * 68], 33 * 64).reshape(33, 64).tolist() for index in range(5)]
    assert whole["expert_gate"] == expected
    bias = np.frombuffer(data, np.float32, 5 * 33, facts.tensors[0].size_bytes + facts.tensors[1].size_bytes)
    assert whole["expert_gate_bias"] == bias.reshape(5, 33).tolist()


def test_memory_of_stacks_is_counted_as_they_take_it() -> None:
    facts, data = EXPERTS
    loaded = assemble(facts, data, [])
    taken = sum(one.nbytes if isinstance(one, np.ndarray) else one.size_bytes for one in loaded.weights.values())
    assert weights_bytes([facts]) == taken


def test_other_bytes_are_not_accepted() -> None:
    facts, data = LAYER
    with pytest.raises(WeightsDiffer, match="digest"):
        assemble(facts, data[:-1] + bytes([data[-1] ^ 1]), [])


class FakeSource:
    """Gives the bytes of its units; notes which it was asked for."""

    def __init__(
        self, units: dict[int, bytes], *, is_local: bool = True, attempts: int = 1, fails_after: DairllmError | None = None
    ) -> None:
        self._units = units
        self._fails_after = fails_after
        self.is_local = is_local
        self.attempts = attempts
        self.asked: list[int] = []

    def __str__(self) -> str:
        return "fake"

    def offers(self, unit: Unit) -> bool:
        return True

    @asynccontextmanager
    async def opened(self, unit: Unit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        self.asked.append(unit.index)
        if unit.index not in self._units:
            raise UnknownModel(f"no unit {unit.index}")
        yield self.pieces(unit)

    def place_of(self, unit: Unit) -> UnitPlace:
        raise UnknownModel(f"unit {unit.index} lies nowhere")

    async def pieces(self, unit: Unit) -> AsyncGenerator[Piece, None]:
        data = self._units[unit.index]
        for start in range(0, len(data), 1000):
            yield Piece(data[start : start + 1000], self.is_local)
            await asyncio.sleep(0)
            if self._fails_after is not None:
                raise self._fails_after


def assignment(*units: Unit) -> AssignmentFacts:
    return AssignmentFacts(1, b"model", MODEL, units, "", (), Peer("next", ()), CacheGeometry(1, 32, 32, 32), "F32")


RIGHT = {0: EMBEDDING[1], 1: LAYER[1], 2: HEAD[1]}
ALL = assignment(EMBEDDING[0], LAYER[0], HEAD[0])


@pytest.fixture
def store() -> Iterator[LayerStore]:
    with ThreadPoolExecutor(2) as threads:
        yield LayerStore(threads)


async def test_a_tied_table_is_held_once(store: LayerStore) -> None:
    embedding, _, head = await store.load(ALL, [FakeSource(RIGHT)], lambda counts: None)
    assert embedding.weights["token_embedding"] is head.weights["output"]
    assert store.weights_bytes == weights_bytes(ALL.units)


async def test_units_in_memory_are_not_read_again(store: LayerStore) -> None:
    source = FakeSource(RIGHT)
    await store.load(assignment(EMBEDDING[0], LAYER[0]), [source], lambda counts: None)
    reports: list[LoadCounts] = []
    await store.load(assignment(LAYER[0], HEAD[0]), [source], reports.append)
    assert source.asked == [0, 1, 2]
    assert reports[-1].from_memory_bytes == LAYER[0].size_bytes
    assert reports[-1].from_disk_bytes == HEAD[0].size_bytes
    store.keep_only(assignment(HEAD[0]))
    assert store.weights_bytes == weights_bytes((HEAD[0],))
    store.keep_only()
    assert store.weights_bytes == 0


async def test_what_differs_comes_from_the_next_source_and_counts_once(store: LayerStore) -> None:
    wrong = FakeSource(RIGHT | {0: bytes(len(EMBEDDING[1]))}, attempts=2)
    remote = FakeSource(RIGHT, is_local=False)
    reports: list[LoadCounts] = []
    await store.load(ALL, [wrong, remote], reports.append)
    assert sorted(wrong.asked) == [0, 0, 1, 2]
    assert remote.asked == [0]
    assert reports[-1].from_network_bytes == EMBEDDING[0].size_bytes
    assert reports[-1].loaded_bytes == reports[-1].total_bytes
    assert all(0 <= report.loaded_bytes <= report.total_bytes for report in reports)


async def test_a_file_that_differs_in_one_unit_is_not_asked_for_another(store: LayerStore, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(bytes(100_000))
    with ThreadPoolExecutor(1) as threads:
        file, remote = LocalFiles((tmp_path / "model",), threads), FakeSource(RIGHT, is_local=False)
        await store.load(ALL, [file, remote], lambda counts: None)
        assert sorted(remote.asked) == [0, 1, 2]
        assert not file.offers(EMBEDDING[0])


async def test_several_units_are_fetched_at_once_and_files_read_one_by_one(store: LayerStore) -> None:
    class Counting(FakeSource):
        now, most = 0, 0

        async def pieces(self, unit: Unit) -> AsyncGenerator[Piece, None]:
            self.now += 1
            self.most = max(self.most, self.now)
            async for piece in super().pieces(unit):
                yield piece
            self.now -= 1

    own = assignment(LAYER[0], HEAD[0])
    for source, most in ((Counting(RIGHT), 1), (Counting(RIGHT, is_local=False), 2)):
        store.keep_only()
        await store.load(own, [source], lambda counts: None)
        assert source.most == most


async def test_the_last_sources_error_is_raised(store: LayerStore) -> None:
    with pytest.raises(PeerUnreachable, match="away"):
        await store.load(ALL, [FakeSource({}), FakeSource(RIGHT, is_local=False, fails_after=PeerUnreachable("away"))], lambda counts: None)
    assert store.weights_bytes == 0


async def test_a_cancelled_load_keeps_what_was_complete(store: LayerStore) -> None:
    class Stuck(FakeSource):
        async def pieces(self, unit: Unit) -> AsyncGenerator[Piece, None]:
            if unit.index == 1:
                stuck.set()
                await asyncio.Event().wait()
            async for piece in super().pieces(unit):
                yield piece

    stuck = asyncio.Event()
    loading = asyncio.create_task(store.load(ALL, [Stuck(RIGHT)], lambda counts: None))
    await asyncio.wait_for(stuck.wait(), 5)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    source = FakeSource(RIGHT)
    await store.load(ALL, [source], lambda counts: None)
    assert source.asked == [1, 2]


def assembled(one: TensorInfo, data: bytes, sizes: list[int]) -> object:
    facts = Unit(index=1, tensors=(one,), size_bytes=len(data), digest=hashlib.sha256(data).digest())
    return assemble(facts, data, sizes).weights[one.role]


@pytest.mark.parametrize("sizes", [[], [3, 1000, 4096]])
def test_values_are_moved_before_they_are_packed(sizes: list[int]) -> None:
    stored = RANDOM.standard_normal((8, 66)).astype(np.float32)
    data = stored.tobytes()
    facts = dataclasses.replace(tensor_info("u", "up", "F32", (33, 8), 0, len(data)), transforms=("transpose", "odd_rows"))
    matrix = assembled(facts, data, sizes)
    assert isinstance(matrix, PackedMatrix)
    assert (matrix.dequantize_rows(np.arange(33)) == stored.T[1::2]).all()


def test_numbers_are_floats_of_their_shape() -> None:
    taps = RANDOM.standard_normal((6, 4)).astype(np.float32)
    conv = tensor_info("c", "conv", "F32", (6, 4), 0, taps.nbytes)
    assert np.array_equal(np.asarray(assembled(conv, taps.tobytes(), [5])), taps)
    norm = dataclasses.replace(tensor_info("n", "ffn_norm", "BF16", (4,), 0, 8), transforms=("plus_one",))
    halves = np.array([0x3F80, 0x4000, 0, 0xBF80], "<u2").tobytes()
    assert np.asarray(assembled(norm, halves, [])).tolist() == [2.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize("block_format", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("stored", ["F32", "F16"])
@given(sizes=st.lists(st.integers(1, 900), max_size=20))
def test_rows_are_quantised_as_they_come(block_format: str, stored: str, sizes: list[int]) -> None:
    """As all of them at once, whatever the pieces; the digest is that of what came."""
    rows = RANDOM.standard_normal((33, 64)).astype({"F32": np.float32, "F16": np.float16}[stored])
    data = rows.tobytes()
    plain = dataclasses.replace(tensor_info("q", "q", stored, rows.shape, 0, len(data)), quantized_to=block_format)
    facts = Unit(index=1, tensors=(plain,), size_bytes=len(data), digest=hashlib.sha256(data).digest())
    expected = PackedMatrix(block_format, *rows.shape)
    expected.pack_rows(0, quantize_rows(block_format, rows.astype(np.float32)))
    found = assemble(facts, data, sizes).weights["q"]
    assert isinstance(found, PackedMatrix)
    assert found.block_format == block_format
    ids = np.arange(33)
    assert (found.dequantize_rows(ids) == expected.dequantize_rows(ids)).all()
    assert found.size_bytes == weights_bytes([facts])


def test_numbers_that_no_scale_can_stand_for_are_refused() -> None:
    rows = np.full((16, 64), 1e6, np.float32)
    plain = dataclasses.replace(tensor_info("q", "q", "F32", rows.shape, 0, rows.nbytes), quantized_to="Q8_0")
    facts = Unit(index=1, tensors=(plain,), size_bytes=rows.nbytes, digest=hashlib.sha256(rows.tobytes()).digest())
    with pytest.raises(InvalidModel, match="q: weights cannot be quantised: x holds numbers beyond 65504"):
        assemble(facts, rows.tobytes(), [])
