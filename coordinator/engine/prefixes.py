"""Which sequences begin with the same tokens, so that their first cache blocks are the same. Pure.

What a block holds depends on all tokens up to its end, and on nothing else: neither on the plan nor on who asks (docs/kernels.md, 'The
same bits everywhere'). So a full block is known by a hash of these tokens, each by the key of the block before it and its own tokens.

Of several sequences that need the same block, one makes it: the others wait until it has come back, and hold it too.
"""

from array import array
from collections.abc import Iterator
from hashlib import blake2b

from dairllm.coordinator.engine.blocks import BlockKey, BlockPool
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.coordinator.prefix_reuse import PrefixReuse

KEY_BYTES = 16


class Prefixes:
    """Of all sequences. Where they share nothing, no block has a key."""

    def __init__(self, reuse: PrefixReuse) -> None:
        self._reuse = reuse
        self._makers: dict[BlockKey, Sequence] = {}

    def keys(self, sequence: Sequence, num_tokens: int, block_tokens: int) -> list[BlockKey]:
        """Of the blocks that its first tokens fill, so many at most."""
        if self._reuse is PrefixReuse.OFF:
            return []
        count = num_tokens // block_tokens
        keys = sequence.block_keys
        while len(keys) < count:
            tokens = array("I", sequence.tokens[len(keys) * block_tokens : (len(keys) + 1) * block_tokens])
            keys.append(blake2b(tokens.tobytes(), digest_size=KEY_BYTES, key=keys[-1] if keys else self._first(sequence)).digest())
        return keys[:count]

    def _first(self, sequence: Sequence) -> BlockKey:
        """Stands for what is before the first token."""
        client = sequence.request.asker.client if self._reuse is PrefixReuse.CLIENT else ""
        return blake2b(client.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()

    # Who makes what

    def maker(self, key: BlockKey) -> Sequence | None:
        return self._makers.get(key)

    def claim(self, sequence: Sequence, pool: BlockPool) -> None:
        """It runs, and will make the blocks of its tokens that nobody knows and nobody else makes."""
        for key in self.keys(sequence, len(sequence.tokens), pool.block_tokens):
            if not pool.knows(key):
                self._makers.setdefault(key, sequence)

    def note_made(self, sequence: Sequence, num_tokens: int, pool: BlockPool) -> None:
        """What it has computed has come back, up to so many tokens."""
        made = num_tokens // pool.block_tokens
        if made > sequence.num_known_blocks:
            keys = self.keys(sequence, num_tokens, pool.block_tokens)
            for index in range(sequence.num_known_blocks, len(keys)):
                pool.make_known(sequence.block_ids[index], keys[index])
                self._give_up(sequence, keys[index])
            sequence.num_known_blocks = made

    def release(self, sequence: Sequence) -> None:
        """It does not run any more."""
        for key in sequence.block_keys:
            self._give_up(sequence, key)

    def forget_all(self) -> None:
        """Nobody makes anything any more."""
        self._makers.clear()

    def _give_up(self, sequence: Sequence, key: BlockKey) -> None:
        if self._makers.get(key) is sequence:
            del self._makers[key]

    def made_by(self) -> Iterator[Sequence]:
        """Sequences that make something. For tests."""
        return iter(self._makers.values())
