"""What must hold in the scheduler between any two events. For tests: it costs time, and raises AssertionError."""

from collections import Counter
from collections.abc import Collection

from dairllm.coordinator.engine.blocks import BlockPool
from dairllm.coordinator.engine.sequences import Sequence


def check_sequences(blocks: BlockPool | None, running: Collection[Sequence], waiting: Collection[Sequence]) -> None:
    """blocks: None before the first ring."""
    for sequence in running:
        _check_running(sequence, blocks)
    for sequence in waiting:
        assert sequence.ring_id is None, f"sequence {sequence.id} waits, and is on the shards"
        assert not sequence.block_ids, f"sequence {sequence.id} waits, and holds blocks"
        assert sequence.num_sent == sequence.num_completed == 0, f"sequence {sequence.id} waits, and has rows on the shards"
    held = Counter(block for sequence in running for block in sequence.block_ids)
    if blocks is None:
        assert not held, "sequences hold blocks before the first ring"
    else:
        blocks.check_invariants(held)
        shared = {block for block, num_holders in held.items() if num_holders > 1}
        for sequence in running:
            own = sequence.block_ids[sequence.num_completed // blocks.block_tokens :]
            assert shared.isdisjoint(own), f"sequence {sequence.id} writes to blocks that others hold"


def _check_running(sequence: Sequence, blocks: BlockPool | None) -> None:
    assert blocks is not None, "a sequence runs before the first ring"
    assert sequence.ring_id is not None, f"sequence {sequence.id} runs, and is not on the shards"
    assert 0 <= sequence.num_completed <= sequence.num_sent <= len(sequence.tokens) + len(sequence.ahead) <= sequence.max_length
    assert not sequence.ahead or sequence.num_sent == len(sequence.tokens) + len(sequence.ahead), f"{sequence.id} lacks rows before guesses"
    assert sequence.num_replayed <= sequence.num_completed, f"sequence {sequence.id} replays rows that it has not"
    assert all(0 <= block < blocks.num_blocks for block in sequence.block_ids), f"sequence {sequence.id} holds a block that is none"
    assert len(sequence.block_ids) >= blocks.blocks_for(sequence.num_sent), f"sequence {sequence.id} has rows without a block"
