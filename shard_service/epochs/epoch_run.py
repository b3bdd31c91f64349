"""One epoch of a shard that has loaded its part: frames come in, are computed in order, and go out."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from dairllm.mesh.errors import DairllmError, FrameRejected, MalformedFrame, WrongEpoch
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.mesh.ring.codec import micro_batch_from_proto
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult
from dairllm.mesh.ring.outgoing import EdgeLost, OutgoingEdge
from dairllm.mesh.telemetry import fields
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.epochs.counters import Counters
from dairllm.shard_service.forward.compute_stage import ComputeStage
from dairllm.shard_service.ring.incoming import IncomingEdge, QueuedFrame
from dairllm.v1 import ring_pb2

log = logging.getLogger(__name__)

ReportEdgeLost = Callable[[AssignmentFacts, EdgeLost], None]
ReportFault = Callable[[AssignmentFacts, str, DairllmError], None]


class EpochRun:
    """Lives from `start` to `stop`. When the edge to the next member breaks, it reports that once and computes no more."""

    def __init__(
        self,
        assignment: AssignmentFacts,
        stage: ComputeStage,
        outgoing: OutgoingEdge,
        compute_thread: Executor,
        counters: Counters,
        report_edge_lost: ReportEdgeLost,
        report_fault: ReportFault,
    ) -> None:
        self.assignment = assignment
        self.incoming = IncomingEdge(on_fault=self._accuse)
        self._stage: ComputeStage | None = stage
        self._outgoing = outgoing
        self._compute_thread = compute_thread
        self._counters = counters
        self._report_edge_lost = report_edge_lost
        self._report_fault = report_fault
        self._has_accused = False
        self._task: asyncio.Task[None] | None = None
        self._computed = 0

    @property
    def frames(self) -> tuple[int, int, int]:
        """Received, computed, and sent on."""
        return self.incoming.received, self._computed, self._outgoing.sent

    @property
    def read_us(self) -> int:
        """Grows while weights come for the frame that is being computed: a microsecond for each KiB."""
        return 0 if self._stage is None else self._stage.read_bytes >> 10

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"epoch-{self.assignment.epoch}")

    def stop(self, reason: DairllmError) -> None:
        """No frame is taken or sent from now on; the one that is being computed still is. reason: what the predecessor is told."""
        self.incoming.close(reason)
        if self._task is not None:
            self._task.cancel()

    @property
    def has_ended(self) -> bool:
        return self._task is None or self._task.done()

    async def ended(self) -> None:
        if self._task is not None:
            await asyncio.wait({self._task})

    def forget_stage(self) -> None:
        """Weights and scratch go back, now that nothing computes any more: what is left of cancelled tasks may keep this object."""
        self._stage = None

    async def _run(self) -> None:
        edge = asyncio.create_task(self._outgoing.run())
        computing = asyncio.create_task(self._compute_frames())
        try:
            await asyncio.wait({edge, computing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (edge, computing):
                task.cancel()
            outcomes = await asyncio.gather(edge, computing, return_exceptions=True)
        for outcome in outcomes:
            self._report(outcome)

    def _report(self, outcome: BaseException | None) -> None:
        if isinstance(outcome, EdgeLost):
            log.warning("the edge is lost", extra=fields(peer=self.assignment.next.name, epoch=self.assignment.epoch, reason=outcome))
            self._report_edge_lost(self.assignment, outcome)
        elif isinstance(outcome, Exception):
            log.error("the epoch ended by a fault of this program", exc_info=outcome)
            self._report_edge_lost(self.assignment, EdgeLost(f"the shard failed: {type(outcome).__name__}"))

    async def _compute_frames(self) -> None:
        while True:
            queued = await self.incoming.take()
            try:
                output = await self._compute(queued)
            except DairllmError as error:
                self._refuse(queued, error)
                if isinstance(error, MalformedFrame):
                    self.incoming.accuse(queued.stream, error)
                continue
            self._counters.sent_bytes += await self._outgoing.send(output)

    async def _compute(self, queued: QueuedFrame) -> MicroBatch | MicroBatchResult:
        message, loop = queued.message, asyncio.get_running_loop()
        self._counters.received_bytes += message.ByteSize()
        if message.epoch != self.assignment.epoch:
            raise WrongEpoch(f"the frame is of epoch {message.epoch}; this shard is at {self.assignment.epoch}")
        frame = micro_batch_from_proto(message)
        queue_us = round((loop.time() - queued.arrived_s) * 1e6)
        assert self._stage is not None, "who computes has not ended"
        output = await loop.run_in_executor(self._compute_thread, self._stage.compute, frame, queue_us)
        self._computed += 1
        self._counters.frames += 1
        self._counters.rows += frame.num_rows
        self._counters.compute_us += output.timings[-1].compute_us
        return output

    def _accuse(self, sender: str, error: DairllmError) -> None:
        """The coordinator is told once of the member before. It knows itself what it sends."""
        if sender != COORDINATOR_NAME and not self._has_accused:
            self._has_accused = True
            log.warning("the member before sent what cannot be", extra=fields(peer=sender, epoch=self.assignment.epoch, reason=error))
            self._report_fault(self.assignment, sender, error)

    def _refuse(self, queued: QueuedFrame, error: DairllmError) -> None:
        message = queued.message
        log.warning("a frame was refused", extra=fields(batch=message.batch_id, epoch=message.epoch, reason=error))
        queued.stream.refuse(
            ring_pb2.FrameRefused(epoch=message.epoch, batch_id=message.batch_id, status=_status_of(error), message=str(error))
        )


def _status_of(error: DairllmError) -> ring_pb2.FrameStatus:
    if isinstance(error, WrongEpoch):
        return ring_pb2.FRAME_STATUS_WRONG_EPOCH
    return ring_pb2.FRAME_STATUS_MALFORMED if isinstance(error, FrameRejected) else ring_pb2.FRAME_STATUS_FAILED
