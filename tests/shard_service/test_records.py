"""Records of what was sent: the store against a dictionary of rows."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.kernels_pyx import WIRE_ENCODINGS, encoded_row_bytes
from dairllm.mesh.ring.frames import SequenceId
from dairllm.shard_service.forward.records import RecordStore

WIDTH = 32
PLENTY = 10**9
Key = tuple[int, int]


def rows(count: int, encoding: str, value: int) -> bytes:
    return bytes([value % 256]) * (count * encoded_row_bytes(encoding, WIDTH))


class Model:
    """One value per row; no budget."""

    def __init__(self) -> None:
        self.records: dict[Key, tuple[str, list[int]]] = {}

    def put(self, key: Key, position: int, encoding: str, values: list[int]) -> None:
        known_encoding, known = self.records.get(key, (encoding, []))
        if known_encoding != encoding:
            known = []
        if position > len(known) or (position and known_encoding != encoding):
            self.records.pop(key, None)
        else:
            self.records[key] = encoding, known[:position] + values

    def size_bytes(self) -> int:
        return sum(len(values) * encoded_row_bytes(encoding, WIDTH) for encoding, values in self.records.values())


PUTS = st.tuples(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 8),
    st.sampled_from(["F32", "Q8_0"]),
    st.lists(st.integers(0, 255), min_size=1, max_size=4),
)


@given(st.lists(PUTS, max_size=30), st.sets(st.integers(1, 3)))
def test_gives_back_what_was_put_last(puts: list[tuple[int, int, int, str, list[int]]], alive: set[int]) -> None:
    store, model = RecordStore(WIDTH, PLENTY), Model()
    for sequence, boundary, position, encoding, values in puts:
        store.put(SequenceId(sequence), boundary, position, encoding, b"".join(rows(1, encoding, value) for value in values))
        model.put((sequence, boundary), position, encoding, values)
    store.keep_only(alive)
    model.records = {key: record for key, record in model.records.items() if key[0] in alive}
    assert store.size_bytes == model.size_bytes()
    for key in ((sequence, boundary) for sequence in (1, 2, 3) for boundary in (1, 2)):
        encoding, values = model.records.get(key, ("F32", []))
        for first, stop in ((0, len(values)), (len(values) // 2, len(values)), (0, len(values) + 1)):
            expected = b"".join(rows(1, encoding, value) for value in values[first:stop]) if 0 < stop <= len(values) else None
            if stop:
                assert store.get(SequenceId(key[0]), key[1], range(first, stop), encoding) == expected


@given(st.lists(PUTS, max_size=30), st.integers(0, 2000))
def test_stays_within_its_budget_and_says_nothing_wrong(puts: list[tuple[int, int, int, str, list[int]]], budget_bytes: int) -> None:
    store, model = RecordStore(WIDTH, budget_bytes), Model()
    for sequence, boundary, position, encoding, values in puts:
        store.put(SequenceId(sequence), boundary, position, encoding, b"".join(rows(1, encoding, value) for value in values))
        model.put((sequence, boundary), position, encoding, values)
        assert 0 <= store.size_bytes <= budget_bytes
    for (sequence, boundary), (encoding, values) in model.records.items():
        found = store.get(SequenceId(sequence), boundary, range(len(values)), encoding)
        assert found in (None, b"".join(rows(1, encoding, value) for value in values))


def test_the_oldest_sequence_goes_first() -> None:
    row_bytes = encoded_row_bytes("F32", WIDTH)
    store = RecordStore(WIDTH, 4 * row_bytes)
    for sequence in (1, 2):
        store.put(SequenceId(sequence), 5, 0, "F32", rows(2, "F32", sequence))
    store.put(SequenceId(2), 5, 2, "F32", rows(1, "F32", 2))
    assert store.get(SequenceId(1), 5, range(1), "F32") is None
    assert store.get(SequenceId(2), 5, range(3), "F32") == rows(3, "F32", 2)
    store.put(SequenceId(1), 5, 2, "F32", rows(1, "F32", 1))
    assert store.get(SequenceId(1), 5, range(2, 3), "F32") is None, "its beginning is gone for good"
    store.limit(row_bytes)
    assert store.size_bytes == 0


@pytest.mark.parametrize("encoding", WIRE_ENCODINGS)
def test_every_encoding(encoding: str) -> None:
    store = RecordStore(WIDTH, PLENTY)
    store.put(SequenceId(1), 3, 0, encoding, rows(5, encoding, 1))
    store.put(SequenceId(1), 3, 3, encoding, rows(1, encoding, 2))
    assert store.get(SequenceId(1), 3, range(2, 4), encoding) == rows(1, encoding, 1) + rows(1, encoding, 2)
    assert store.get(SequenceId(1), 3, range(4, 5), encoding) is None
    assert store.get(SequenceId(1), 3, range(1), next(name for name in WIRE_ENCODINGS if name != encoding)) is None


@pytest.mark.parametrize("act", [lambda store: store.forget(SequenceId(1)), lambda store: store.drop_behind(SequenceId(1), 7, 3)])
def test_what_is_of_no_use_any_more_goes(act: Callable[[RecordStore], None]) -> None:
    store = RecordStore(WIDTH, PLENTY)
    store.put(SequenceId(1), 5, 0, "F32", rows(2, "F32", 1))
    store.put(SequenceId(1), 7, 0, "F32", rows(4, "F32", 2))
    act(store)
    assert store.get(SequenceId(1), 5, range(2), "F32") is None
