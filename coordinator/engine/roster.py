"""Which sequences wait and which run, and what the shards hold of each that runs: a ring id, and blocks of the KV cache."""

from collections.abc import Iterable
from itertools import takewhile

from dairllm.coordinator.engine.blocks import BlockKey, BlockPool
from dairllm.coordinator.engine.invariants import check_sequences
from dairllm.coordinator.engine.prefixes import Prefixes
from dairllm.coordinator.engine.requests import SequenceId
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.coordinator.engine.turns import Turn, take_turns
from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.mesh.ring.frames import RingId

MOST_IDLE_TOKENS_MOVED = 4096
"""When layers change hands, so many tokens of the cache that no sequence holds move with them: what sequences hold must not be late."""


class SequenceRoster:
    """`waiting` and `running` are for reading: sequences move between them by `start`, `set_back` and `drop` alone.

    max_running: places on the shards. num_reused_tokens: that did not have to be computed, since the beginning.
    """

    def __init__(self, max_running: int, reuse: PrefixReuse) -> None:
        self.max_running = max_running
        self.num_reused_tokens = 0
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._blocks: BlockPool | None = None
        self._prefixes = Prefixes(reuse)
        self._sequences: dict[SequenceId, Sequence] = {}
        self._on_shards: dict[RingId, Sequence] = {}
        self._pending_ends: list[RingId] = []
        self._next_ring_id = 1

    @property
    def blocks(self) -> BlockPool:
        assert self._blocks is not None, "sequences hold blocks only once a ring was open"
        return self._blocks

    @property
    def kv_blocks_total(self) -> int:
        return self._blocks.num_blocks if self._blocks else 0

    @property
    def kv_blocks_free(self) -> int:
        return self._blocks.num_free if self._blocks else 0

    @property
    def alive_ring_ids(self) -> tuple[RingId, ...]:
        return tuple(self._on_shards)

    @property
    def used_block_ids(self) -> tuple[int, ...]:
        held = {block for sequence in self._on_shards.values() for block in sequence.block_ids}
        return tuple(sorted(held.union(self._blocks.newest_idle(self._most_idle_moved) if self._blocks else ())))

    @property
    def _most_idle_moved(self) -> int:
        return MOST_IDLE_TOKENS_MOVED // self.blocks.block_tokens

    @property
    def has_pending_ends(self) -> bool:
        return bool(self._pending_ends)

    def find(self, sequence_id: SequenceId) -> Sequence | None:
        return self._sequences.get(sequence_id)

    def find_on_shards(self, ring_id: RingId) -> Sequence | None:
        return self._on_shards.get(ring_id)

    def check_invariants(self) -> None:
        check_sequences(self._blocks, self.running, self.waiting)
        assert set(self._on_shards) == {sequence.ring_id for sequence in self.running}

    # Coming and going

    def add(self, sequence: Sequence) -> None:
        self._sequences[sequence.id] = sequence
        self.waiting.append(sequence)

    def start(self, sequence: Sequence) -> None:
        """It runs, with blocks for all its tokens, which must be there: others that grow do not take them from under a long prompt."""
        self.waiting.remove(sequence)
        reused = self.reusable(sequence)
        self.blocks.share(reused)
        new = self.blocks.allocate(self.blocks.blocks_for(len(sequence.tokens)) - len(reused))
        assert new is not None, f"sequence {sequence.id} begins without room in the cache"
        ring_id = RingId(self._next_ring_id)
        self._next_ring_id += 1
        sequence.begin(ring_id, reused, new, self.blocks.block_tokens)
        self.num_reused_tokens += sequence.num_completed
        self._on_shards[ring_id] = sequence
        self.running.append(sequence)
        self._prefixes.claim(sequence, self.blocks)

    def set_back(self, sequences: Iterable[Sequence]) -> None:
        """Running ones: they wait again, and their turn is what it was."""
        for sequence in sequences:
            self.running.remove(sequence)
            self._release(sequence)
            self.waiting.append(sequence)

    def drop(self, sequence_id: SequenceId) -> None:
        """Nothing happens if there is none."""
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Give its blocks back. Shards process frames in order, so blocks may be reused by any later frame."""
        if sequence.ring_id is not None:
            self._prefixes.release(sequence)
            self.blocks.release(sequence.block_ids)
            del self._on_shards[sequence.ring_id]
            self._pending_ends.append(sequence.ring_id)
        sequence.restart()

    def take_ends(self) -> tuple[RingId, ...]:
        """Ring ids that the shards can forget and have not been told of."""
        ends = tuple(self._pending_ends)
        self._pending_ends.clear()
        return ends

    # Turns

    def turns(self) -> dict[SequenceId, Turn]:
        return take_turns(self._sequences.values(), self.share_of)

    def share_of(self, sequence: Sequence) -> int:
        """How much it asks for of what is scarcer to it, cache blocks or places on the shards, in parts that suit both."""
        return max(self.blocks.blocks_for(len(sequence.tokens)) * self.max_running, self.blocks.num_blocks)

    def may_grow(self, sequence: Sequence) -> bool:
        """Whether it may need more blocks than it has."""
        return self.blocks.blocks_for(sequence.max_length) > len(sequence.block_ids)

    # What sequences have in common

    def reusable(self, sequence: Sequence) -> list[int]:
        """Blocks with which it can begin. At least its last row is computed, for the token after it; all are, if they are scored."""
        return self.blocks.find(self._first_keys(sequence))

    def waits_for_another(self, sequence: Sequence) -> bool:
        """Whether a running one makes the first block that it would have to compute."""
        missing = next((key for key in self._first_keys(sequence) if not self.blocks.knows(key)), None)
        return missing is not None and self._prefixes.maker(missing) is not None

    def _first_keys(self, sequence: Sequence) -> list[BlockKey]:
        return [] if sequence.wants_scores else self._prefixes.keys(sequence, len(sequence.tokens) - 1, self.blocks.block_tokens)

    def note_computed(self, sequence: Sequence, num_tokens: int) -> None:
        """Its first rows, so many, have come back: each layer has their keys and values."""
        self._prefixes.note_made(sequence, num_tokens, self.blocks)

    def follow_replays(self) -> None:
        """Of those that have to replay what they have in common, the first does, and the others go on behind it."""
        for sequence in self.running:
            if sequence.replay is not None and sequence.begins:
                self._follow_replay(sequence)

    def _follow_replay(self, sequence: Sequence) -> None:
        keys = self._prefixes.keys(sequence, sequence.num_completed, self.blocks.block_tokens)
        made = takewhile(lambda pair: pair[0] == pair[1], zip(self.blocks.find(keys), sequence.block_ids, strict=False))
        num_made = sum(1 for _ in made)
        sequence.replay_from(num_made * self.blocks.block_tokens)
        sequence.follows = num_made < len(keys) and self._is_made_by_another(keys[num_made], sequence, num_made)
        if not sequence.follows:
            self._prefixes.claim(sequence, self.blocks)

    def _is_made_by_another(self, key: BlockKey, sequence: Sequence, index: int) -> bool:
        """In the block that it holds, too. One that shares none with it may not have got so far."""
        maker = self._prefixes.maker(key)
        return maker is not None and maker is not sequence and maker.block_ids[index : index + 1] == [sequence.block_ids[index]]

    # Blocks

    def resize(self, num_blocks: int, num_intact: int, block_tokens: int) -> None:
        """Of the first ring, or of the next one: blocks beyond it are with no sequence any more, and what is in those from num_intact on
        is lost."""
        if self._blocks is None:
            self._blocks = BlockPool(num_blocks, block_tokens)
        self._blocks.resize(num_blocks, num_intact)

    def forget_blocks(self) -> None:
        """Some layers have lost all that was computed, and what running sequences need of it is replayed."""
        self.blocks.forget_all()
        self._prefixes.forget_all()
        for sequence in self.running:
            sequence.num_known_blocks = 0
            self._prefixes.claim(sequence, self.blocks)

    def forget_unmoved_blocks(self) -> None:
        """Some layers have changed hands, with what `used_block_ids` said."""
        self.blocks.keep_idle(self._most_idle_moved)

    def reserve(self, sequence: Sequence, rows: int) -> bool:
        """Make room in the cache for its next rows, if need be by setting back those whose turn comes last, or itself."""
        while True:
            needed = self.blocks.blocks_for(sequence.num_sent + rows) - len(sequence.block_ids)
            new = self.blocks.allocate(needed)
            if new is not None:
                sequence.block_ids.extend(new)
                return True
            turns = self.turns()
            victim = max(self.running, key=lambda s: turns[s.id])
            self.set_back([victim])
            if victim is sequence:
                return False

    def reserve_for_guesses(self, sequence: Sequence, rows: int, guesses: int) -> int:
        """Make room for so many guesses behind its next rows, as far as nobody has to give any for them; for how many there is."""
        before = sequence.num_sent + rows
        room = (len(sequence.block_ids) + self.blocks.num_free) * self.blocks.block_tokens - before
        guesses = min(guesses, room)
        needed = self.blocks.blocks_for(before + guesses) - len(sequence.block_ids)
        if guesses and needed > 0:
            sequence.block_ids.extend(self.blocks.allocate(needed) or ())
        return guesses

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks of rows that were on their way when the ring broke."""
        keep = self.blocks.blocks_for(sequence.num_completed)
        self.blocks.release(sequence.block_ids[keep:])
        del sequence.block_ids[keep:]
