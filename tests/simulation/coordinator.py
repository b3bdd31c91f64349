"""The coordinator: the real cluster machine, and an engine that generates the answers of a few sequences one frame at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dairllm.coordinator.cluster.actions import (
    Action,
    ActivateStage,
    AdmitShard,
    AskToDrain,
    AssignUnits,
    CloseRing,
    ConfigureLimits,
    EndLease,
    OpenRing,
    RecordEvent,
    RefuseShard,
    ReleaseShard,
)
from dairllm.coordinator.cluster.events import (
    Event,
    JoinRequested,
    LeaseBroken,
    ModelRegistered,
    RingBroken,
    RingDrained,
    RingOpened,
    StepMeasured,
    TimePassed,
)
from dairllm.coordinator.cluster.facts import Epoch, LeaseId, ShardHello
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.state import ClusterConfig
from dairllm.coordinator.planner import ModelDemand
from tests.simulation.arithmetic import answer
from tests.simulation.network import Network, Stream
from tests.simulation.shard import CLUSTER_HASH, HEARTBEAT_S, LEASE_TIMEOUT_S, Frame, SimulatedShard
from tests.simulation.world import World

TICK_S = 0.25
DRAIN_LIMIT_S = 2.0
MEASURE_INTERVAL_S = 1.0
JoinStream = Stream[Action | Event | ShardHello]


@dataclass
class Sequence:
    """completed: rows whose results have come back, for which all shards have the cache."""

    number: int
    prompt: tuple[int, ...]
    num_tokens: int
    generated: list[int] = field(default_factory=list)
    completed: int = 0
    in_flight: Frame | None = None
    has_failed: bool = False

    @property
    def is_done(self) -> bool:
        return self.has_failed or len(self.generated) == self.num_tokens

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt, *self.generated)


@dataclass
class Lease:
    shard: SimulatedShard
    boot: int
    stream: JoinStream
    name: str = ""


class SimulatedCoordinator:
    """One life of the coordinator: it forgets everything when it is started again."""

    def __init__(
        self, world: World, network: Network, model: ModelDemand, min_shards: int, find: Callable[[str], SimulatedShard | None]
    ) -> None:
        self.world, self.network, self.model, self._find = world, network, model, find
        config = ClusterConfig(
            CLUSTER_HASH, 1, min_shards=min_shards, kv_block_tokens=4, heartbeat_interval_s=HEARTBEAT_S, lease_timeout_s=LEASE_TIMEOUT_S
        )
        self.machine = ClusterMachine(config)
        self.is_alive = True
        self.leases: dict[LeaseId, Lease] = {}
        self.holders: dict[str, LeaseId] = {}
        self.sequences: dict[int, Sequence] = {}
        self.opening: OpenRing | None = None
        self.open: OpenRing | None = None
        self.is_draining = False
        self.epochs: list[Epoch] = []
        self.handle(ModelRegistered(model))
        self._tick()
        self._measure()

    # -- the machine

    def handle(self, event: Event) -> None:
        if not self.is_alive:
            return
        actions = self.machine.handle(event, self.world.now_s)
        try:
            self.machine.check_invariants()
        except AssertionError as error:
            self.world.require(False, f"after {event}: {error}")
        for action in actions:
            self._perform(action)

    def _tick(self) -> None:
        if self.is_alive:
            self.handle(TimePassed())
            self.world.after(TICK_S, self._tick)

    def _perform(self, action: Action) -> None:
        match action:
            case RecordEvent():
                self.world.say(action.record.text)
            case AdmitShard():
                self.holders[action.name] = action.lease
            case RefuseShard() | EndLease():
                self._end(action.lease)
            case AssignUnits() | ActivateStage() | ReleaseShard() | AskToDrain() | ConfigureLimits():
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

    def _send(self, name: str, action: Action) -> None:
        lease = self.leases.get(self.holders.get(name, LeaseId(0)))
        if lease:
            lease.stream.to_client.send(action)

    # -- leases

    def connect(self, shard: SimulatedShard, number: int) -> JoinStream:
        lease_id, boot = LeaseId(number), shard.boot
        stream: JoinStream = Stream(
            self.world,
            self.network,
            lambda message: self._hear(lease_id, message),
            lambda action: shard.when_awake(boot, lambda: shard.hear(action) if shard.stream is stream else None),  # type: ignore[arg-type]
            lambda: self._break(lease_id),
            lambda: shard.when_awake(boot, lambda: shard.lose_lease(stream)),
        )
        self.leases[lease_id] = Lease(shard, boot, stream)
        return stream

    def _hear(self, lease_id: LeaseId, message: Action | Event | ShardHello) -> None:
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
        for sequence in self.sequences.values():
            sequence.has_failed = sequence.has_failed or not sequence.is_done

    # -- the ring

    def _open(self, action: OpenRing) -> None:
        self.opening = action

        def opened() -> None:
            first = self._find(action.first.name)
            ready = first is not None and first.is_alive and first.stage is not None and first.stage.epoch == action.epoch
            if self.opening is not action:
                return
            self.opening = None
            if not ready or self.world.chance(0.02):
                self.handle(RingBroken(action.epoch, "the first shard did not answer"))
                return
            self.open, self.is_draining = action, False
            self.handle(RingOpened(action.epoch))
            if self.open is action:
                self._resume(action)

        self.world.after(self.network.delay_s(), opened)

    def _resume(self, ring: OpenRing) -> None:
        """A sequence goes on where every layer has its cache, and begins again where one has not."""
        intact = ring.kept | ring.transferred
        is_whole = intact >= set(range(1, self.model.num_layers + 1))
        self.world.say(f"ring {ring.epoch} is open; sequences {'go on' if is_whole else 'begin again'}")
        for sequence in self.sequences.values():
            if not is_whole:
                sequence.completed = 0
            self._advance(sequence)

    def _close(self, action: CloseRing) -> None:
        self.is_draining = action.graceful
        if not action.graceful:
            self._drop_frames()
            self.open = self.opening = None
            return
        self.world.after(DRAIN_LIMIT_S, lambda: self._drained(action.epoch))
        self._look_if_drained()

    def _drop_frames(self) -> None:
        for sequence in self.sequences.values():
            sequence.in_flight = None

    def _look_if_drained(self) -> None:
        if self.is_draining and self.open and not any(sequence.in_flight for sequence in self.sequences.values()):
            epoch = self.open.epoch
            self.world.after(0.0, lambda: self._drained(epoch))

    def _drained(self, epoch: Epoch) -> None:
        if self.is_draining and self.open and self.open.epoch == epoch:
            self._drop_frames()
            self.open, self.is_draining = None, False
            self.handle(RingDrained(epoch))

    # -- sequences

    def submit(self, sequence: Sequence) -> None:
        self.sequences[sequence.number] = sequence
        self._advance(sequence)

    def _advance(self, sequence: Sequence) -> None:
        if self.open is None or self.is_draining or sequence.is_done or sequence.in_flight:
            return
        ring, rows = self.open, sequence.tokens[sequence.completed :]
        frame = Frame(ring.epoch, sequence.number, sequence.completed, rows)
        sequence.in_flight = frame
        first = self._find(ring.first.name)
        if first is None or not first.is_alive:
            self.handle(RingBroken(ring.epoch, "the edge to the first shard broke"))
            return
        boot = first.boot
        self.network.send(lambda: first.when_awake(boot, lambda: first.receive(frame)))

    def receive(self, frame: Frame) -> None:
        sequence = self.sequences.get(frame.sequence)
        if self.open is None or frame.epoch != self.open.epoch or sequence is None or sequence.in_flight is None:
            return
        sequence.in_flight = None
        sequence.completed = frame.first_position + len(frame.rows)
        if sequence.completed == len(sequence.tokens):
            sequence.generated.append(frame.rows[-1])
            expected = answer(sequence.prompt, len(sequence.generated), self.model.num_layers)
            self.world.require(sequence.generated == expected, f"sequence {sequence.number} got {sequence.generated}, expected {expected}")
        self._look_if_drained()
        self._advance(sequence)

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
