"""Sent rows: the store against a dictionary of rows."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.ring.frames import RingId
from dairllm.shard_service.forward.sent_rows import SentRows

ROW_BYTES = 34
PLENTY = 10**9
Key = tuple[int, int]


def rows(count: int, value: int) -> bytes:
    return bytes([value % 256]) * (count * ROW_BYTES)


class Model:
    """One value per row; no budget."""

    def __init__(self) -> None:
        self.kept: dict[Key, list[int]] = {}

    def put(self, key: Key, position: int, values: list[int]) -> None:
        known = self.kept.get(key, [])
        if position > len(known):
            self.kept.pop(key, None)
        else:
            self.kept[key] = known[:position] + values

    def size_bytes(self) -> int:
        return sum(len(values) * ROW_BYTES for values in self.kept.values())


PUTS = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(0, 8), st.lists(st.integers(0, 255), min_size=1, max_size=4))


@given(st.lists(PUTS, max_size=30), st.sets(st.integers(1, 3)))
def test_gives_back_what_was_put_last(puts: list[tuple[int, int, int, list[int]]], alive: set[int]) -> None:
    store, model = SentRows(ROW_BYTES, PLENTY), Model()
    for sequence, boundary, position, values in puts:
        store.put(RingId(sequence), boundary, position, b"".join(rows(1, value) for value in values))
        model.put((sequence, boundary), position, values)
    store.keep_only(alive)
    model.kept = {key: values for key, values in model.kept.items() if key[0] in alive}
    assert store.size_bytes == model.size_bytes()
    for key in ((sequence, boundary) for sequence in (1, 2, 3) for boundary in (1, 2)):
        values = model.kept.get(key, [])
        for first, stop in ((0, len(values)), (len(values) // 2, len(values)), (0, len(values) + 1)):
            expected = b"".join(rows(1, value) for value in values[first:stop]) if 0 < stop <= len(values) else None
            if stop:
                assert store.get(RingId(key[0]), key[1], range(first, stop)) == expected


@given(st.lists(PUTS, max_size=30), st.integers(0, 2000))
def test_stays_within_its_budget_and_says_nothing_wrong(puts: list[tuple[int, int, int, list[int]]], budget_bytes: int) -> None:
    store, model = SentRows(ROW_BYTES, budget_bytes), Model()
    for sequence, boundary, position, values in puts:
        store.put(RingId(sequence), boundary, position, b"".join(rows(1, value) for value in values))
        model.put((sequence, boundary), position, values)
        assert 0 <= store.size_bytes <= budget_bytes
    for (sequence, boundary), values in model.kept.items():
        found = store.get(RingId(sequence), boundary, range(len(values)))
        assert found in (None, b"".join(rows(1, value) for value in values))


def test_the_oldest_sequence_goes_first() -> None:
    store = SentRows(ROW_BYTES, 4 * ROW_BYTES)
    for sequence in (1, 2):
        store.put(RingId(sequence), 5, 0, rows(2, sequence))
    store.put(RingId(2), 5, 2, rows(1, 2))
    assert store.get(RingId(1), 5, range(1)) is None
    assert store.get(RingId(2), 5, range(3)) == rows(3, 2)
    store.put(RingId(1), 5, 2, rows(1, 1))
    assert store.get(RingId(1), 5, range(2, 3)) is None, "its beginning is gone for good"
    store.limit(ROW_BYTES)
    assert store.size_bytes == 0


@pytest.mark.parametrize("act", [lambda store: store.forget(RingId(1)), lambda store: store.drop_behind(RingId(1), 7, 3)])
def test_what_is_of_no_use_any_more_goes(act: Callable[[SentRows], None]) -> None:
    store = SentRows(ROW_BYTES, PLENTY)
    store.put(RingId(1), 5, 0, rows(2, 1))
    store.put(RingId(1), 7, 0, rows(4, 2))
    act(store)
    assert store.get(RingId(1), 5, range(2)) is None
