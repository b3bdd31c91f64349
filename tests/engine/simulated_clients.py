"""Clients beside each other at a scheduler, and a ring that takes time: who waits how long, in frames and in seconds.

The seconds of a frame are a fixed part and one per row, as on a CPU: `FRAME_S` and `ROW_S` are those of SmolLM2 on two cores.
"""

import itertools
from collections import deque
from dataclasses import dataclass, field

from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.engine.actions import EmitEvent, SchedulerAction, SendBatch
from dairllm.coordinator.engine.events import BatchCompleted, GenerationRequested, RingAvailable
from dairllm.coordinator.engine.facts import RingGeometry, SchedulerLimits
from dairllm.coordinator.engine.recovery import StagePlace
from dairllm.coordinator.engine.requests import Asker, GenerationFinished, GenerationRequest, SequenceId, TokenGenerated
from dairllm.coordinator.engine.scheduler import Scheduler
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, SequenceResult, TokenScore

FRAME_S = 0.012
ROW_S = 0.003
SCORE = TokenScore(1, 0.0)


@dataclass
class Waited:
    """Of one sequence: frames and seconds from its request to its first token, and to its end; None while they have not come."""

    frame: int
    since_s: float
    first_frames: int | None = None
    first_s: float | None = None
    end_frames: int | None = None


@dataclass
class SimulatedClients:
    """ask() and frame() are the only ways to move on. frame: the oldest frame comes back. rows: of all frames, one after the other.
    alike: every prompt begins as the others do; else none does.
    """

    limits: SchedulerLimits
    num_blocks: int
    block_tokens: int = 32
    num_stages: int = 2
    alike: bool = False
    now_s: float = 0.0
    frames: int = 0
    rows: list[int] = field(default_factory=list)
    waited: dict[SequenceId, Waited] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)
        self._queue: deque[MicroBatch] = deque()
        self._ids = itertools.count(1)
        stages = tuple(StagePlace(Holder(f"shard {index}", "1"), range(index, index + 1)) for index in range(self.num_stages))
        self._apply(self.scheduler.handle(RingAvailable(RingGeometry(1, stages, self.num_blocks, self.block_tokens, "F32"))))

    def ask(self, asker: Asker, prompt: int, answer: int) -> SequenceId:
        number = SequenceId(next(self._ids))
        self.waited[number] = Waited(self.frames, self.now_s)
        prompt_ids = (SCORE.token_id if self.alike else number + 1, *[SCORE.token_id] * (prompt - 1))
        self._apply(self.scheduler.handle(GenerationRequested(number, GenerationRequest(prompt_ids, max_tokens=answer, asker=asker))))
        return number

    @property
    def is_idle(self) -> bool:
        return not self._queue

    def frame(self) -> list[SequenceId]:
        """The sequences that have ended with it."""
        batch = self._queue.popleft()
        self.frames += 1
        self.rows.append(batch.num_rows)
        self.now_s += (FRAME_S + ROW_S * batch.num_rows) / self.num_stages
        results = tuple(SequenceResult(one.sequence_id, (SCORE,) * one.num_samples) for one in batch.slices)
        ended = self._apply(self.scheduler.handle(BatchCompleted(MicroBatchResult(batch.epoch, batch.batch_id, results, ()))))
        self.scheduler.check_invariants()
        return ended

    def _apply(self, actions: list[SchedulerAction]) -> list[SequenceId]:
        ended = []
        for action in actions:
            match action:
                case SendBatch(batch):
                    self._queue.append(batch)
                case EmitEvent(number, TokenGenerated()):
                    self._note_first(self.waited[number])
                case EmitEvent(number, GenerationFinished()):
                    self.waited[number].end_frames = self.frames - self.waited[number].frame
                    ended.append(number)
        return ended

    def _note_first(self, waited: Waited) -> None:
        if waited.first_frames is None:
            waited.first_frames, waited.first_s = self.frames - waited.frame, self.now_s - waited.since_s
