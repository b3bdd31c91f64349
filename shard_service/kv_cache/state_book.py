"""Which slot of a layer's memory has which state. Pure.

A layer with linear attention carries a state along. A state is named by what it came of: the rows of a sequence before some position, which
lie in its cache blocks, so by that position and the block of the row before it. Blocks mean the same on every shard, so states are handed
over with them, and whoever has the same blocks may go on from the same state.

A run reads one state and writes another one, so that a sequence can always be set back to where its last run began; older states stay as
long as nobody needs their slots. What a run computes again takes the place of all states behind its first row.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

BlockTable = Sequence[int] | npt.NDArray[np.integer[Any]]

NO_SLOT = -1
"""What a sequence begins with: nothing but zeros."""


class StateKey(NamedTuple):
    """position: of the row that comes next, over 0. block_id: of the row before it."""

    block_id: int
    position: int


class SlotPair(NamedTuple):
    """read: NO_SLOT at the beginning of a sequence."""

    read: int
    written: int


class _Rank(IntEnum):
    """The higher, the sooner its slot is given to another state."""

    NEWEST = 0
    BEFORE = 1
    SPARE = 2


@dataclass(slots=True)
class _Entry:
    """before: the state that it came of, None at the beginning. after: the one that came of it last, if any did."""

    slot: int
    before: StateKey | None
    after: StateKey | None = None
    rank: _Rank = _Rank.NEWEST


class StateBook:
    """Of one layer. block_tokens: of the cache."""

    def __init__(self, num_slots: int, block_tokens: int) -> None:
        self._num_slots = num_slots
        self._block_tokens = block_tokens
        self._entries: dict[StateKey, _Entry] = {}  # in the order in which they were written
        self._spare: dict[StateKey, None] = {}
        self._of_block: dict[int, set[StateKey]] = {}
        self._free = list(range(num_slots - 1, -1, -1))
        self._in_use: set[int] = set()

    @property
    def num_slots(self) -> int:
        return self._num_slots

    def key(self, block_table: BlockTable, position: int) -> StateKey:
        return StateKey(int(block_table[(position - 1) // self._block_tokens]), position)

    def has(self, block_table: BlockTable, position: int) -> bool:
        """Whether a run may begin at this position."""
        return position == 0 or self.key(block_table, position) in self._entries

    def slot_of(self, key: StateKey) -> int | None:
        entry = self._entries.get(key)
        return entry.slot if entry else None

    def find(self, block_ids: Collection[int]) -> Iterator[tuple[StateKey, int]]:
        """The states that running sequences with these blocks go on from, with their slots: those that nothing has come of yet, and those
        before them."""
        return ((key, entry.slot) for key, entry in self._entries.items() if key.block_id in block_ids and entry.rank < _Rank.SPARE)

    def begin(self, block_table: BlockTable, first_position: int, end_position: int) -> SlotPair:
        """The slots of a run over these positions, until `finish` or `abandon`. Raises LookupError if there is no state to begin with,
        or no slot to be had."""
        self._drop_behind(block_table, first_position, end_position)
        read = NO_SLOT
        if first_position:
            key = self.key(block_table, first_position)
            self._drop_after(key)
            read = self._entries[key].slot
            self._in_use.add(read)
        return SlotPair(read, self._take_slot())

    def finish(self, block_table: BlockTable, first_position: int, end_position: int, slots: SlotPair) -> None:
        """The state was written."""
        before = self.key(block_table, first_position) if first_position else None
        self._in_use.discard(slots.read)
        self._put(self.key(block_table, end_position), _Entry(slots.written, before))

    def abandon(self, slots: SlotPair) -> None:
        """The run failed."""
        self._in_use.discard(slots.read)
        self._free.append(slots.written)

    def add(self, key: StateKey) -> int:
        """A slot for a state that comes from elsewhere. LookupError if there is none to be had."""
        if key in self._entries:
            self._drop(key)
        slot = self._take_slot()
        self._put(key, _Entry(slot, None))
        return slot

    def drop_blocks(self, block_ids: Collection[int]) -> None:
        for block_id in block_ids:
            self._drop_all(self._of_block.get(block_id, ()))

    def keep_blocks(self, block_ids: Collection[int]) -> None:
        self._drop_all(key for key in self._entries if key.block_id not in block_ids)

    def resize(self, num_slots: int) -> list[tuple[int, int]]:
        """What has to be copied before slots go: from, to. States that find no room are dropped. While no run is in progress."""
        assert not self._in_use, "a run is in progress"
        self._free = [slot for slot in range(num_slots - 1, -1, -1) if slot not in {entry.slot for entry in self._entries.values()}]
        self._num_slots = num_slots
        moves: list[tuple[int, int]] = []
        while outside := [key for key, entry in self._entries.items() if entry.slot >= num_slots]:
            if not self._free:
                self._drop(self._least_wanted())
                continue
            entry = self._entries[max(outside, key=lambda key: -self._entries[key].rank)]
            moves.append((entry.slot, self._free.pop()))
            entry.slot = moves[-1][1]
        return moves

    # Slots

    def _take_slot(self) -> int:
        if not self._free:
            self._drop(self._least_wanted())
        return self._free.pop()

    def _least_wanted(self) -> StateKey:
        """Of equal ranks the one that was written first."""
        for key in self._spare:
            if self._entries[key].slot not in self._in_use:
                return key
        candidates = [key for key, entry in self._entries.items() if entry.slot not in self._in_use]
        if not candidates:
            raise LookupError(f"all {self._num_slots} slots for states are in use by one frame")
        return max(candidates, key=lambda key: self._entries[key].rank)

    def _put(self, key: StateKey, entry: _Entry) -> None:
        assert key not in self._entries, "what is computed again was dropped before"
        self._entries[key] = entry
        self._of_block.setdefault(key.block_id, set()).add(key)
        before = self._entries.get(entry.before) if entry.before else None
        if before is not None:
            before.rank, before.after = _Rank.BEFORE, key
            if before.before is not None and before.before in self._entries:
                self._entries[before.before].rank = _Rank.SPARE
                self._spare[before.before] = None

    def _drop(self, key: StateKey) -> None:
        slot = self._entries.pop(key).slot
        self._spare.pop(key, None)
        self._of_block[key.block_id].discard(key)
        if not self._of_block[key.block_id]:
            del self._of_block[key.block_id]
        if slot < self._num_slots:
            self._free.append(slot)

    def _drop_all(self, keys: Iterable[StateKey]) -> None:
        for key in tuple(keys):
            self._drop(key)

    def _drop_after(self, key: StateKey) -> None:
        """What came of this state before: the sequence was set back to it, and may have other blocks for the same rows."""
        outdated: list[StateKey] = []
        after = self._entries[key].after
        while after is not None and after in self._entries and self._entries[after].before == key:
            outdated.append(after)
            key, after = after, self._entries[after].after
        self._drop_all(outdated)

    def _drop_behind(self, block_table: BlockTable, first_position: int, end_position: int) -> None:
        """States that rows of this run take the place of, and those of sequences that had these blocks before."""
        size = self._block_tokens
        for index in range(first_position // size, -(-end_position // size)):
            kept = range(index * size + 1, first_position + 1)
            self._drop_all([key for key in self._of_block.get(int(block_table[index]), ()) if key.position not in kept])
