"""What travels along the ring, as facts: micro-batches from the coordinator through all shards, and their results back to it."""

from dataclasses import dataclass, replace
from typing import NamedTuple, NewType

from dairllm.mesh.sampling import SamplingParams

RingId = NewType("RingId", int)
"""One life of a sequence on the shards: when it has to begin anew, it does so under another."""


class StageTiming(NamedTuple):
    """What one shard spent on one frame, in whole microseconds; `codec_us` is decoding the frame and encoding the output."""

    shard: str
    queue_us: int
    compute_us: int
    received_bytes: int
    num_rows: int
    codec_us: int


class TokenLogprob(NamedTuple):
    token_id: int
    logprob: float


class TokenScore(NamedTuple):
    """A token, its log-probability (NaN where it was not asked for) and the most probable tokens at its place, best first."""

    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceBegin:
    """block_ids, token_ids: of a sequence that goes on after a change of plan, its cache blocks and its tokens before the next slice."""

    sequence_id: RingId
    prompt_length: int
    sampling: SamplingParams
    block_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


class Replay(NamedTuple):
    """What is computed again: rows enter at boundary first_unit, from what shard replay_at has sent there before ('': from token ids), and
    units [first_unit, end_unit) compute them. has_failed: what the slice would go on from is not there any more, so nobody computes it.
    """

    first_unit: int
    end_unit: int
    replay_at: str
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """Consecutive rows of one sequence, one per token. activations: its rows in the frame's encoding; empty where none travel.

    new_block_ids: appended to its cache blocks. num_samples: after so many of its last rows a token is sampled; those behind the first of
    these are guesses of what is sampled before them. score_targets: one token id per row whose log-probability after that row is wanted, or
    none. replay: None for a slice that all units compute. failure: why its rows are no numbers, so that nobody computes it; empty if they
    are.
    """

    sequence_id: RingId
    first_position: int
    token_ids: tuple[int, ...]
    new_block_ids: tuple[int, ...]
    num_samples: int
    score_targets: tuple[int, ...] = ()
    replay: Replay | None = None
    activations: bytes = b""
    failure: str = ""

    @property
    def num_rows(self) -> int:
        return len(self.token_ids)

    @property
    def end_position(self) -> int:
        return self.first_position + self.num_rows

    @property
    def has_failed(self) -> bool:
        """It cannot be computed with what the shards hold: its sequence has to begin anew."""
        return self.replay is not None and self.replay.has_failed

    def with_activations(self, activations: bytes) -> "SequenceSlice":
        return replace(self, activations=activations)

    def without_activations(self) -> "SequenceSlice":
        return replace(self, activations=b"") if self.activations else self

    def with_failure(self, failure: str) -> "SequenceSlice":
        return replace(self, activations=b"", failure=failure)

    def with_lost_past(self) -> "SequenceSlice":
        """As one whose rows, or the state that they go on from, are not there."""
        return replace(self, activations=b"", replay=(self.replay or Replay(0, 0, ""))._replace(has_failed=True))


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """encoding: of all activations in it."""

    epoch: int
    batch_id: int
    encoding: str
    begins: tuple[SequenceBegin, ...]
    slices: tuple[SequenceSlice, ...]
    ends: tuple[RingId, ...]
    timings: tuple[StageTiming, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(slice_.num_rows for slice_ in self.slices)

    @property
    def received_bytes(self) -> int:
        return sum(len(slice_.activations) for slice_ in self.slices)


class SequenceResult(NamedTuple):
    """sampled: in the order of positions, as long as guesses were right; nothing if the slice began with a wrong one. scores: one per
    score target. replay_failed: as SequenceSlice.has_failed.

    failure: why this sequence, and no other, cannot go on, for people; empty if it can.
    """

    sequence_id: RingId
    sampled: tuple[TokenScore, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    replay_failed: bool = False
    failure: str = ""


@dataclass(frozen=True, slots=True)
class MicroBatchResult:
    epoch: int
    batch_id: int
    results: tuple[SequenceResult, ...]
    timings: tuple[StageTiming, ...]
