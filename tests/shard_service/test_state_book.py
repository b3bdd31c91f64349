"""What the book of states promises: no run goes on from a state of other rows, and as many sequences as there are places find theirs."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.shard_service.kv_cache.state_book import NO_SLOT, SlotPair, StateBook, StateKey

BLOCK_TOKENS, NUM_PLACES, NUM_BLOCKS = 4, 3, 12


@dataclass
class Life:
    """A sequence on the shards: its rows, its blocks, where its runs ended, and where it may go on for sure."""

    rows: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=lambda: [0])
    sure: list[int] = field(default_factory=lambda: [0])

    def set_back(self) -> None:
        """To where its last run began."""
        if len(self.ends) > 1:
            self.ends.pop()
        self.sure = self.ends[-1:]


class Shard:
    """Slots hold the rows that their state came of."""

    def __init__(self, num_places: int = NUM_PLACES) -> None:
        self.book = StateBook(2 * num_places, BLOCK_TOKENS)
        self.slots: dict[int, tuple[int, ...]] = {}
        self.free = list(range(NUM_BLOCKS))
        self.next_row = 0

    def begin(self, life: Life, num_rows: int) -> SlotPair:
        """From its last end on; rows that were there before are others now."""
        first = life.ends[-1]
        life.rows[first:] = range(self.next_row, self.next_row + num_rows)
        self.next_row += num_rows
        kept = -(-first // BLOCK_TOKENS)
        self.free += life.blocks[kept:]
        life.blocks[kept:] = [self.free.pop(0) for _ in range(-(-len(life.rows) // BLOCK_TOKENS) - kept)]
        slots = self.book.begin(life.blocks, first, len(life.rows))
        if first:
            assert self.slots[slots.read] == tuple(life.rows[:first]), "the state of just these rows"
        else:
            assert slots.read == NO_SLOT
        assert slots.written != slots.read
        self.slots[slots.written] = tuple(life.rows)
        return slots

    def finish(self, life: Life, slots: SlotPair) -> None:
        self.book.finish(life.blocks, life.ends[-1], len(life.rows), slots)
        life.sure = [life.ends[-1], len(life.rows)]
        life.ends.append(len(life.rows))

    def end(self, life: Life) -> None:
        self.book.drop_blocks(life.blocks)
        self.free += life.blocks

    def check(self, lives: list[Life]) -> None:
        for life in lives:
            assert all(self.book.has(life.blocks, end) for end in life.sure)
            for end in life.ends:
                if self.book.has(life.blocks, end) and end:
                    slot = self.book.slot_of(self.book.key(life.blocks, end))
                    assert slot is not None
                    assert self.slots[slot] == tuple(life.rows[:end])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_states_are_those_of_their_rows_and_are_there(data: st.DataObject) -> None:
    shard, lives = Shard(), [Life()]
    for _ in range(data.draw(st.integers(1, 25))):
        life = data.draw(st.sampled_from(lives)) if lives else Life()
        match data.draw(st.sampled_from(["run", "run", "fail", "set back", "end", "new", "resize"])):
            case "run" if lives and len(shard.free) > 2:
                shard.finish(life, shard.begin(life, data.draw(st.integers(1, 7))))
            case "fail" if lives and len(shard.free) > 2:
                shard.book.abandon(shard.begin(life, data.draw(st.integers(1, 7))))
                life.sure = life.ends[-1:]
            case "set back" if len(life.sure) > 1:
                life.set_back()
            case "end" if lives:
                shard.end(life)
                lives.remove(life)
            case "new" if len(lives) < NUM_PLACES:
                lives.append(Life())
            case "resize":
                for source, target in shard.book.resize(2 * data.draw(st.integers(NUM_PLACES, 2 * NUM_PLACES))):
                    shard.slots[target] = shard.slots[source]
        shard.check(lives)


def test_old_states_stay_while_nobody_needs_their_slots() -> None:
    shard, life = Shard(), Life()
    for _ in range(5):
        shard.finish(life, shard.begin(life, 4))
    assert [end for end in life.ends if shard.book.has(life.blocks, end)] == [0, 4, 8, 12, 16, 20]
    other = Life()
    for _ in range(3):
        shard.finish(other, shard.begin(other, 1))
    assert [end for end in life.ends if shard.book.has(life.blocks, end)] == [0, 12, 16, 20]
    shard.check([life, other])


def test_fewer_places_keep_what_sequences_go_on_from() -> None:
    shard, lives = Shard(4), [Life() for _ in range(3)]
    for life in lives:
        shard.finish(life, shard.begin(life, 2))
    for source, target in shard.book.resize(3):
        shard.slots[target] = shard.slots[source]
    shard.check(lives)
    shard.book.resize(1)
    assert sum(shard.book.has(life.blocks, 2) for life in lives) == 1


def test_one_frame_with_more_sequences_than_slots_is_refused() -> None:
    shard, lives = Shard(1), [Life() for _ in range(3)]
    slots = [shard.begin(life, 2) for life in lives[:2]]
    with pytest.raises(LookupError, match="all 2 slots for states are in use"):
        shard.begin(lives[2], 2)
    for life, own in zip(lives, slots, strict=False):
        shard.finish(life, own)
    shard.finish(lives[2], shard.begin(lives[2], 2))
    assert sum(shard.book.has(life.blocks, 2) for life in lives) == 2


def test_what_comes_from_elsewhere_is_gone_on_from() -> None:
    book = StateBook(2, BLOCK_TOKENS)
    slot = book.add(StateKey(7, 6))
    assert book.has([3, 7], 6)
    assert not book.has([3, 8], 6)
    assert list(book.find({7})) == [(StateKey(7, 6), slot)]
    assert book.begin([3, 7], 6, 7).read == slot
