"""What happens to the scheduler. Results of an epoch that is past, or for a sequence that has ended, change nothing."""

from typing import NamedTuple

from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.requests import GenerationRequest, SequenceId
from dairllm.mesh.ring.frames import MicroBatchResult


class RingAvailable(NamedTuple):
    geometry: RingGeometry


class RingDraining(NamedTuple):
    """The plan changes soon: what is in flight comes back, and nothing more is sent."""


class RingUnavailable(NamedTuple):
    """Nothing that is in flight will come back. Sequences wait for the next RingAvailable."""


class GenerationRequested(NamedTuple):
    sequence_id: SequenceId
    request: GenerationRequest


class GenerationCancelled(NamedTuple):
    sequence_id: SequenceId


class BatchCompleted(NamedTuple):
    """took_s: since the frame was sent; None if that says nothing."""

    result: MicroBatchResult
    took_s: float | None = None


SchedulerEvent = RingAvailable | RingDraining | RingUnavailable | GenerationRequested | GenerationCancelled | BatchCompleted
