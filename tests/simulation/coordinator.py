"""The coordinator: the real cluster machine and the real scheduler, and what connects them to shards."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dairllm.coordinator.cluster.actions import (
    Action,
    ActivateStage,
    AdmitShard,
    AskForProof,
    AskToDrain,
    AssignUnits,
    CloseRing,
    ConfigureLimits,
    EndLease,
    OpenRing,
    RefuseShard,
    ReleaseShard,
    TellEvent,
)
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.events import (
    Event,
    FramesAwaited,
    JoinRequested,
    LeaseBroken,
    ModelRegistered,
    RingBroken,
    RingDrained,
    RingOpened,
    StepMeasured,
    TimePassed,
)
from dairllm.coordinator.cluster.identities import Epoch, LeaseId
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.shard_reports import ShardHello
from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.recovery import StagePlace
from dairllm.coordinator.planner import ModelDemand
from dairllm.mesh.ring.frames import MicroBatch
from tests.engine.shard_contents import Passage
from tests.simulation.engine import Answer, SimulatedEngine
from tests.simulation.network import Network, Stream
from tests.simulation.shard import KV_BLOCK_TOKENS, Activation, Edge, Message, RingKey, SimulatedShard, Welcomed
from tests.simulation.world import World

TICK_S = 0.25
DRAIN_LIMIT_S = 2.0
MEASURE_INTERVAL_S = 1.0
JoinStream = Stream[Message]


@dataclass
class Lease:
    shard: SimulatedShard
    boot: int
    stream: JoinStream
    name: str = ""


class SimulatedCoordinator:
    """One life of the coordinator: it forgets everything when it is started again."""

    def __init__(
        self,
        world: World,
        network: Network,
        model: ModelDemand,
        config: ClusterConfig,
        find: Callable[[str], SimulatedShard | None],
        counts: Counter[str],
    ) -> None:
        self.world, self.network, self.model, self._find = world, network, model, find
        self.id = config.coordinator_id
        self.machine = ClusterMachine(config)
        self.engine = SimulatedEngine(world, self._put_on_ring, self._drained_at_once, self.handle, counts)
        self.is_alive = True
        self.leases: dict[LeaseId, Lease] = {}
        self.holders: dict[str, LeaseId] = {}
        self.opening: OpenRing | None = None
        self.open: OpenRing | None = None
        self.draining: Epoch | None = None
        self.incoming: Edge | None = None
        self.outgoing: Edge | None = None
        self.epochs: list[Epoch] = []
        self.under_way: dict[int, int] = {}
        self.num_back = 0
        self.handle(ModelRegistered(model))
        self._tick()
        self._measure()

    # -- the machine

    def handle(self, event: Event) -> None:
        if not self.is_alive:
            return
        actions = self.machine.handle(event, self.world.now_s)
        self.machine.check_invariants()
        for action in actions:
            self._perform(action)

    def _tick(self) -> None:
        if self.is_alive:
            if self.open:
                self.handle(FramesAwaited(self.open.epoch, self.num_back, max(self.under_way.values(), default=0)))
            self.handle(TimePassed(self.engine.is_idle))
            self.engine.give_up_if_due()
            if self.open and self.engine.is_overdue():
                self.handle(RingBroken(self.open.epoch, "a frame did not come back"))
            self.world.after(TICK_S, self._tick)

    def _perform(self, action: Action) -> None:
        match action:
            case TellEvent():
                self.world.say(action.event.text)
            case AdmitShard():
                self.holders[action.name] = action.lease
                self._send(action.name, Welcomed(self.id))
            case RefuseShard() | EndLease():
                self._end(action.lease)
            case AssignUnits() | ActivateStage() | ReleaseShard() | AskToDrain() | ConfigureLimits() | AskForProof():
                self._check_order(action)
                self._send(action.name, action)
            case OpenRing():
                self._open(action)
            case CloseRing():
                self._close(action)

    def _check_order(self, action: Action) -> None:
        if isinstance(action, AssignUnits):
            self.world.require(not self.epochs or action.epoch >= self.epochs[-1], f"epoch {action.epoch} after {self.epochs[-1:]}")
            self.world.require(not (action.exclusive and self.open), "units are freed under an open ring")
            self.epochs.append(action.epoch)
        if isinstance(action, ActivateStage):
            self.world.require(self.open is None, "stages change under an open ring")

    def _send(self, name: str, action: Action | Welcomed) -> None:
        lease = self.leases.get(self.holders.get(name, LeaseId(0)))
        if lease:
            lease.stream.to_client.send(self._completed(action))

    def _completed(self, action: Action | Welcomed) -> Message:
        if not isinstance(action, ActivateStage):
            return action
        return Activation(action, self.engine.used_block_ids if action.moves else (), self.engine.alive_ring_ids)

    # -- leases

    def connect(self, shard: SimulatedShard, number: int) -> JoinStream:
        lease_id, boot = LeaseId(number), shard.boot
        stream: JoinStream = Stream(
            self.world,
            self.network,
            lambda message: self._hear(lease_id, message),
            lambda action: shard.when_awake(boot, lambda: shard.hear(action) if shard.stream is stream else None),
            lambda: self._break(lease_id),
            lambda: shard.when_awake(boot, lambda: shard.lose_lease(stream)),
        )
        self.leases[lease_id] = Lease(shard, boot, stream)
        return stream

    def _hear(self, lease_id: LeaseId, message: Message) -> None:
        lease = self.leases.get(lease_id)
        if lease is None or not self.is_alive:
            return
        if isinstance(message, ShardHello):
            lease.name = message.name
            self.handle(JoinRequested(lease_id, message))
        else:
            self.handle(message)  # type: ignore[arg-type]

    def _break(self, lease_id: LeaseId) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease:
            self.handle(LeaseBroken(lease.name, str(lease.boot), lease_id, "connection reset"))

    def _end(self, lease_id: LeaseId) -> None:
        lease = self.leases.pop(lease_id, None)
        if lease:
            lease.stream.close_server()

    def crash(self) -> None:
        self.world.say("the coordinator crashes")
        self.is_alive = False
        for lease in self.leases.values():
            lease.stream.close_server()
        self.engine.fail_all("the coordinator was lost")
        self._close_edges()

    # -- the ring

    def _open(self, action: OpenRing) -> None:
        self.opening = action

        def dialled() -> None:
            if self.opening is not action or not self.is_alive:
                return
            self.opening = None
            first = self._find(action.first.name)
            key = RingKey(self.id, action.epoch)
            edge = first.accept(key, lambda: self._lose_edge(edge)) if first and not self.world.chance(0.02) else None
            if edge is None:
                self.handle(RingBroken(action.epoch, "the first shard did not answer"))
                return
            self.open, self.outgoing = action, edge
            self.under_way, self.num_back = {}, 0
            self.engine.open_ring(self._geometry(action))
            self.handle(RingOpened(action.epoch))

        self.world.after(self.network.delay_s(), dialled)

    def _geometry(self, ring: OpenRing) -> RingGeometry:
        placement = tuple(StagePlace(holder, stage.units) for holder, stage in zip(ring.holders, ring.plan.stages, strict=True))
        present = ring.kept | ring.transferred
        return RingGeometry(
            ring.epoch,
            placement,
            ring.plan.num_kv_blocks,
            KV_BLOCK_TOKENS,
            "F32",
            present,
            ring.intact_blocks,
            has_moved=bool(ring.transferred),
        )

    def _lose_edge(self, edge: Edge | None) -> None:
        if self.is_alive and self.open and edge is self.outgoing:
            self.handle(RingBroken(self.open.epoch, "the edge to the first shard broke"))

    def accept_last(self, key: RingKey, on_end: Callable[[], None]) -> Edge | None:
        if not self.is_alive or self.open is None or key != (self.id, self.open.epoch):
            return None

        def take(passage: Passage) -> None:
            if self.incoming is edge:
                self.under_way.pop(passage.batch.batch_id, None)
                self.num_back += 1
                self.engine.complete(passage.result())

        edge: Edge = Stream(self.world, self.network, take, lambda _: None, lambda: None, on_end)
        self.incoming = edge
        return edge

    def _put_on_ring(self, batch: MicroBatch) -> None:
        assert self.open is not None, "a frame without a ring"
        assert batch.epoch == self.open.epoch
        assert self.outgoing is not None
        self.under_way[batch.batch_id] = max(1, batch.num_rows)
        self.outgoing.to_server.send(Passage.begin(batch))

    def _close(self, action: CloseRing) -> None:
        if action.graceful:
            self.draining = action.epoch
            self.world.after(DRAIN_LIMIT_S, lambda: self._end_draining(action.epoch))
            self.engine.drain_ring()
        else:
            self._shut_ring()

    def _shut_ring(self) -> None:
        self.draining = self.opening = None
        self._close_edges()
        if self.open:
            self.open = None
            self.engine.close_ring()

    def _close_edges(self) -> None:
        if self.outgoing:
            self.outgoing.close_client()
        if self.incoming:
            self.incoming.close_server()
        self.outgoing = self.incoming = None

    def _drained_at_once(self) -> None:
        if self.draining is not None:
            self._end_draining(self.draining)

    def _end_draining(self, epoch: Epoch) -> None:
        """Also when time is up: what is still in flight is given up."""
        if self.draining == epoch and self.is_alive:
            self._shut_ring()
            self.handle(RingDrained(epoch))

    def submit(self, answer: Answer) -> None:
        self.engine.submit(answer)

    def _measure(self) -> None:
        if not self.is_alive:
            return
        ring = self.open
        for stage in ring.plan.stages if ring else ():
            shard = self._find(stage.shard)
            if ring and shard and shard.is_alive:
                read_bytes = self.model.bytes_read_per_step(stage.units)
                self.handle(StepMeasured(ring.epoch, stage.shard, shard.s_per_byte * shard.slowness * read_bytes))
        self.world.after(MEASURE_INTERVAL_S, self._measure)
