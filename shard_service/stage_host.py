"""What the shard holds and computes: it follows the coordinator's assignments, the newest of which is in force.

A newer assignment ends the epoch before at once, cancels loading that is under way, and keeps what both have in common.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dairllm.kernels_pyx import KvCache
from dairllm.mesh.errors import DairllmError, DeadlineExceeded, NotEnoughMemory, NotReady, PeerUnreachable, WrongCluster, WrongEpoch
from dairllm.mesh.settings import format_size
from dairllm.mesh.telemetry import fields
from dairllm.shard_service.assignment import AssignmentFacts, assignment_from_proto
from dairllm.shard_service.counters import Counters
from dairllm.shard_service.epoch_run import EpochRun
from dairllm.shard_service.incoming import IncomingEdge
from dairllm.shard_service.layer_store import LayerStore, LoadCounts
from dairllm.shard_service.memory import MemoryBudget, MemoryDemand, resident_bytes
from dairllm.shard_service.outgoing import OutgoingEdge
from dairllm.shard_service.sources import LocalFile, RemoteMember, UnitSource, find_local_files
from dairllm.shard_service.stage import ComputeStage, build_stage, empty_stage, scratch_bytes
from dairllm.shard_service.unit_assembler import LoadedUnit, demanded_bytes
from dairllm.v1 import cluster_pb2, ring_pb2

PROGRESS_INTERVAL_S = 0.2

log = logging.getLogger(__name__)

Send = Callable[[cluster_pb2.JoinRequest], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    name: str
    boot_id: str
    cluster_hash: str


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Caches of equal shape can take each other's place."""

    layers: range
    num_blocks: int
    block_tokens: int
    num_kv_heads: int
    head_dim: int
    element_type: str


