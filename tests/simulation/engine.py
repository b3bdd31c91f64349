"""The coordinator's engine: the real scheduler, and answers that are checked token by token."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dairllm.coordinator.cluster.events import AnswersRecovered
from dairllm.coordinator.engine.actions import EmitEvent, FailSequence, ReportDrained, ReportRecovered, ReportRecovery, SendBatch
from dairllm.coordinator.engine.events import (
    BatchCompleted,
    GenerationCancelled,
    GenerationRequested,
    RingAvailable,
    RingDraining,
    RingUnavailable,
    SchedulerEvent,
)
from dairllm.coordinator.engine.facts import RingGeometry, SchedulerLimits
from dairllm.coordinator.engine.requests import (
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    PromptScored,
    SequenceId,
    TokenGenerated,
)
from dairllm.coordinator.engine.scheduler import Scheduler
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, StageTiming
from tests.engine.prophets import Prophet
from tests.engine.shard_contents import Row, extend_rows, token_of
from tests.simulation.world import World

CONTEXT_LENGTH = 64
LIMITS = SchedulerLimits(CONTEXT_LENGTH, max_batch_rows=12, short_chunk_rows=4, max_running=5)
RECOVERY_LIMIT_S = 8.0
FRAME_LIMIT_S = 10.0
WRONG_GUESSES = 0.3


@dataclass
class Answer:
    """What one client asked for, what it should receive, and what it has received. failure: why it got no more; '' if nothing failed."""

    number: int
    request: GenerationRequest
    received: list[int] = field(default_factory=list)
    num_scores: int = 0
    is_finished: bool = False
    is_cancelled: bool = False
    failure: str = ""

    def __post_init__(self) -> None:
        request = self.request
        room = CONTEXT_LENGTH - len(request.prompt_ids)
        rows: list[Row] = []
        extend_rows(rows, request.prompt_ids)
        self.expected: list[int] = []
        for _ in range(room if request.max_tokens is None else min(room, request.max_tokens)):
            self.expected.append(token_of(rows[-1]))
            if self.expected[-1] in request.end_ids:
                break
            extend_rows(rows, self.expected[-1:])

    @property
    def is_done(self) -> bool:
        return self.is_finished or self.is_cancelled or bool(self.failure)

    def check(self, event: GenerationEvent) -> None:
        assert not self.is_done, f"answer {self.number} goes on after its end"
        match event:
            case PromptScored(scores):
                assert not self.num_scores, f"the prompt of answer {self.number} is scored twice"
                assert [score.token_id for score in scores] == list(self.request.prompt_ids[1:])
                self.num_scores += 1
            case TokenGenerated(token):
                self.received.append(token.token_id)
                correct = self.expected[: len(self.received)]
                assert self.received == correct, f"answer {self.number} got {self.received}, expected {correct}"
            case GenerationFinished(reason):
                assert self.received == self.expected, f"answer {self.number} ended with {self.received}, expected {self.expected}"
                assert self.num_scores == self.request.score_prompt
                assert (reason == "stop") == (self.expected[-1:] != [] and self.expected[-1] in self.request.end_ids)
                self.is_finished = True


class SimulatedEngine:
    """As `coordinator.engine.engine`, in simulated time."""

    def __init__(
        self,
        world: World,
        send: Callable[[MicroBatch], None],
        on_drained: Callable[[], None],
        on_recovered: Callable[[AnswersRecovered], None],
        counts: Counter[str],
    ) -> None:
        self._world, self._send, self._on_drained, self._on_recovered, self._counts = world, send, on_drained, on_recovered, counts
        self._scheduler = Scheduler(LIMITS, Prophet(WRONG_GUESSES))
        self._answers: dict[SequenceId, Answer] = {}
        self._sent_s: dict[int, float] = {}
        self._closed_at_s: float | None = None
        self._recovery: ReportRecovery | None = None

    @property
    def alive_ring_ids(self) -> tuple[int, ...]:
        return self._scheduler.alive_ring_ids

    @property
    def used_block_ids(self) -> tuple[int, ...]:
        return self._scheduler.used_block_ids

    @property
    def is_idle(self) -> bool:
        return not (self._scheduler.num_running or self._scheduler.num_waiting)

    def open_ring(self, geometry: RingGeometry) -> None:
        self._sent_s.clear()
        self._handle(RingAvailable(geometry))
        self._closed_at_s = None

    def drain_ring(self) -> None:
        self._handle(RingDraining())

    def close_ring(self) -> None:
        if self._closed_at_s is None:
            self._closed_at_s = self._world.now_s
        self._sent_s.clear()
        self._handle(RingUnavailable())

    def complete(self, result: MicroBatchResult) -> None:
        fault = self._scheduler.fault_in(result, 2**31)
        self._world.require(not fault, f"the last shard {fault}")
        took_s = self._world.now_s - self._sent_s.pop(result.batch_id, self._world.now_s)
        timing = StageTiming("slowest", 0, round(took_s * 0.4e6), 0, 0, 0)
        num_right = self._scheduler.num_guessed_right
        self._handle(BatchCompleted(replace(result, timings=(timing,)), took_s))
        self._counts["guesses right"] += self._scheduler.num_guessed_right - num_right

    def submit(self, answer: Answer) -> None:
        self._answers[SequenceId(answer.number)] = answer
        self._handle(GenerationRequested(SequenceId(answer.number), answer.request))

    def cancel(self, answer: Answer) -> None:
        if SequenceId(answer.number) in self._answers and not answer.is_done:
            answer.is_cancelled = True
            self._handle(GenerationCancelled(SequenceId(answer.number)))

    def fail_all(self, reason: str) -> None:
        for number, answer in self._answers.items():
            if not answer.is_done:
                answer.failure = reason
                self._handle(GenerationCancelled(number))

    def give_up_if_due(self) -> None:
        """Answers wait so long for a ring, and no longer."""
        if self._closed_at_s is not None and self._world.now_s - self._closed_at_s >= RECOVERY_LIMIT_S:
            self.fail_all(f"no ring for {self._world.now_s - self._closed_at_s:.1f} s")

    def is_overdue(self) -> bool:
        """Whether a frame has been lost without a word."""
        return any(self._world.now_s - sent_s > FRAME_LIMIT_S for sent_s in self._sent_s.values())

    def _handle(self, event: SchedulerEvent) -> None:
        actions = self._scheduler.handle(event)
        self._scheduler.check_invariants()
        for action in actions:
            match action:
                case SendBatch(batch):
                    self._sent_s[batch.batch_id] = self._world.now_s
                    self._counts["rows"] += batch.num_rows
                    self._counts["rows replayed"] += sum(len(slice_.token_ids) for slice_ in batch.slices if slice_.replay)
                    self._send(batch)
                case EmitEvent(sequence_id, emitted):
                    self._answers[sequence_id].check(emitted)
                case FailSequence(sequence_id, reason):
                    raise AssertionError(f"answer {sequence_id} failed alone: {reason}")
                case ReportDrained():
                    self._on_drained()
                case ReportRecovery():
                    self._note_recovery(action)
                case ReportRecovered():
                    self._report_recovered()

    def _note_recovery(self, report: ReportRecovery) -> None:
        self._recovery = report
        self._counts["answers kept"] += report.num_kept
        self._counts["answers replayed"] += report.num_replayed
        self._counts["answers begun again"] += report.num_restarted

    def _report_recovered(self) -> None:
        report = self._recovery
        assert report is not None, "a recovery ended that never began"
        share = report.replayed_work / report.all_work if report.all_work else 0.0
        self._recovery = None
        self._on_recovered(AnswersRecovered(report.num_kept, report.num_replayed, report.num_restarted, share, 0.0))
