"""Which waiting sequences begin: in the order of their turns, and at whose expense. Pure.

- A sequence begins where there is a place on the shards and room in the cache for all its tokens, with a block more for each that runs
  and may still grow: one that begins only to be set back costs more than it gains.
- One that begins as a running one does, and further than that has come, waits for it: what both need is computed once (`prefixes`).
- One that finds no room may be overtaken by later ones that do, but only by a fourth of the blocks that it needs itself. After that, what
  becomes free is kept for it. So it is neither overtaken for ever, nor does it block those behind it before it must.
- Where there is neither, a client that has less takes from one that has more: running sequences are set back, the last first, as long
  as their turns come after the new one's *end*. The exchange is never undone by the same rule, so nobody takes turns at being set back.
"""

from collections.abc import Callable, Iterator

from dairllm.coordinator.engine.roster import SequenceRoster
from dairllm.coordinator.engine.sequences import Sequence

PATIENCE = 1 / 4
"""With how many blocks, of those that a sequence needs, later ones may begin before it."""


class _Room:
    """What is left while sequences begin. num_kept: free blocks that are kept for those which have been overtaken enough."""

    def __init__(self, roster: SequenceRoster) -> None:
        self._roster = roster
        self.turns = roster.turns()
        self._victims = sorted(roster.running, key=lambda s: self.turns[s.id])
        self._num_growing = sum(map(roster.may_grow, roster.running))
        self.num_kept = 0

    def needs(self, sequence: Sequence) -> int:
        """Blocks, of those that can be had: running sequences may hold others of it already."""
        blocks = self._roster.blocks
        return blocks.blocks_for(len(sequence.tokens)) - sum(map(blocks.is_held, self._roster.reusable(sequence)))

    @property
    def _num_free(self) -> int:
        return max(0, self._roster.blocks.num_free - self.num_kept)

    @property
    def _num_running(self) -> int:
        return len(self._roster.running)

    def is_over(self, sequence: Sequence) -> bool:
        """Whether neither this one nor any later one can begin."""
        if self._num_free > self._num_growing and self._num_running < self._roster.max_running:
            return False
        return not self._victims or self.turns[self._victims[-1].id].ahead <= self.turns[sequence.id].ahead

    def victims_for(self, sequence: Sequence) -> list[Sequence] | None:
        """Who has to be set back so that it can begin, none if there is room; None if it cannot."""
        end = self.turns[sequence.id].ahead + self._roster.share_of(sequence)
        chosen: list[Sequence] = []
        reused = frozenset(self._roster.reusable(sequence))
        num_running, num_missing = self._num_running, self.needs(sequence) + self._num_growing - self._num_free
        while num_running >= self._roster.max_running or num_missing > 0:
            if len(chosen) == len(self._victims):
                return None
            victim = self._victims[-1 - len(chosen)]
            if self.turns[victim.id].ahead < end:
                return None
            chosen.append(victim)
            num_running -= 1
            num_missing -= self._roster.blocks.num_held_once(victim.block_ids, reused) + self._roster.may_grow(victim)
        return chosen

    def begin(self, sequence: Sequence, victims: list[Sequence]) -> None:
        if victims:
            del self._victims[-len(victims) :]
            self._num_growing -= sum(map(self._roster.may_grow, victims))
            self._roster.set_back(victims)
        self._roster.start(sequence)
        self._num_growing += self._roster.may_grow(sequence)


def admit(roster: SequenceRoster, may_begin: Callable[[Sequence], bool]) -> Iterator[Sequence]:
    """Waiting sequences that begin, as they do. may_begin: asked for each when it is its turn; others are passed over."""
    room = _Room(roster)
    overtaken: list[Sequence] = []
    for sequence in sorted(roster.waiting, key=lambda s: room.turns[s.id]):
        if room.is_over(sequence):
            return
        if roster.waits_for_another(sequence) or not may_begin(sequence):
            continue
        victims = room.victims_for(sequence)
        if victims is None:
            overtaken.append(sequence)
            if sequence.overtaken_by >= PATIENCE * room.needs(sequence):
                room.num_kept += room.needs(sequence)
            continue
        if not victims:
            for one in overtaken:
                one.overtaken_by += room.needs(sequence)
        room.begin(sequence, victims)
        yield sequence
