"""What the shell does for the scheduler, in the order of the list."""

from typing import NamedTuple

from dairllm.coordinator.engine.requests import GenerationEvent, SequenceId
from dairllm.mesh.ring.frames import MicroBatch


class SendBatch(NamedTuple):
    batch: MicroBatch


class EmitEvent(NamedTuple):
    sequence_id: SequenceId
    event: GenerationEvent


class FailSequence(NamedTuple):
    sequence_id: SequenceId
    reason: str


class ReportDrained(NamedTuple):
    """Nothing is in flight any more in a ring that closes."""


class ReportRecovery(NamedTuple):
    """A ring was opened under running sequences. Work is counted in rows times units; all_work: every row by all units."""

    num_kept: int
    num_replayed: int
    num_restarted: int
    replayed_work: int
    all_work: int


class ReportRecovered(NamedTuple):
    """Every sequence that a ReportRecovery was about has gone on, or has ended."""


SchedulerAction = SendBatch | EmitEvent | FailSequence | ReportDrained | ReportRecovery | ReportRecovered
