"""The asyncio shell around the cluster machine: leases of shards, time, and what the machine decides.

One Join stream is one lease. Its requests become events; what the machine decides for the shard goes into the lease's queue, from which
the stream's responses are written.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Protocol

import grpc

from dairllm.coordinator.assignments import spec_to_proto, unit_to_proto
from dairllm.coordinator.cluster import actions as do
from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.facts import COORDINATOR_NAME, Epoch, LeaseId
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.state import ClusterConfig
from dairllm.coordinator.engine.engine import EngineStats
from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.recovery import StagePlace
from dairllm.coordinator.lease import Lease
from dairllm.coordinator.model import LoadedModel
from dairllm.coordinator.reachability import Place, addresses_from
from dairllm.coordinator.ring import Ring, first_request
from dairllm.coordinator.shard_facts import capabilities_from_proto, hello_from_proto, progress_from_proto, usage_from_proto
from dairllm.mesh.cache_types import cache_type_to_proto
from dairllm.mesh.errors import DairllmError, DeadlineExceeded, InvalidRequest, NameTaken, PeerUnreachable, RequestLost
from dairllm.mesh.protocol import software_version
from dairllm.v1 import cluster_pb2

logger = logging.getLogger("dairllm.cluster")

TICK_S = 0.2
DRAIN_LIMIT_S = 2.0
CONFIGURE_LIMIT_S = 15.0
"""A shard without a part measures itself anew, which takes some seconds if others on its machine do so, too."""
MAX_WEIGHT_SOURCES = 8


class RingUser(Protocol):
    """Who sends frames around the ring: the engine."""

    @property
    def alive_ring_ids(self) -> Sequence[int]:
        """Sequences that the shards must not forget."""

    @property
    def used_block_ids(self) -> Sequence[int]:
        """Cache blocks with content that is needed again."""

    def engine_stats(self) -> EngineStats:
        """Answers that run and wait."""

    def open_ring(self, geometry: RingGeometry) -> None:
        """Frames may be sent."""

    def drain_ring(self) -> None:
        """Send nothing more; Membership.drained is called once nothing is in flight."""

    def close_ring(self) -> None:
        """Frames may not be sent any more, and what is in flight does not come back."""


class Membership:
    """own_addresses: the coordinator's "host:port", loopback included; own_hosts: addresses of this machine."""

    def __init__(
        self,
        config: ClusterConfig,
        model: LoadedModel,
        ring: Ring,
        own_addresses: tuple[str, ...],
        own_hosts: Collection[str],
        engine: RingUser,
        on_event: Callable[[do.ClusterEventRecord], None],
    ) -> None:
        self.config = config
        self._model = model
        self._machine = ClusterMachine(config)
        self._ring = ring
        self._own_place = Place(own_addresses, "127.0.0.1")
        self._own_hosts = own_hosts
        self._engine = engine
        self._on_event = on_event
        self._leases: dict[LeaseId, Lease] = {}
        self._holders: dict[str, Lease] = {}
        self._lease_ids = itertools.count(1)
        self._opening: asyncio.Task[None] | None = None
        self._is_ring_open = False
        self._draining: Epoch | None = None
        self._closed_at_s = 0.0
        self._pending: deque[on.Event] = deque()
        self._is_handling = False

    @property
    def machine(self) -> ClusterMachine:
        return self._machine

    async def run(self) -> None:
        """Tell the machine the time, until cancelled."""
        context_length = self.config.context_length or self._model.manifest.spec.context_length
        self.handle(on.ModelRegistered(self._model.demand(context_length, self.config.kv_cache)))
        while True:
            await asyncio.sleep(TICK_S)
            load = self._engine.engine_stats()
            self.handle(on.TimePassed(is_idle=not (load.running or load.waiting)))

    async def stop(self) -> None:
        for lease in self._leases.values():
            lease.end(PeerUnreachable("the coordinator is shutting down"))
        await self._stop_opening()

    def handle(self, event: on.Event) -> None:
        """Events that arise while another is handled wait for their turn."""
        self._pending.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._pending:
                for action in self._machine.handle(self._pending.popleft(), asyncio.get_running_loop().time()):
                    self._perform(action)
        finally:
            self._is_handling = False

    def _perform(self, action: do.Action) -> None:
        match action:
            case do.RecordEvent(record):
                logger.info(record.text)
                self._on_event(record)
            case do.AdmitShard(lease=lease):
                self._admit(self._leases[lease])
            case do.RefuseShard(lease=lease, error=error):
                self._end(lease, error)
            case do.EndLease(name=name, lease=lease, reason=reason):
                self._end(lease, RequestLost(f"the lease of shard {name!r} ended: {reason}; join again"))
            case do.AssignUnits():
                self._assign(action)
            case do.ActivateStage():
                self._activate(action)
            case do.ReleaseShard(name=name, epoch=epoch, reason=reason, leave=leave):
                self._send(name, cluster_pb2.JoinResponse(release=cluster_pb2.Release(epoch=epoch, reason=reason, leave=leave)))
            case do.OpenRing():
                self._start_opening(action)
            case do.CloseRing(graceful=True, epoch=epoch):
                self._drain_ring(epoch)
            case do.CloseRing():
                self._close_ring()
            case do.AskToDrain(name=name, reason=reason):
                self._send(name, cluster_pb2.JoinResponse(drain=cluster_pb2.Drain(reason=reason)))
            case do.ConfigureLimits(name=name, memory_budget_bytes=memory_budget_bytes, num_threads=num_threads):
                limits = cluster_pb2.Configure(memory_budget_bytes=memory_budget_bytes, num_threads=num_threads)
                self._send(name, cluster_pb2.JoinResponse(configure=limits))

    def _send(self, name: str, response: cluster_pb2.JoinResponse) -> None:
        lease = self._holders.get(name)
        if lease is not None:
            lease.send(response)

    def _admit(self, lease: Lease) -> None:
        self._holders[lease.name] = lease
        lease.send(
            cluster_pb2.JoinResponse(
                welcome=cluster_pb2.Welcome(
                    coordinator_id=self.config.coordinator_id,
                    software_version=software_version(),
                    heartbeat_interval_ms=round(self.config.heartbeat_interval_s * 1000),
                    lease_timeout_ms=round(self.config.lease_timeout_s * 1000),
                    observed_host=lease.place.observed_host,
                )
            )
        )

    def _end(self, lease_id: LeaseId, error: DairllmError) -> None:
        lease = self._leases.get(lease_id)
        if lease is not None:
            lease.end(error)

    def _place(self, name: str) -> Place:
        lease = self._holders.get(name)
        return lease.place if lease else Place((), "")

    def _assign(self, action: do.AssignUnits) -> None:
        manifest = self._model.manifest
        source = self._place(action.name)
        next_name = action.next.name if action.next else COORDINATOR_NAME
        target = self._place(next_name) if action.next else self._own_place
        assignment = cluster_pb2.Assignment(
            epoch=action.epoch,
            model_digest=bytes.fromhex(manifest.model_digest),
            spec=spec_to_proto(manifest.spec),
            units=[unit_to_proto(manifest.units[index]) for index in action.units],
            model_path=str(self._model.path),
            model_file_size_bytes=manifest.file_size_bytes,
            next=cluster_pb2.Peer(name=next_name, addresses=addresses_from(source, target, self._own_hosts)),
            num_kv_blocks=action.num_kv_blocks,
            kv_block_tokens=action.kv_block_tokens,
            context_length=action.context_length,
            max_batch_rows=action.max_batch_rows,
            exclusive=action.exclusive,
            weight_sources=self._weight_sources(action.name, action.units),
            kv_cache_type=cache_type_to_proto(self.config.kv_cache),
            ring_key=self._ring.key_of(action.epoch),
            kv_key=self._ring.kv_key_of(action.name, action.boot_id),
        )
        self._send(action.name, cluster_pb2.JoinResponse(assignment=assignment))

    def _weight_sources(self, receiver: str, units: range) -> list[cluster_pb2.Peer]:
        """Members that may have these units on their disks: first those with most of them in their plan, last the coordinator."""
        plan, source = self._machine.plan, self._place(receiver)
        parts = {} if plan is None else plan.placement
        others = [name for name in parts if name != receiver and name in self._holders and not self._machine.avoids(name, receiver)]
        others.sort(key=lambda name: -len(range(max(units.start, parts[name].start), min(units.stop, parts[name].stop))))
        places = {name: self._place(name) for name in others[:MAX_WEIGHT_SOURCES]} | {COORDINATOR_NAME: self._own_place}
        return [cluster_pb2.Peer(name=name, addresses=addresses_from(source, place, self._own_hosts)) for name, place in places.items()]

    def _activate(self, action: do.ActivateStage) -> None:
        block_ids = self._engine.used_block_ids if action.moves else ()
        activation = cluster_pb2.ActivateStage(
            epoch=action.epoch,
            transfers=[self._transfer(action.name, move, block_ids) for move in action.moves],
            alive_sequences=self._engine.alive_ring_ids,
        )
        self._send(action.name, cluster_pb2.JoinResponse(activate_stage=activation))

    def _transfer(self, name: str, move: do.Move, block_ids: Sequence[int]) -> cluster_pb2.KvTransfer:
        addresses = addresses_from(self._place(name), self._place(move.source.name), self._own_hosts)
        source = self._holders.get(move.source.name)
        transfer = cluster_pb2.KvTransfer(
            first_unit=move.units.start,
            end_unit=move.units.stop,
            block_ids=block_ids,
            kv_key=self._ring.kv_key_of(source.name, source.boot_id) if source else b"",
        )
        getattr(transfer, "from").CopyFrom(cluster_pb2.Peer(name=move.source.name, addresses=addresses))
        return transfer

    # The ring

    def _start_opening(self, action: do.OpenRing) -> None:
        addresses = addresses_from(self._own_place, self._place(action.first.name), self._own_hosts)
        previous, self._opening = self._opening, None
        self._opening = asyncio.create_task(self._open(previous, action, addresses), name=f"open-ring-{action.epoch}")

    async def _open(self, previous: asyncio.Task[None] | None, action: do.OpenRing, addresses: tuple[str, ...]) -> None:
        if previous is not None:
            previous.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await previous
        try:
            await self._ring.open(action.epoch, action.first.name, addresses)
        except PeerUnreachable as error:
            self.handle(on.RingBroken(action.epoch, str(error)))
            return
        self._is_ring_open = True
        # The engine first: from RingOpened on the machine believes that what the shards lacked is computed again, and it may close the
        # ring in the same call.
        self._engine.open_ring(self._geometry(action))
        self.handle(on.RingOpened(action.epoch))

    def _geometry(self, action: do.OpenRing) -> RingGeometry:
        placement = tuple(StagePlace(holder, stage.units) for holder, stage in zip(action.holders, action.plan.stages, strict=True))
        boundaries = [stage.units.start for stage in placement[1:]]
        return RingGeometry(
            epoch=action.epoch,
            placement=placement,
            num_kv_blocks=action.plan.num_kv_blocks,
            kv_block_tokens=self.config.kv_block_tokens,
            rounding_points={} if self.config.wire == "F32" else dict.fromkeys(boundaries, self.config.wire),
            present=action.kept | action.transferred,
            intact_blocks=action.intact_blocks,
        )

    def _drain_ring(self, epoch: Epoch) -> None:
        self._draining = epoch
        asyncio.get_running_loop().call_later(DRAIN_LIMIT_S, self._end_draining, epoch)
        self._engine.drain_ring()

    def drained(self) -> None:
        """Nothing is in flight any more in the ring that was asked to drain."""
        if self._draining is not None:
            self._end_draining(self._draining)

    def _end_draining(self, epoch: Epoch) -> None:
        """Also when time is up: what is still in flight is given up, and computed again."""
        if self._draining != epoch:
            return
        self._draining = None
        self._close_ring()
        self.handle(on.RingDrained(epoch))

    def _close_ring(self) -> None:
        self._draining = None
        if self._opening is not None:
            self._opening.cancel()
        if self._is_ring_open:
            self._is_ring_open = False
            self._closed_at_s = asyncio.get_running_loop().time()
            self._engine.close_ring()
        self._ring.shut()

    async def _stop_opening(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        await self._ring.end()

    async def configure(self, name: str, memory_budget_bytes: int | None, num_threads: int | None) -> cluster_pb2.CapabilitiesChanged:
        """Tell a member other limits, and wait for its answer. Raises PeerUnreachable if it is lost, DeadlineExceeded."""
        lease = self._holders.get(name)
        if lease is None or lease.is_over:
            raise PeerUnreachable(f"shard {name!r} is not connected; try again when it is back")
        answer = lease.expect_limits()
        self.handle(on.ConfigureRequested(name, memory_budget_bytes, num_threads))
        try:
            return await asyncio.wait_for(answer, CONFIGURE_LIMIT_S)
        except TimeoutError:
            words = f"shard {name!r} has not answered within {CONFIGURE_LIMIT_S:g} s; `dairllm status` shows its limits"
            raise DeadlineExceeded(words) from None

    def closed_for_s(self) -> float | None:
        """How long ago an open ring was closed: 0 while one is open, None if none ever was."""
        if self._is_ring_open:
            return 0.0
        return asyncio.get_running_loop().time() - self._closed_at_s if self._closed_at_s else None

    # Leases

    async def join(self, requests: AsyncIterator[cluster_pb2.JoinRequest], observed_host: str) -> AsyncIterator[cluster_pb2.JoinResponse]:
        """Serve ClusterService.Join. Raises the DairllmError that ends the lease."""
        first = await first_request(requests, "hello")
        lease = self._new_lease(first.hello, observed_host)
        reader = asyncio.create_task(self._read(lease, requests), name=f"lease-{lease.name}")
        try:
            while (response := await lease.responses.get()) is not None:
                if isinstance(response, DairllmError):
                    raise response
                yield response
        finally:
            reader.cancel()
            self._forget(lease)

    def _new_lease(self, hello: cluster_pb2.Hello, observed_host: str) -> Lease:
        if hello.name == COORDINATOR_NAME:
            raise NameTaken(f"{COORDINATOR_NAME!r} is the coordinator's name; start the shard with another --name")
        facts = hello_from_proto(hello)
        lease = Lease(LeaseId(next(self._lease_ids)), facts.name, facts.boot_id, Place(facts.addresses, observed_host))
        self._leases[lease.id] = lease
        self.handle(on.JoinRequested(lease.id, facts))
        return lease

    def _forget(self, lease: Lease) -> None:
        self._break(lease)
        del self._leases[lease.id]
        if self._holders.get(lease.name) is lease:
            del self._holders[lease.name]

    def _break(self, lease: Lease) -> None:
        if not lease.is_over:
            lease.end(None)
            self.handle(on.LeaseBroken(lease.name, lease.boot_id, lease.id, "the connection ended"))

    async def _read(self, lease: Lease, requests: AsyncIterator[cluster_pb2.JoinRequest]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for request in requests:
                if not lease.is_over:
                    self._hear(lease, request)
        self._break(lease)

    def _hear(self, lease: Lease, request: cluster_pb2.JoinRequest) -> None:
        name, boot_id = lease.name, lease.boot_id
        match request.WhichOneof("message"):
            case "heartbeat":
                beat = request.heartbeat
                lease.send(cluster_pb2.JoinResponse(heartbeat_ack=cluster_pb2.HeartbeatAck(number=beat.number)))
                self.handle(on.HeartbeatReceived(name, boot_id, usage_from_proto(beat.usage), beat.round_trip_us))
            case "load_progress":
                progress = request.load_progress
                self.handle(on.LoadProgressed(name, boot_id, Epoch(progress.epoch), progress_from_proto(progress)))
            case "stage_ready":
                ready = request.stage_ready
                self.handle(on.StageLoaded(name, boot_id, Epoch(ready.epoch), ready.weights_bytes, ready.kv_cache_bytes, ready.load_s))
            case "stage_failed":
                failed = request.stage_failed
                self.handle(
                    on.StageLoadFailed(name, boot_id, Epoch(failed.epoch), failed.message, failed.retryable, failed.needs_exclusive)
                )
            case "edge_lost":
                lost = request.edge_lost
                self.handle(on.EdgeBroken(Epoch(lost.epoch), name, lost.peer, lost.message, lost.silent))
            case "stage_activated":
                activated = request.stage_activated
                units = frozenset(activated.transferred_units)
                event = on.StageActivated(
                    name, boot_id, Epoch(activated.epoch), units, activated.transferred_bytes, activated.seconds, activated.note
                )
                self.handle(event)
            case "capabilities_changed":
                capabilities = capabilities_from_proto(request.capabilities_changed.capabilities)
                self.handle(on.CapabilitiesChanged(name, boot_id, capabilities, request.capabilities_changed.refusal))
                lease.tell_limits(request.capabilities_changed)
            case "leaving" if request.leaving.drain:
                self.handle(on.ShardLeaving(name, boot_id, request.leaving.reason))
            case "leaving":
                self.handle(on.ShardLeft(name, boot_id, lease.id, request.leaving.reason))
                lease.end(None)
            case other:
                lease.end(InvalidRequest(f"shard {name!r} sent {other or 'an unknown message'} on its Join stream, which is not expected"))
