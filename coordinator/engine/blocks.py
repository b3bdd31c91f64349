"""Which cache block belongs to which sequences, and what is in those that belong to none. Block ids mean the same on every shard, so the
coordinator alone decides.

A block is free, held by one sequence or by several, or idle. Once it is full it may be known by a key, which says what is in it (see
`prefixes`): then others can hold it too, and when nobody holds it any more it is idle, until its place is needed. The least recently used
go first, and of one sequence the last first, since the key of a block stands for all blocks before it, too.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile

BlockKey = bytes


class BlockPool:
    """Of blocks of `block_tokens` positions. Free ones are reused last in, first out, while they may still be in a CPU cache."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders: Counter[int] = Counter()
        self._block_of: dict[BlockKey, int] = {}
        self._key_of: dict[int, BlockKey] = {}
        self._idle: dict[int, None] = {}  # the least recently used first

    @property
    def num_free(self) -> int:
        """That can be had: free or idle."""
        return len(self._free) + len(self._idle)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    # What is in them

    def find(self, keys: Iterable[BlockKey]) -> list[int]:
        """The blocks known by these keys, up to the first key that none is known by."""
        return [block for block in takewhile(lambda block: block is not None, map(self._block_of.get, keys)) if block is not None]

    def knows(self, key: BlockKey) -> bool:
        return key in self._block_of

    def make_known(self, block_id: int, key: BlockKey) -> None:
        """The block is held, full, and nobody writes to it any more. Nothing happens if another one is known by this key already."""
        if block_id not in self._key_of:
            known = self._block_of.setdefault(key, block_id)
            if known == block_id:
                self._key_of[block_id] = key

    def forget_all(self) -> None:
        """What was in blocks is lost."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._key_of.clear()

    def newest_idle(self, most: int) -> list[int]:
        """So many at most, the most recently used first."""
        return [block for block, _ in zip(reversed(self._idle), range(most), strict=False)]

    def keep_idle(self, most: int) -> None:
        """What was in the idle blocks is lost, but for so many of the most recently used."""
        for block_id in list(self._idle)[: max(0, len(self._idle) - most)]:
            self._evict(block_id)

    # Whose they are

    def allocate(self, count: int) -> list[int] | None:
        """`count` block ids, held by one sequence, or None if fewer can be had."""
        if count > self.num_free:
            return None
        while len(self._free) < count:
            self._evict(next(iter(self._idle)))
        blocks = [self._free.pop() for _ in range(count)]
        self._holders.update(blocks)
        return blocks

    def share(self, block_ids: Iterable[int]) -> None:
        """One sequence more holds these, which are known."""
        for block_id in block_ids:
            assert block_id in self._key_of, f"nobody knows what is in block {block_id}"
            self._idle.pop(block_id, None)
            self._holders[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One sequence does not hold these any more, in the order of its rows."""
        for block_id in reversed(block_ids):
            assert self._holders[block_id] > 0, f"block {block_id} was given back twice"
            self._holders[block_id] -= 1
            if not self._holders[block_id]:
                del self._holders[block_id]
                self._put_back(block_id)

    def is_held(self, block_id: int) -> bool:
        return block_id in self._holders

    def num_held_once(self, block_ids: Iterable[int], but: frozenset[int] = frozenset()) -> int:
        """How many of these, but for some, can be had once one sequence less holds them."""
        return sum(self._holders[block_id] == 1 for block_id in block_ids if block_id not in but)

    def resize(self, num_blocks: int, num_intact: int) -> None:
        """Change the number of blocks. Nobody holds one beyond it. What is in idle ones from num_intact on is lost."""
        for block_id in [block_id for block_id in self._idle if block_id >= min(num_blocks, num_intact)]:
            self._evict(block_id)
        self._free = [block_id for block_id in self._free if block_id < num_blocks]
        self._free[:0] = range(num_blocks - 1, self.num_blocks - 1, -1)
        self.num_blocks = num_blocks

    def check_invariants(self, held: Counter[int]) -> None:
        """held: by how many sequences each block is held. For tests: raises AssertionError."""
        assert self._holders == held, "blocks are counted to other sequences than hold them"
        everywhere = [*self._free, *self._idle, *self._holders]
        assert sorted(everywhere) == list(range(self.num_blocks)), "blocks are lost, or in two places"
        assert self._idle.keys() <= self._key_of.keys(), "a block is idle, and nobody knows what is in it"
        assert self._block_of == {key: block_id for block_id, key in self._key_of.items()}

    def _evict(self, block_id: int) -> None:
        del self._idle[block_id]
        self._forget(block_id)
        self._free.append(block_id)

    def _forget(self, block_id: int) -> None:
        del self._block_of[self._key_of.pop(block_id)]

    def _put_back(self, block_id: int) -> None:
        if block_id in self._key_of:
            self._idle[block_id] = None
        else:
            self._free.append(block_id)
