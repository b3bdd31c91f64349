"""What the scheduler must know of a ring, and what goes around it."""

from dataclasses import dataclass
from typing import NamedTuple

from dairllm.coordinator.engine.recovery import Placement, Replay
from dairllm.coordinator.engine.requests import TokenScore
from dairllm.mesh.sampling import SamplingParams


class SchedulerLimits(NamedTuple):
    """context_length in tokens; rows are tokens of one frame; chunk_rows_while_decoding bounds prompt rows beside running answers."""

    context_length: int
    max_batch_rows: int = 512
    chunk_rows_while_decoding: int = 128
    max_running: int = 64
    max_waiting: int = 256


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """What the scheduler must know of a plan.

    present: layer units whose owner has the cache of all that was computed when the last ring closed. intact_blocks: only in blocks
    below it, if it is less than num_kv_blocks.
    """

    epoch: int
    placement: Placement
    num_kv_blocks: int
    kv_block_tokens: int
    present: frozenset[int] = frozenset()
    intact_blocks: int | None = None

    @property
    def num_intact_blocks(self) -> int:
        return self.num_kv_blocks if self.intact_blocks is None else min(self.num_kv_blocks, self.intact_blocks)

    @property
    def num_stages(self) -> int:
        return len(self.placement)


class Begin(NamedTuple):
    """block_ids, token_ids: what a sequence has already that goes on in a new epoch."""

    ring_id: int
    prompt_length: int
    sampling: SamplingParams
    block_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


class Slice(NamedTuple):
    ring_id: int
    first_position: int
    token_ids: tuple[int, ...]
    new_block_ids: tuple[int, ...]
    sample: bool
    score_targets: tuple[int, ...]
    replay: Replay | None = None

    @property
    def stop(self) -> int:
        return self.first_position + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    epoch: int
    batch_id: int
    begins: tuple[Begin, ...]
    slices: tuple[Slice, ...]
    ends: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(piece.token_ids) for piece in self.slices)


class SliceResult(NamedTuple):
    """replay_failed: the sent rows that it needed are gone. failure: why this sequence, and no other, cannot go on; '' if it can."""

    ring_id: int
    sampled: TokenScore | None
    scores: tuple[TokenScore, ...]
    replay_failed: bool = False
    failure: str = ""
