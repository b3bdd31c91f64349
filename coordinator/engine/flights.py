"""Frames on their way around the ring, and what is learned of its stages when they come back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, StageTiming

FRAME_PATIENCE = 50.0
LEAST_FRAME_LIMIT_S = 20.0
FIRST_FRAME_LIMIT_S = 300.0
"""While nothing is known of a plan's speed. Lost and frozen shards are noticed by their leases, long before."""

SMOOTHING = 0.2
"""Weight of the newest measurement in a moving average."""


@dataclass(slots=True)
class StageLoad:
    """What a stage has done since the plan began. decode_step_s, decode_rows: smoothed compute time and rows of frames that only decode."""

    frames: int = 0
    rows: int = 0
    compute_s: float = 0.0
    codec_s: float = 0.0
    queue_s: float = 0.0
    received_bytes: int = 0
    decode_step_s: float = 0.0
    decode_rows: float = 0.0

    def add(self, timing: StageTiming, only_decodes: bool) -> None:
        self.frames += 1
        self.rows += timing.num_rows
        self.compute_s += timing.compute_us * 1e-6
        self.codec_s += timing.codec_us * 1e-6
        self.queue_s += timing.queue_us * 1e-6
        self.received_bytes += timing.received_bytes
        if only_decodes:
            self.decode_step_s = _smooth(self.decode_step_s, timing.compute_us * 1e-6)
            self.decode_rows = _smooth(self.decode_rows, timing.num_rows)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


class DecodeStep(NamedTuple):
    """How long a step took, and how many rows it had."""

    step_s: float
    rows: float


class _Flight(NamedTuple):
    sent_s: float
    only_decodes: bool
    num_rows: int


class Flights:
    """Of one plan after the other.

    decode_step_s, decode_rows: smoothed time once around the ring and rows of frames that only decode; 0 if none was seen.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[int, int], _Flight] = {}
        self._slowest_s = 0.0
        self.decode_step_s = self.decode_rows = 0.0
        self.stages: dict[str, StageLoad] = {}

    def begin_plan(self) -> None:
        """Nothing of what was measured holds for it."""
        self.give_up()
        self.stages = {}
        self.decode_step_s = self.decode_rows = self._slowest_s = 0.0

    def give_up(self) -> None:
        """What is on its way does not come back."""
        self._under_way.clear()

    def send(self, batch: MicroBatch, now_s: float) -> None:
        only_decodes = bool(batch.slices) and all(len(slice_.token_ids) == 1 for slice_ in batch.slices)
        self._under_way[batch.epoch, batch.batch_id] = _Flight(now_s, only_decodes, len(batch.slices))

    def come_back(self, result: MicroBatchResult, now_s: float) -> float | None:
        """Seconds since it was sent; None if nothing waits for it any more."""
        flight = self._under_way.pop((result.epoch, result.batch_id), None)
        if flight is None:
            return None
        took_s = now_s - flight.sent_s
        self._slowest_s = max(self._slowest_s, took_s)
        only_decodes = flight.only_decodes and is_alive(result, flight.num_rows)
        if only_decodes:
            self.decode_step_s = _smooth(self.decode_step_s, took_s)
            self.decode_rows = _smooth(self.decode_rows, flight.num_rows)
        self._add(result.timings, only_decodes)
        return took_s

    def _add(self, timings: Sequence[StageTiming], only_decodes: bool) -> None:
        for timing in timings:
            self.stages.setdefault(timing.shard, StageLoad()).add(timing, only_decodes)

    def decode_steps(self) -> dict[str | None, DecodeStep]:
        """A decoding step, smoothed: by shard, and of the whole ring under None. Only what was measured in this plan."""
        steps: dict[str | None, DecodeStep] = {name: DecodeStep(load.decode_step_s, load.decode_rows) for name, load in self.stages.items()}
        steps[None] = DecodeStep(self.decode_step_s, self.decode_rows)
        return {name: step for name, step in steps.items() if step.step_s > 0}

    def overdue_s(self, now_s: float) -> float | None:
        """How long the oldest frame has been on its way, if that is longer than any frame of this plan may take; else None.

        A frame may take FRAME_PATIENCE times as long as the slowest that has come back, whatever number of rows it had.
        """
        oldest_s = max((now_s - flight.sent_s for flight in self._under_way.values()), default=0.0)
        limit_s = max(LEAST_FRAME_LIMIT_S, FRAME_PATIENCE * self._slowest_s) if self._slowest_s else FIRST_FRAME_LIMIT_S
        return oldest_s if oldest_s > limit_s else None


def is_alive(result: MicroBatchResult, num_slices: int) -> bool:
    """Whether a frame of so many slices which only decode was computed by every stage: none of them rested on a wrong guess."""
    return sum(bool(one.sampled) for one in result.results) == num_slices


def _smooth(average: float, value: float) -> float:
    return value if average == 0 else average + SMOOTHING * (value - average)
