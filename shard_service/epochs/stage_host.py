"""What the shard holds and computes: it prepares the coordinator's assignments, and switches to one when it is told to.

    assign ──► preparing, beside the active epoch ──► prepared ──activate──► active, until the next activation or a release

A newer assignment takes the place of one that was not activated. Sequences, their KV cache in layers that stay, and sent rows outlive the
switch.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dairllm.kernels_pyx import encoded_row_bytes
from dairllm.mesh.allocator import give_back
from dairllm.mesh.errors import DairllmError, NotEnoughMemory, NotReady, UnknownModel, WrongEpoch
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import OutgoingEdge
from dairllm.mesh.system_memory import resident_bytes
from dairllm.mesh.telemetry import fields
from dairllm.model_files.manifest import Unit
from dairllm.shard_service.assignment import AssignmentFacts, assignment_from_proto
from dairllm.shard_service.epochs.compute_thread import ComputeThread
from dairllm.shard_service.epochs.counters import Counters
from dairllm.shard_service.epochs.epoch_run import EpochRun
from dairllm.shard_service.epochs.preparer import Prepared, Preparer, make_loader_threads
from dairllm.shard_service.epochs.proving import prove
from dairllm.shard_service.epochs.reports import Reports, Send
from dairllm.shard_service.forward.compute_stage import ComputeStage
from dairllm.shard_service.forward.sent_rows import SentRows
from dairllm.shard_service.forward.sequences import SequenceTable
from dairllm.shard_service.kv_cache.layers import KvCaches, LayerCache
from dairllm.shard_service.kv_cache.transfer import TransferOutcome, kv_pieces, take_over, transfer_from_proto
from dairllm.shard_service.machine.memory import MemoryBudget
from dairllm.shard_service.ring.incoming import IncomingEdge
from dairllm.shard_service.weights.disk_cache import WeightsCache
from dairllm.shard_service.weights.store import LayerStore
from dairllm.v1 import cluster_pb2, ring_pb2, shard_pb2

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Identity:
    """name: changes only while the shard is no member."""

    name: str
    boot_id: str
    cluster_hash: str


class _Memory:
    """What outlives an epoch besides the KV caches, of one model in one arithmetic."""

    def __init__(self, assignment: AssignmentFacts, sent_rows_bytes: int) -> None:
        self.model_digest, self.wire = assignment.model_digest, assignment.wire
        self.sequences = SequenceTable(assignment.model, assignment.geometry)
        model = assignment.model
        self.sent_rows = SentRows(encoded_row_bytes(assignment.wire, model.row_width, model.carried_width), sent_rows_bytes)


class StageHost:
    """send: to the coordinator, if there is one. coordinator_addresses: where weights are fetched that no file here has. weights_cache:
    where they are kept, if they are. direct_weights: whether URLs are asked, too, that the coordinator names.
    """

    def __init__(
        self,
        identity: Identity,
        budget: MemoryBudget,
        model_dirs: Sequence[Path],
        send: Send,
        coordinator_addresses: Callable[[], Sequence[str]],
        weights_cache: WeightsCache | None = None,
        direct_weights: bool = False,
    ) -> None:
        self._identity = identity
        self._budget = budget
        self._send = send
        self._reports = Reports(send)
        self.compute_thread = ComputeThread()
        self.loader_threads = make_loader_threads()
        self._store = LayerStore(self.loader_threads)
        self._caches = KvCaches()
        self._preparer = Preparer(
            self._store, self._caches, self.loader_threads, model_dirs, coordinator_addresses, weights_cache, direct_weights
        )
        self._memory: _Memory | None = None
        self._prepared: Prepared | None = None
        self._run: EpochRun | None = None
        self._stopping: list[EpochRun] = []
        self._scratch_bytes = 0
        self._changes: set[asyncio.Task[None]] = set()
        self._proving: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._preparing: asyncio.Task[None] | None = None
        self._wanted_epoch = 0
        self._kv_key = b""
        self._transfers: asyncio.Task[TransferOutcome] | None = None
        self._is_shutting_down = False
        self.counters = Counters()

    # What the coordinator says.

    def assign(self, message: cluster_pb2.Assignment) -> None:
        try:
            assignment = assignment_from_proto(message)
        except DairllmError as error:
            self._supersede()
            self._reports.failed(message.epoch, error)
            return
        log.info("assigned", extra=fields(epoch=assignment.epoch, model=assignment.model.name, units=_text_of(assignment.span)))
        self._supersede()
        self._wanted_epoch = assignment.epoch
        self._kv_key = assignment.kv_key
        reports = self._reports
        self._preparing = self._change(lambda: self._prepare(assignment, reports))

    def activate(self, message: cluster_pb2.ActivateStage) -> None:
        reports = self._reports
        self._change(lambda: self._activate(message, reports))

    def release(self, message: cluster_pb2.Release) -> None:
        log.info("released", extra=fields(epoch=message.epoch, reason=message.reason))
        self._end_run(WrongEpoch(f"shard {self._identity.name!r} was released"))
        if self._wanted_epoch <= message.epoch:  # else it is wanted again already, by a later plan
            self._supersede()
            self._change(self._free)

    def prove(self, message: cluster_pb2.Prove) -> None:
        """A later request takes the place of one that is not answered yet."""
        if self._proving is not None:
            self._proving.cancel()
        self._proving = asyncio.create_task(prove(message, self.compute_thread, self.loader_threads, self._reports.proof), name="prove")

    def end_epoch(self) -> None:
        """Another coordinator is in charge: its epochs and sequences have nothing to do with those of the last one. Weights stay."""
        self._supersede()
        self._reports.mute()
        self._reports = Reports(self._send)
        self._kv_key = b""
        self._end_run(WrongEpoch("another coordinator is in charge of this shard"))
        self._change(self._forget)

    def limit(self, budget: MemoryBudget) -> None:
        """Another memory budget, for what is prepared and kept from now on."""
        self._budget = budget
        self._change(self._limit_sent_rows)

    def shut_down(self) -> None:
        """Members that send to this shard are told that it ends, now and from now on."""
        self._is_shutting_down = True
        self._supersede()
        self._end_run(self._shutting_down())
        self._change(self._free)

    async def close(self) -> None:
        self.shut_down()
        if self._proving is not None:
            self._proving.cancel()
        await asyncio.wait(self._changes)
        self.compute_thread.shutdown(wait=True)
        self.loader_threads.shutdown(wait=True)
        self._preparer.close()

    # What others ask.

    @property
    def assignment(self) -> AssignmentFacts | None:
        """The active one."""
        return None if self._run is None else self._run.assignment

    @property
    def is_idle(self) -> bool:
        """It has no part in a plan, is preparing for none, and holds nothing of a model."""
        has_part = self._run is not None or self._prepared is not None or bool(self._changes)
        return not has_part and not self._store.held_units()[1]

    def find_unit(self, model_digest: bytes, unit_index: int) -> tuple[AssignmentFacts, Unit]:
        """A unit that is assigned to this shard, now or next. Raises UnknownModel."""
        prepared = None if self._prepared is None else self._prepared.assignment
        assignments = [assignment for assignment in (self.assignment, prepared) if assignment and assignment.model_digest == model_digest]
        if not assignments:
            raise UnknownModel(f"this shard has no part of the model {model_digest.hex()[:16]}")
        for assignment in assignments:
            for unit in assignment.units:
                if unit.index == unit_index:
                    return assignment, unit
        raise UnknownModel(f"this shard has no unit {unit_index} of the model")

    def incoming(self, opening: ring_pb2.EdgeOpen) -> IncomingEdge:
        """The edge that a predecessor opens. Raises WrongCluster, NotReady when the shard is shutting down, or
        WrongEpoch, also while the epoch is not active yet."""
        if self._is_shutting_down:
            raise self._shutting_down()
        self._member_in(self.assignment).require(opening)
        assert self._run is not None, "a member without an epoch refuses every edge"
        return self._run.incoming

    def _member_in(self, assignment: AssignmentFacts | None) -> RingMember:
        cluster_hash, name = self._identity.cluster_hash, self._identity.name
        if assignment is None:
            return RingMember(cluster_hash, name, None)
        return RingMember(cluster_hash, name, assignment.epoch, assignment.ring_key)

    def kv_pieces(self, request: shard_pb2.FetchKvRequest) -> AsyncIterator[shard_pb2.FetchKvResponse]:
        """KV cache of layers that this shard computes, or did until the last switch, for whom the coordinator has given the key."""
        return kv_pieces(request, self._caches, self._kv_key)

    def held_units(self) -> cluster_pb2.HeldUnits:
        digest, indexes = self._store.held_units()
        return cluster_pb2.HeldUnits(model_digest=digest, unit_indexes=indexes)

    def usage(self) -> cluster_pb2.ShardUsage:
        counted, streamed = self.counters, self._preparer.stream_meter
        return cluster_pb2.ShardUsage(
            weights_bytes=self._store.weights_bytes,
            kv_cache_bytes=self._caches.size_bytes,
            scratch_bytes=self._scratch_bytes,
            resident_bytes=resident_bytes(),
            frames=counted.frames,
            rows=counted.rows,
            compute_us=counted.compute_us,
            sent_bytes=counted.sent_bytes,
            received_bytes=counted.received_bytes,
            streamed_bytes=streamed.read_bytes,
            streaming_us=round(streamed.reading_s * 1e6),
            stalled_us=round(streamed.stalled_s * 1e6),
            experts_found=streamed.experts_found,
            experts_missed=streamed.experts_missed,
        )

    def work(self) -> cluster_pb2.ShardWork:
        """How far it is, for who wants to know whether it computes."""
        run, thread = self._run, self.compute_thread
        epoch, (received, computed, sent) = (0, (0, 0, 0)) if run is None else (run.assignment.epoch, run.frames)
        return cluster_pb2.ShardWork(
            given=thread.given,
            done=thread.done,
            cpu_us=thread.cpu_us + (0 if run is None else run.read_us),
            epoch=epoch,
            received_frames=received,
            computed_frames=computed,
            sent_frames=sent,
        )

    def _shutting_down(self) -> NotReady:
        return NotReady(f"shard {self._identity.name!r} is shutting down")

    # Changes, one at a time and in order.

    def _change(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._in_turn(work), name="change")
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task

    async def _in_turn(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._changing:
            await work()

    def _supersede(self) -> None:
        """What is prepared is not wanted any more, and nobody waits for KV caches that are still on their way."""
        self._prepared, self._wanted_epoch = None, 0
        if self._preparing is not None:
            self._preparing.cancel()
        if self._transfers is not None:
            self._transfers.cancel()

    def _end_run(self, reason: DairllmError) -> None:
        """Frames of the active epoch are refused from now on."""
        if self._run is not None:
            self._run.stop(reason)
            self._stopping.append(self._run)
            self._run = None

    async def _settled(self) -> None:
        """No epoch that has ended computes any more."""
        for run in tuple(self._stopping):
            await run.ended()
        ended = [run for run in self._stopping if run.has_ended]
        await self._in_compute_thread(lambda: None)
        for run in ended:
            run.forget_stage()
        self._stopping = [run for run in self._stopping if run not in ended]

    async def _free(self) -> None:
        await self._settled()
        self._memory = None
        self._store.keep_only()
        self._caches.keep_only(())
        self._scratch_bytes = 0
        await self._give_back()

    async def _forget(self) -> None:
        await self._settled()
        self._memory = None
        self._caches.keep_blocks(())

    async def _limit_sent_rows(self) -> None:
        if self._memory is not None:
            sent_rows, budget_bytes = self._memory.sent_rows, self._budget.sent_rows_bytes
            await self._in_compute_thread(lambda: sent_rows.limit(budget_bytes))
            await self._give_back()

    # Preparing.

    async def _prepare(self, assignment: AssignmentFacts, reports: Reports) -> None:
        started_s = asyncio.get_running_loop().time()
        try:
            self._prepared = await self._load(assignment, reports)
        except DairllmError as error:
            reports.failed(assignment.epoch, error)
        except MemoryError as error:
            reports.failed(assignment.epoch, NotEnoughMemory(f"the system gives no memory within the budget: {error}"))
        except Exception as error:
            log.exception("loading failed by a fault of this program")
            reports.failed(assignment.epoch, _fault("loading", error))
        else:
            reports.ready(assignment, self._store.weights_bytes, asyncio.get_running_loop().time() - started_s)

    async def _load(self, assignment: AssignmentFacts, reports: Reports) -> Prepared:
        if assignment.exclusive:
            self._end_run(WrongEpoch(f"shard {self._identity.name!r} makes room for epoch {assignment.epoch}"))
            await self._settled()
            self._store.keep_only(assignment)
        if self._run is None:
            self._caches.shrink(assignment)
        report = reports.progress_of(assignment.epoch)
        return await self._preparer.prepare(assignment, self.assignment, self._budget, report)

    # Activating.

    async def _activate(self, message: cluster_pb2.ActivateStage, reports: Reports) -> None:
        prepared = self._prepared
        if prepared is None or prepared.assignment.epoch != message.epoch:
            epoch = "none" if prepared is None else prepared.assignment.epoch
            reports.failed(message.epoch, WrongEpoch(f"epoch {message.epoch} is to be activated; prepared is {epoch}"))
            return
        self._prepared = None
        try:
            await self._switch(prepared, message, reports)
        except MemoryError as error:
            reports.failed(message.epoch, NotEnoughMemory(f"the system gives no memory within the budget: {error}"))
        except Exception as error:
            log.exception("activating failed by a fault of this program")
            reports.failed(message.epoch, _fault("activating", error))

    async def _switch(self, prepared: Prepared, message: cluster_pb2.ActivateStage, reports: Reports) -> None:
        loop = asyncio.get_running_loop()
        started_s, assignment, before = loop.time(), prepared.assignment, self.assignment
        self._end_run(WrongEpoch(f"epoch {assignment.epoch} is active on this shard"))
        await self._settled()
        if before is not None:  # what was lost at the switch before was asked for, if at all, while that was made
            self._caches.keep_only({*before.layer_units, *assignment.layer_units})
        kv = self._caches.arrange(assignment)
        memory = self._memory_for(assignment, message.alive_sequences)
        outcome = await self._take_over(message)
        if reports.is_muted:
            return
        self._start(prepared, memory, kv)
        self._store.keep_only(assignment)
        reports.activated(assignment, outcome, loop.time() - started_s)
        await self._give_back()

    async def _take_over(self, message: cluster_pb2.ActivateStage) -> TransferOutcome:
        superseded = TransferOutcome((), 0, "a later plan came first")
        if self._wanted_epoch != message.epoch:
            return superseded
        transfers = [transfer_from_proto(transfer) for transfer in message.transfers]
        self._transfers = asyncio.create_task(take_over(transfers, self._caches))
        try:
            await asyncio.wait({self._transfers})
            return superseded if self._transfers.cancelled() else self._transfers.result()
        finally:
            self._transfers.cancel()
            self._transfers = None

    def _memory_for(self, assignment: AssignmentFacts, alive: Sequence[int]) -> _Memory:
        memory = self._memory
        if memory is None or (memory.model_digest, memory.wire) != (assignment.model_digest, assignment.wire):
            self._memory = memory = _Memory(assignment, self._budget.sent_rows_bytes)
        alive_ids = frozenset(alive)
        memory.sequences = memory.sequences.under(assignment.model, assignment.geometry, alive_ids)
        self._caches.keep_blocks(memory.sequences.block_ids)
        memory.sent_rows.keep_only(alive_ids)
        return memory

    def _start(self, prepared: Prepared, memory: _Memory, kv: Sequence[LayerCache]) -> None:
        assignment = prepared.assignment
        self._scratch_bytes = prepared.scratch_bytes
        stage = ComputeStage(assignment, prepared.parts, kv, memory.sequences, memory.sent_rows, self._identity.name, prepared.streams)
        outgoing = OutgoingEdge(assignment.next, self._member_in(assignment).opening_to(assignment.next.name))
        self._run = EpochRun(assignment, stage, outgoing, self.compute_thread, self.counters, self._reports.edge_lost, self._reports.fault)
        self._run.start()

    async def _give_back(self) -> None:
        """What the plan before has left."""
        await asyncio.get_running_loop().run_in_executor(self.loader_threads, give_back)

    async def _in_compute_thread(self, work: Callable[[], T]) -> T:
        """Waits for the frame that is being computed, if there is one."""
        return await asyncio.get_running_loop().run_in_executor(self.compute_thread, work)


def _fault(doing: str, error: Exception) -> DairllmError:
    return DairllmError(f"{doing} failed: {type(error).__name__}; the cause is in the shard's log")


def _text_of(span: range) -> str:
    return f"{span.start}-{span.stop - 1}"