class StageHost:
    """send: to the coordinator, if there is one. coordinator_addresses: where weights are fetched that no file here has."""

    def __init__(
        self,
        identity: Identity,
        budget: MemoryBudget,
        model_dirs: Sequence[Path],
        send: Send,
        coordinator_addresses: Callable[[], Sequence[str]],
    ) -> None:
        self._identity = identity
        self._budget = budget
        self.model_dirs = model_dirs
        self._send = send
        self._coordinator_addresses = coordinator_addresses
        self.compute_thread: Executor = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.loader_threads = ThreadPoolExecutor(3, thread_name_prefix="loader")
        self._store = LayerStore(self.loader_threads)
        self._kv: tuple[CacheShape, list[KvCache]] | None = None
        self._scratch_bytes = 0
        self._run: EpochRun | None = None
        self._change: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._stopping: list[EpochRun] = []
        self._is_shutting_down = False
        self.counters = Counters()
        self.assignment: AssignmentFacts | None = None

    # What the coordinator says.

    def assign(self, message: cluster_pb2.Assignment) -> None:
        try:
            assignment = assignment_from_proto(message)
        except DairllmError as error:
            self._change_to(None, self._free)
            self._report_failure(message.epoch, error)
            return
        log.info("assigned", extra=fields(epoch=assignment.epoch, model=assignment.model.name, units=_text_of(assignment.span)))
        self._change_to(assignment, lambda: self._serve(assignment))

    def release(self, message: cluster_pb2.Release) -> None:
        log.info("released", extra=fields(epoch=message.epoch, reason=message.reason))
        self._change_to(None, self._free)

    def end_epoch(self) -> None:
        """Another coordinator is in charge: its epochs have nothing to do with those of the last one. Weights stay."""
        self._change_to(None, self._keep_all)

    def shut_down(self) -> None:
        """Members that send to this shard are told that it ends, now and from now on."""
        self._is_shutting_down = True
        self._change_to(None, self._free)

    async def close(self) -> None:
        self.shut_down()
        assert self._change is not None
        await asyncio.wait({self._change})
        self.compute_thread.shutdown(wait=True)
        self.loader_threads.shutdown(wait=True)

    # What others ask.

    def incoming(self, opening: ring_pb2.EdgeOpen) -> IncomingEdge:
        """The edge that a predecessor opens. Raises WrongCluster, NotReady when the shard is shutting down, or
        WrongEpoch, also while it has not loaded its part yet."""
        if self._is_shutting_down:
            raise self._shutting_down()
        if opening.cluster_hash != self._identity.cluster_hash:
            raise WrongCluster(f"{opening.sender!r} belongs to another cluster: its hash is {opening.cluster_hash!r}")
        if opening.receiver and opening.receiver != self._identity.name:
            raise WrongEpoch(f"{opening.sender!r} meant to reach {opening.receiver!r}, and reached {self._identity.name!r}")
        assignment = self.assignment
        if assignment is None or assignment.epoch != opening.epoch:
            own = "none" if assignment is None else assignment.epoch
            raise WrongEpoch(f"epoch is {opening.epoch}; shard {self._identity.name!r} is at {own}")
        if not hmac.compare_digest(opening.ring_key, assignment.ring_key):
            raise WrongEpoch(f"{opening.sender!r} does not have the key of epoch {opening.epoch}")
        if self._run is None:
            raise WrongEpoch(f"shard {self._identity.name!r} is not ready for epoch {opening.epoch} yet")
        return self._run.incoming

    def _shutting_down(self) -> NotReady:
        return NotReady(f"shard {self._identity.name!r} is shutting down")

    @property
    def kv_cache_bytes(self) -> int:
        return 0 if self._kv is None else sum(cache.size_bytes for cache in self._kv[1])

    def usage(self) -> cluster_pb2.ShardUsage:
        counted = self.counters
        return cluster_pb2.ShardUsage(
            weights_bytes=self._store.weights_bytes,
            kv_cache_bytes=self.kv_cache_bytes,
            scratch_bytes=self._scratch_bytes,
            resident_bytes=resident_bytes(),
            frames=counted.frames,
            rows=counted.rows,
            compute_us=counted.compute_us,
            sent_bytes=counted.sent_bytes,
            received_bytes=counted.received_bytes,
        )

    # Changes, one at a time.

    def _change_to(self, assignment: AssignmentFacts | None, work: Callable[[], Awaitable[None]]) -> None:
        """Frames of the epoch before are refused from now on; the rest happens when the change before has let go."""
        self.assignment = assignment
        if self._run is not None:
            epoch = self._run.assignment.epoch
            self._run.stop(self._shutting_down() if self._is_shutting_down else WrongEpoch(f"epoch {epoch} is over on this shard"))
            self._stopping.append(self._run)
            self._run = None
        if self._change is not None:
            self._change.cancel()
        self._change = asyncio.create_task(self._after_the_last(work), name="assignment")

    async def _after_the_last(self, work: Callable[[], Awaitable[None]]) -> None:
        async with self._changing:
            while self._stopping:
                await self._stopping[-1].ended()
                self._stopping.pop()
            await work()

    async def _keep_all(self) -> None:
        pass

    async def _free(self) -> None:
        self._store.keep_only(None)
        self._kv = None
        self._scratch_bytes = 0

    async def _serve(self, assignment: AssignmentFacts) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            stage = await self._load(assignment)
        except DairllmError as error:
            self._report_failure(assignment.epoch, error)
        except MemoryError as error:
            self._report_failure(assignment.epoch, NotEnoughMemory(f"the system gives no memory within the budget: {error}"))
        except Exception as error:
            log.exception("loading failed by a fault of this program")
            self._report_failure(assignment.epoch, DairllmError(f"loading failed: {type(error).__name__}; the cause is in the shard's log"))
        else:
            self._start(assignment, stage)
            self._report_ready(assignment, loop.time() - started_s)

    async def _load(self, assignment: AssignmentFacts) -> ComputeStage:
        empty = await self._in_compute_thread(lambda: empty_stage(assignment))
        demand = MemoryDemand(demanded_bytes(assignment.units), assignment.kv_cache_bytes, scratch_bytes(assignment, empty))
        self._budget.require(demand)
        self._make_room(assignment, demand)
        units = await self._load_units(assignment)
        self._store.keep_only(assignment)
        kv = await self._in_compute_thread(lambda: self._caches_for(assignment))
        parts = await self._in_compute_thread(lambda: build_stage(assignment, units))
        self._scratch_bytes = scratch_bytes(assignment, parts)
        return ComputeStage(assignment, parts, kv, self._identity.name)

    def _make_room(self, assignment: AssignmentFacts, demand: MemoryDemand) -> None:
        """Free what the new part does not need; units that there is room for stay until it is loaded, in case the plan changes back."""
        if self._kv is not None and self._kv[0] != _cache_shape(assignment):
            self._kv = None
        besides = self._store.bytes_besides(assignment)
        if self._budget.missing_bytes(replace(demand, weights_bytes=demand.weights_bytes + besides)):
            self._store.keep_only(assignment)

    async def _load_units(self, assignment: AssignmentFacts) -> tuple[LoadedUnit, ...]:
        loop = asyncio.get_running_loop()
        paths = await loop.run_in_executor(self.loader_threads, find_local_files, assignment, self.model_dirs)
        remote = RemoteMember(self._coordinator_addresses(), assignment.model_digest, "the coordinator")
        sources: list[UnitSource] = [*(LocalFile(path, self.loader_threads) for path in paths), remote]
        try:
            return await self._store.load(assignment, sources, _ProgressReport(assignment.epoch, self._send))
        finally:
            await remote.close()

    def _caches_for(self, assignment: AssignmentFacts) -> list[KvCache]:
        """One for each layer."""
        shape = _cache_shape(assignment)
        if self._kv is None or self._kv[0] != shape:
            sizes = shape.num_blocks, shape.block_tokens, shape.num_kv_heads, shape.head_dim
            self._kv = shape, [KvCache(*sizes, shape.element_type) for _ in shape.layers]
        return self._kv[1]

    def _start(self, assignment: AssignmentFacts, stage: ComputeStage) -> None:
        opening = ring_pb2.EdgeOpen(
            cluster_hash=self._identity.cluster_hash,
            epoch=assignment.epoch,
            sender=self._identity.name,
            receiver=assignment.next.name,
            ring_key=assignment.ring_key,
        )
        outgoing = OutgoingEdge(assignment.next, opening)
        self._run = EpochRun(assignment, stage, outgoing, self.compute_thread, self.counters, self._report_edge_lost)
        self._run.start()

    async def _in_compute_thread(self, work: Callable[[], T]) -> T:
        """Waits for the frame that is being computed, if there is one."""
        return await asyncio.get_running_loop().run_in_executor(self.compute_thread, work)

    # Reports to the coordinator.

    def _report_ready(self, assignment: AssignmentFacts, load_s: float) -> None:
        weights_bytes = self._store.weights_bytes
        sizes = {"weights": format_size(weights_bytes), "kv_cache": format_size(self.kv_cache_bytes)}
        log.info("ready", extra=fields(epoch=assignment.epoch, units=_text_of(assignment.span), seconds=f"{load_s:.2f}", **sizes))
        ready = cluster_pb2.StageReady(
            epoch=assignment.epoch, weights_bytes=weights_bytes, kv_cache_bytes=self.kv_cache_bytes, load_s=load_s
        )
        self._send(cluster_pb2.JoinRequest(stage_ready=ready))

    def _report_failure(self, epoch: int, error: DairllmError) -> None:
        retryable = isinstance(error, PeerUnreachable | DeadlineExceeded)
        log.error("the assignment failed: %s", error, extra=fields(epoch=epoch, retryable=retryable))
        failed = cluster_pb2.StageFailed(epoch=epoch, message=str(error), retryable=retryable)
        self._send(cluster_pb2.JoinRequest(stage_failed=failed))

    def _report_edge_lost(self, assignment: AssignmentFacts, message: str) -> None:
        lost = cluster_pb2.EdgeLost(epoch=assignment.epoch, peer=assignment.next.name, message=message)
        self._send(cluster_pb2.JoinRequest(edge_lost=lost))


class _ProgressReport:
    """Tells the coordinator a few times a second how far loading is, and at its end."""

    def __init__(self, epoch: int, send: Send) -> None:
        self._epoch = epoch
        self._send = send
        self._told_s = 0.0

    def __call__(self, counts: LoadCounts) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._told_s < PROGRESS_INTERVAL_S and counts.loaded_bytes < counts.total_bytes:
            return
        self._told_s = now_s
        progress = cluster_pb2.LoadProgress(
            epoch=self._epoch,
            loaded_bytes=counts.loaded_bytes,
            total_bytes=counts.total_bytes,
            from_memory_bytes=counts.from_memory_bytes,
            from_disk_bytes=counts.from_disk_bytes,
            from_network_bytes=counts.from_network_bytes,
        )
        self._send(cluster_pb2.JoinRequest(load_progress=progress))


def _cache_shape(assignment: AssignmentFacts) -> CacheShape:
    model, geometry = assignment.model, assignment.geometry
    return CacheShape(
        layers=assignment.layers,
        num_blocks=geometry.num_blocks,
        block_tokens=geometry.block_tokens,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        element_type=geometry.element_type,
    )


def _text_of(span: range) -> str:
    return f"{span.start}-{span.stop - 1}"
