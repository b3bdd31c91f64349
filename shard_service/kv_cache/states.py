"""The states of one layer with linear attention: the memory of the kernels, and the book of what lies where."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from dairllm.kernels_pyx import StateMemory
from dairllm.model_files.memory import STATES_PER_PLACE
from dairllm.shard_service.kv_cache.state_book import BlockTable, SlotPair, StateBook, StateKey


class StatePiece(NamedTuple):
    """Bytes of one state, from `offset` on."""

    key: StateKey
    offset: int
    data: bytes


class LayerStates:
    """num_places: sequences that may run at once. state_numbers: of one state, in float32. Raises MemoryError."""

    def __init__(self, num_places: int, state_numbers: int, block_tokens: int) -> None:
        self.memory = StateMemory(STATES_PER_PLACE * num_places, state_numbers)
        self.block_tokens = block_tokens
        self._book = StateBook(STATES_PER_PLACE * num_places, block_tokens)

    @property
    def size_bytes(self) -> int:
        return self.memory.size_bytes

    @property
    def state_bytes(self) -> int:
        return self.memory.state_bytes

    @property
    def num_places(self) -> int:
        return self.memory.num_slots // STATES_PER_PLACE

    def resize(self, num_places: int) -> None:
        """States that find no room are dropped. No run may use them meanwhile. Raises MemoryError; then nothing is lost."""
        num_slots = STATES_PER_PLACE * num_places
        if num_slots > self.memory.num_slots:
            self.memory.resize(num_slots)
            self._book.resize(num_slots)
            return
        for source, target in self._book.resize(num_slots):
            self.memory.write(target, 0, self.memory.read(source, 0, self.state_bytes))
        self.memory.resize(num_slots)

    # Runs

    def has(self, block_table: BlockTable, position: int) -> bool:
        return self._book.has(block_table, position)

    def begin(self, block_table: BlockTable, first_position: int, end_position: int) -> SlotPair:
        return self._book.begin(block_table, first_position, end_position)

    def finish(self, block_table: BlockTable, first_position: int, end_position: int, slots: SlotPair) -> None:
        self._book.finish(block_table, first_position, end_position, slots)

    def abandon(self, slots: SlotPair) -> None:
        self._book.abandon(slots)

    def drop_blocks(self, block_ids: Collection[int]) -> None:
        self._book.drop_blocks(block_ids)

    def keep_blocks(self, block_ids: Collection[int]) -> None:
        self._book.keep_blocks(block_ids)

    # Handing over

    def read(self, block_ids: Collection[int], most_bytes: int) -> Iterator[StatePiece]:
        """What others need to go on from these blocks, in pieces of at most so many bytes. Ends early if states go meanwhile."""
        for key, slot in list(self._book.find(block_ids)):
            for offset in range(0, self.state_bytes, most_bytes):
                if self._book.slot_of(key) != slot:
                    return
                yield StatePiece(key, offset, self.memory.read(slot, offset, min(most_bytes, self.state_bytes - offset)))

    def write(self, key: StateKey, state: bytes | bytearray) -> None:
        """One that `read` gave elsewhere, its pieces together. LookupError if there is no slot to be had."""
        self.memory.write(self._book.add(key), 0, state)
