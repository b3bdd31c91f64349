"""Experts that are read when they are chosen: the right bytes in whatever order, those that are kept, and clear words when a disk fails."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dairllm.mesh.errors import WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.model_files.memory import STREAM_READERS, ExpertsInMemory, experts_size_of
from dairllm.shard_service.weights.experts import ExpertStore
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import place_in

LAYERS, EXPERTS, USED = (1, 2, 3), 6, 2
SHAPES = {"expert_gate": (EXPERTS, 24, 64), "expert_up": (EXPERTS, 24, 64), "expert_down": (EXPERTS, 64, 24)}
Values = dict[tuple[int, str], np.ndarray]
Choice = tuple[int, list[int]]


@pytest.fixture(scope="module")
def readers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(STREAM_READERS) as threads:
        yield threads


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Unit], Values]:
    generator, content, units, values = np.random.default_rng(7), bytearray(b"x" * 77), [], Values()
    for index in LAYERS:
        tensors = []
        for role, shape in {"router": (EXPERTS, 64), **SHAPES}.items():
            values[index, role] = generator.standard_normal(shape).astype(np.float32)
            piece = TensorPiece(offset_bytes=len(content), size_bytes=values[index, role].nbytes)
            tensors.append(TensorInfo(name=role, role=role, block_format="F32", shape=shape, pieces=(piece,)))
            content += values[index, role].tobytes()
        units.append(Unit(index=index, tensors=tuple(tensors), size_bytes=sum(one.size_bytes for one in tensors), digest=b""))
    path = tmp_path_factory.mktemp("model") / "model.bin"
    path.write_bytes(content)
    return path, units, values


def store_of(path: Path, units: Sequence[Unit], readers: ThreadPoolExecutor, num_places: int) -> tuple[ExpertStore, StreamMeter]:
    meter = StreamMeter()
    store = ExpertStore(units, dict.fromkeys(LAYERS, USED), num_places, readers, meter)
    for unit in units:
        store.place(unit.index, place_in((path,), unit))
    return store, meter


def require_right(store: ExpertStore, values: Values, unit: int, experts: list[int]) -> list[bool]:
    """As the kernels ask."""
    were_there = store.want(unit, experts)
    for whole, roles in ((False, ("expert_gate", "expert_up")), (True, ("expert_down",))):
        store.wait(whole=whole)
        for role in roles:
            for expert in experts:
                np.testing.assert_array_equal(store.matrices_of(unit)[role].dequantize_rows(expert), values[unit, role][expert])
    return were_there


def choices(most: int) -> st.SearchStrategy[list[Choice]]:
    experts = st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=most).map(sorted)
    return st.lists(st.tuples(st.sampled_from(LAYERS), experts), max_size=30)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_chosen_is_right(stored: tuple[Path, list[Unit], Values], readers: ThreadPoolExecutor, data: st.DataObject) -> None:
    path, units, values = stored
    num_places = data.draw(st.integers(USED, len(LAYERS) * EXPERTS))
    store, meter = store_of(path, units, readers, num_places)
    most, seen = num_places - store.in_memory.num_pinned, set[tuple[int, int]]()
    for unit, experts in data.draw(choices(min(most, EXPERTS))):
        were_there = require_right(store, values, unit, experts)
        assert {expert for expert, is_there in zip(experts, were_there, strict=True) if is_there} <= {e for u, e in seen if u == unit}
        seen |= {(unit, expert) for expert in experts}
    if len(seen) <= num_places and not store.in_memory.num_pinned:
        assert meter.experts_missed == len(seen), "each is read once"
    expert_bytes = sum(values[1, role][0].nbytes for role in SHAPES)
    assert meter.read_bytes == meter.experts_missed * expert_bytes, "nothing but those"


def hits_of(store: ExpertStore, values: Values, rounds: int) -> list[int]:
    """Of a row that chooses the same experts in all layers, again and again: hits by round."""
    return [sum(sum(require_right(store, values, unit, [1, 4])) for unit in LAYERS) for _ in range(rounds)]


def test_above_the_cliff_all_that_a_row_chooses_stays(stored: tuple[Path, list[Unit], Values], readers: ThreadPoolExecutor) -> None:
    path, units, values = stored
    store, _ = store_of(path, units, readers, USED * len(LAYERS))
    assert not store.in_memory.is_below_cliff
    assert hits_of(store, values, 3) == [0, 6, 6]


def test_below_the_cliff_what_has_a_place_of_its_own_stays(stored: tuple[Path, list[Unit], Values], readers: ThreadPoolExecutor) -> None:
    """Where the last used ones are kept, none would be found."""
    path, units, values = stored
    store, _ = store_of(path, units, readers, USED * len(LAYERS) - 1)
    assert (store.in_memory.is_below_cliff, store.in_memory.num_pinned) == (True, 3)
    assert min(hits_of(store, values, 4)[1:]) >= 3


def test_what_was_not_used_for_the_longest_time_makes_room(stored: tuple[Path, list[Unit], Values], readers: ThreadPoolExecutor) -> None:
    path, units, values = stored
    store, _ = store_of(path, units, readers, 6)
    for unit, experts in ((1, [0, 1]), (2, [0, 1]), (3, [0, 1]), (1, [0]), (2, [5])):
        require_right(store, values, unit, experts)
    assert require_right(store, values, 1, [0]) == [True]
    assert require_right(store, values, 2, [0, 1]) == [True, True]
    assert require_right(store, values, 1, [1]) == [False]


def test_a_file_that_changes_is_named_every_time(
    stored: tuple[Path, list[Unit], Values], readers: ThreadPoolExecutor, tmp_path: Path
) -> None:
    path, units, values = stored
    copy = tmp_path / "model.bin"
    copy.write_bytes(path.read_bytes())
    store, _ = store_of(copy, units, readers, 8)
    require_right(store, values, 1, [0, 3])
    os.truncate(copy, 1000)
    for _ in range(2):
        store.want(2, [1, 2])
        with pytest.raises(WeightsDiffer, match=r"unit 2 cannot be read any more: .*model\.bin (has changed|ends before)"):
            store.wait(whole=True)
    assert require_right(store, values, 1, [0, 3]) == [True, True]


def test_what_is_expected_follows_from_the_places(stored: tuple[Path, list[Unit], Values]) -> None:
    sizes = [size for unit in stored[1] if (size := experts_size_of(unit, USED)) is not None]
    expected = {places: round(ExpertsInMemory(sizes, places).expected_hits * 18) for places in (2, 3, 5, 6, 7, 18, 99)}
    assert expected == {2: 0, 3: 1, 5: 3, 6: 6, 7: 7, 18: 18, 99: 18}
