"""Which sequences wait and which run, and what the shards hold of each that runs: a ring id, and blocks of the KV cache."""

from collections.abc import Iterable

from dairllm.coordinator.engine.blocks import BlockAllocator
from dairllm.coordinator.engine.invariants import check_sequences
from dairllm.coordinator.engine.requests import SequenceId
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.coordinator.engine.turns import Turn, take_turns
from dairllm.mesh.ring.frames import RingId


class SequenceRoster:
    """`waiting` and `running` are for reading: sequences move between them by `start`, `set_back` and `drop` alone.

    max_running: places on the shards.
    """

    def __init__(self, max_running: int) -> None:
        self.max_running = max_running
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._blocks: BlockAllocator | None = None
        self._sequences: dict[SequenceId, Sequence] = {}
        self._on_shards: dict[RingId, Sequence] = {}
        self._pending_ends: list[RingId] = []
        self._next_ring_id = 1

    @property
    def blocks(self) -> BlockAllocator:
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
        return tuple(sorted(block for sequence in self._on_shards.values() for block in sequence.block_ids))

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
        """It runs, with blocks for all its tokens, which must be free: others that grow do not take them from under a long prompt."""
        self.waiting.remove(sequence)
        sequence.ring_id = RingId(self._next_ring_id)
        self._next_ring_id += 1
        sequence.begins = True
        self._on_shards[sequence.ring_id] = sequence
        self.running.append(sequence)
        blocks = self.blocks.allocate(self.blocks.blocks_for(len(sequence.tokens)))
        assert blocks is not None, f"sequence {sequence.id} begins without room in the cache"
        sequence.block_ids.extend(blocks)

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
            self.blocks.free(sequence.block_ids)
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

    # Blocks

    def resize(self, num_blocks: int, block_tokens: int) -> None:
        """Of the first ring, or of the next one: blocks beyond it are with no sequence any more."""
        if self._blocks is None:
            self._blocks = BlockAllocator(num_blocks, block_tokens)
        self._blocks.resize(num_blocks)

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

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks of rows that were on their way when the ring broke."""
        keep = self.blocks.blocks_for(sequence.num_completed)
        self.blocks.free(sequence.block_ids[keep:])
        del sequence.block_ids[keep:]
