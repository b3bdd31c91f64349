"""What the scheduler must know of a ring."""

from dataclasses import dataclass
from typing import NamedTuple

from dairllm.coordinator.engine.recovery import Placement
from dairllm.coordinator.prefix_reuse import PrefixReuse


class SchedulerLimits(NamedTuple):
    """context_length in tokens; rows are tokens of one frame; short_chunk_rows bounds prompt rows beside running answers, and is the
    least that a prompt is cut into for the sake of a ring with several stages. tokens_per_place: for each so many tokens of the cache one
    sequence may run, if that is limited beside its blocks. prefix_reuse: whose sequences share blocks. guesses: whether tokens are guessed
    before they are known."""

    context_length: int
    max_batch_rows: int = 512
    short_chunk_rows: int = 128
    max_running: int = 64
    max_waiting: int = 256
    tokens_per_place: int | None = None
    prefix_reuse: PrefixReuse = PrefixReuse.EVERYONE
    guesses: bool = True


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """What the scheduler must know of a plan.

    encoding: of activations, for the frames. present: layer units whose owner has the cache of all that was computed when the last ring
    closed. intact_blocks: only in blocks below it, if it is less than num_kv_blocks. has_moved: some layers have changed hands since then,
    with what the scheduler said is used of their cache. streams: weights are read anew for every frame, which takes longer than anything
    else.
    """

    epoch: int
    placement: Placement
    num_kv_blocks: int
    kv_block_tokens: int
    encoding: str
    present: frozenset[int] = frozenset()
    intact_blocks: int | None = None
    has_moved: bool = False
    streams: bool = False

    @property
    def num_intact_blocks(self) -> int:
        return self.num_kv_blocks if self.intact_blocks is None else min(self.num_kv_blocks, self.intact_blocks)

    @property
    def num_tokens(self) -> int:
        """For which the cache has room."""
        return self.num_kv_blocks * self.kv_block_tokens

    @property
    def frames_at_once(self) -> int:
        """On their way around the ring, so that all stages have work. Where a frame costs a reading of weights, all rows share one."""
        return 1 if self.streams else len(self.placement)
