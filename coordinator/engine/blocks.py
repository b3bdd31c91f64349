"""Which cache block belongs to which sequence. Block ids mean the same on every shard, so the coordinator alone decides."""

from collections.abc import Iterable


class BlockAllocator:
    """Hands out blocks of `block_tokens` positions. Freed blocks are reused last in, first out, while they may still be in a CPU cache."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` block ids, or None if fewer are free."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def resize(self, num_blocks: int) -> None:
        """Change the number of blocks. Blocks beyond it must be given back before, or never be freed again."""
        self._free = [block for block in self._free if block < num_blocks]
        self._free[:0] = range(num_blocks - 1, self.num_blocks - 1, -1)
        self.num_blocks = num_blocks

    def free(self, block_ids: Iterable[int]) -> None:
        self._free.extend(block_ids)
        assert len(self._free) <= self.num_blocks, "a block was freed twice"
