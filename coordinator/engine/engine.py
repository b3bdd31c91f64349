"""The asyncio shell around the scheduler: requests come in, events go out, frames go around the ring."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from dairllm.coordinator.cluster.answering import REOPENING_LIMIT_S
from dairllm.coordinator.engine.actions import EmitEvent, FailSequence, ReportDrained, ReportRecovered, ReportRecovery, SendBatch
from dairllm.coordinator.engine.context_length import require_room
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
from dairllm.coordinator.engine.flights import DecodeStep, Flights, StageLoad
from dairllm.coordinator.engine.interface import EngineStats
from dairllm.coordinator.engine.requests import (
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    SequenceId,
    TokenGenerated,
)
from dairllm.coordinator.engine.scheduler import Scheduler
from dairllm.mesh.errors import Busy, DairllmError, GenerationFailed, InvalidRequest, NotReady, RequestLost
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 2.0


class _OpenedRing(NamedTuple):
    send: Callable[[MicroBatch], None]
    on_recovered: Callable[[ReportRecovery, float], None]
    on_fault: Callable[[str], None]
    stages: tuple[str, ...]


Item = GenerationEvent | DairllmError


class Engine:
    """Implements `coordinator.engine.interface.TokenEngine`.

    why_unready: None while a plan serves or is about to serve again, else what requests fail with.
    recovery_limit_s: how long answers wait for a new ring before they fail with NotReady; requests that come while no plan can be made wait
    at most REOPENING_LIMIT_S of it.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        vocab_size: int,
        why_unready: Callable[[], DairllmError | None],
        recovery_limit_s: float,
    ) -> None:
        self._scheduler = Scheduler(limits)
        self._vocab_size = vocab_size
        self._why_unready = why_unready
        self._recovery_limit_s = recovery_limit_s
        self._ring: _OpenedRing | None = None
        self._on_drained: Callable[[], None] | None = None
        self._recovery: ReportRecovery | None = None
        # Since when answers stand still, and how long of that no ring was open: one that opens proves nothing until a frame has come back.
        self._stopped_at_s = self._closed_at_s = 0.0
        self._waited_s = 0.0
        self._ids = itertools.count(1)
        self._streams: dict[SequenceId, asyncio.Queue[Item]] = {}
        self._flights = Flights()
        self._num_prompt_tokens = self._num_generated_tokens = 0
        self._deadlines: list[asyncio.TimerHandle] = []
        # Requests that have come since the ring closed while no plan could be made; None when such requests are refused at once.
        self._newcomers: set[SequenceId] | None = None

    @property
    def context_length(self) -> int:
        return self._scheduler.limits.context_length

    def why_unready(self) -> DairllmError | None:
        """None while requests are served, else what they fail with."""
        return self._why_unready()

    def engine_stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            scheduler.num_running,
            scheduler.num_waiting,
            scheduler.kv_blocks_total,
            scheduler.kv_blocks_free,
            self._num_prompt_tokens,
            self._num_generated_tokens,
            scheduler.num_reused_tokens,
            scheduler.num_guessed,
            scheduler.num_guessed_right,
            self._flights.decode_step_s,
        )

    def stage_loads(self) -> dict[str, StageLoad]:
        return self._flights.stages

    def decode_steps(self) -> dict[str | None, DecodeStep]:
        """A decoding step, smoothed: by shard, and of the whole ring under None. Only what was measured in this plan."""
        return self._flights.decode_steps()

    def overdue_s(self) -> float | None:
        """How long the oldest frame has been on its way, if that is longer than any frame of this plan may take; else None."""
        return self._flights.overdue_s(asyncio.get_running_loop().time())

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The events of one sequence; closing the iterator cancels it.

        Raises InvalidRequest, ContextExceeded, Busy, NotReady, RequestLost.
        """
        self._check(request)
        sequence_id = SequenceId(next(self._ids))
        stream: asyncio.Queue[Item] = asyncio.Queue()
        self._streams[sequence_id] = stream
        if self._newcomers is not None and self._why_unready() is not None:
            self._newcomers.add(sequence_id)
        self._num_prompt_tokens += len(request.prompt_ids)
        try:
            self._handle(GenerationRequested(sequence_id, request))
            while True:
                item = await stream.get()
                if isinstance(item, DairllmError):
                    raise item
                yield item
                if isinstance(item, GenerationFinished):
                    return
        finally:
            del self._streams[sequence_id]
            if self._newcomers is not None:
                self._newcomers.discard(sequence_id)
            self._handle(GenerationCancelled(sequence_id))

    def _check(self, request: GenerationRequest) -> None:
        length = len(request.prompt_ids)
        if length == 0:
            raise InvalidRequest("the prompt has no tokens; expected at least one", "prompt")
        self._check_ids(request.prompt_ids, "prompt")
        self._check_ids(request.sampling.logit_bias, "logit_bias")
        require_room(self.context_length, length, 0 if request.max_tokens == 0 else None)
        error = self._why_unready()
        if error is not None and self._newcomers is None:
            raise error
        if self._scheduler.is_full_for(request.asker.client):
            raise Busy(
                f"{self._scheduler.num_waiting} requests are waiting already, which is the limit; try again later",
                retry_after_s=RETRY_AFTER_S,
            )

    def _check_ids(self, token_ids: Iterable[int], param: str) -> None:
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequest(
                    f"{param} has token id {token_id}, which is not in the vocabulary; expected 0 to {self._vocab_size - 1}", param
                )

    @property
    def alive_ring_ids(self) -> tuple[int, ...]:
        """Sequences that the shards must not forget."""
        return self._scheduler.alive_ring_ids

    @property
    def used_block_ids(self) -> tuple[int, ...]:
        """Cache blocks with content that is needed again."""
        return self._scheduler.used_block_ids

    def open_ring(
        self,
        geometry: RingGeometry,
        send: Callable[[MicroBatch], None],
        on_recovered: Callable[[ReportRecovery, float], None],
        on_fault: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """send: puts a batch on the ring. on_recovered: every answer that was running when the ring before closed, so many seconds ago, has
        gone on or ended. on_fault: a result came that cannot be, with what is wrong; it changes nothing."""
        stages = tuple(place.holder.name for place in geometry.placement)
        self._ring = _OpenedRing(send, on_recovered, on_fault, stages)
        self._cancel_deadlines()
        self._newcomers = None
        has_answers = self._scheduler.num_running + self._scheduler.num_waiting > 0
        self._waited_s = self._waited_s + asyncio.get_running_loop().time() - self._closed_at_s if has_answers else 0.0
        self._flights.begin_plan()
        self._handle(RingAvailable(geometry))

    def drain_ring(self, on_drained: Callable[[], None]) -> None:
        """Send nothing more; on_drained is called once nothing is in flight."""
        self._on_drained = on_drained
        self._handle(RingDraining())

    def close_ring(self) -> None:
        """What is in flight is given up. Answers wait for the next ring, for as long as the recovery limit."""
        loop = asyncio.get_running_loop()
        self._closed_at_s = loop.time()
        if self._waited_s == 0:
            self._stopped_at_s = self._closed_at_s
        self._flights.give_up()
        self._handle(RingUnavailable())
        self._cancel_deadlines()
        self._newcomers = set()
        self._deadlines = [
            loop.call_later(min(REOPENING_LIMIT_S, self._recovery_limit_s), self._refuse_newcomers),
            loop.call_later(self._recovery_limit_s - self._waited_s, self._give_up),
        ]

    @property
    def _opened_ring(self) -> _OpenedRing:
        assert self._ring is not None, "frames are sent and answers go on only once a ring was open"
        return self._ring

    def _cancel_deadlines(self) -> None:
        for deadline in self._deadlines:
            deadline.cancel()
        self._deadlines = []

    def _refuse_newcomers(self) -> None:
        """From now on at once, too. If a plan is being prepared, those that wait for it go on waiting."""
        error, newcomers = self._why_unready(), self._newcomers or set()
        self._newcomers = None
        if error is not None:
            for sequence_id in newcomers:
                self._deliver(sequence_id, error)

    def _give_up(self) -> None:
        self._waited_s = 0.0
        error = self._why_unready() or NotReady("the cluster did not serve again in time", retry_after_s=RETRY_AFTER_S)
        self.fail_all(replace(error, message=f"{error.message}; gave up after {self._recovery_limit_s:g} s"))

    def shut_down(self) -> None:
        self._cancel_deadlines()
        self.fail_all(RequestLost("the coordinator is shutting down"))

    def fail_all(self, error: DairllmError) -> None:
        for stream in self._streams.values():
            stream.put_nowait(error)

    def complete(self, result: MicroBatchResult) -> None:
        fault = self._scheduler.fault_in(result, self._vocab_size)
        if fault:
            self._opened_ring.on_fault(fault)
            return
        if tuple(timing.shard for timing in result.timings) != self._opened_ring.stages:
            result = replace(result, timings=())
        took_s = self._flights.come_back(result, asyncio.get_running_loop().time())
        if took_s is not None:
            self._waited_s = 0.0
        self._handle(BatchCompleted(result, took_s))

    def _handle(self, event: SchedulerEvent) -> None:
        """Frames leave first: the shards need not wait while texts are made of what has come back."""
        for action in sorted(self._scheduler.handle(event), key=lambda action: not isinstance(action, SendBatch)):
            match action:
                case SendBatch(batch):
                    self._flights.send(batch, asyncio.get_running_loop().time())
                    self._opened_ring.send(batch)
                case EmitEvent(sequence_id, item):
                    self._num_generated_tokens += isinstance(item, TokenGenerated)
                    self._deliver(sequence_id, item)
                case FailSequence(sequence_id, reason):
                    self._deliver(sequence_id, GenerationFailed(reason))
                case ReportDrained():
                    assert self._on_drained is not None
                    self._on_drained()
                case ReportRecovery():
                    self._recovery = action
                case ReportRecovered():
                    self._report_recovered()

    def _deliver(self, sequence_id: SequenceId, item: Item) -> None:
        stream = self._streams.get(sequence_id)
        if stream is not None:
            stream.put_nowait(item)

    def _report_recovered(self) -> None:
        assert self._recovery is not None
        self._opened_ring.on_recovered(self._recovery, asyncio.get_running_loop().time() - self._stopped_at_s)
        self._recovery = None
