"""A shard as the protocol demands it, with a model of what its caches hold.

It is as forgetful as it may be: a layer that it gives up with a switch can be fetched until the next one, but should the layer come
back, it begins empty, unless its cache was transferred.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dairllm.coordinator.cluster.actions import Action, ActivateStage, AskToDrain, AssignUnits, ConfigureLimits, ReleaseShard
from dairllm.coordinator.cluster.events import (
    CapabilitiesChanged,
    EdgeBroken,
    Event,
    HeartbeatReceived,
    ShardLeaving,
    StageActivated,
    StageLoaded,
    StageLoadFailed,
)
from dairllm.coordinator.cluster.facts import Epoch, HeldUnits, ShardCapabilities, ShardHello, ShardUsage
from dairllm.coordinator.planner import ModelDemand
from tests.simulation.arithmetic import attend, embed, sample
from tests.simulation.network import Network, Stream
from tests.simulation.world import World

CLUSTER_HASH = "simulated"
HEARTBEAT_S = 1.0
LEASE_TIMEOUT_S = 4.5
FETCH_TIMEOUT_S = 1.0
AWAY_S = 4.0
"""Who has left comes back after it."""
KvCache = dict[int, list[int]]
"""Values that entered a layer, by sequence."""


class Frame(NamedTuple):
    """rows: values at the boundary where it is; token ids before the first unit."""

    epoch: Epoch
    sequence: int
    first_position: int
    rows: tuple[int, ...]


class Members(Protocol):
    """What a shard can reach."""

    def connect(self, shard: "SimulatedShard") -> Stream[Action | Event | ShardHello] | None: ...
    def find(self, name: str) -> "SimulatedShard | None": ...
    def receive(self, frame: Frame) -> None: ...


@dataclass
class Prepared:
    order: AssignUnits
    is_ready: bool = False


@dataclass
class SimulatedShard:
    world: World
    network: Network
    members: Members
    model: ModelDemand
    name: str
    room_bytes: int
    s_per_byte: float
    boot: int = 0
    is_alive: bool = False
    is_leaving: bool = False
    frozen_until_s: float = 0.0
    slowness: float = 1.0
    stream: Stream[Action | Event | ShardHello] | None = None
    weights: set[int] = field(default_factory=set)
    epoch: Epoch = Epoch(0)  # noqa: RUF009
    stage: AssignUnits | None = None
    prepared: Prepared | None = None
    caches: dict[int, KvCache] = field(default_factory=dict)
    attic: dict[int, KvCache] = field(default_factory=dict)
    bytes_loaded: int = 0
    waiting: list[Callable[[], None]] = field(default_factory=list)

    # -- life

    def start(self) -> None:
        self.boot += 1
        self.is_alive, self.is_leaving, self.frozen_until_s = True, False, 0.0
        self.weights, self.caches, self.attic, self.stage, self.prepared = set(), {}, {}, None, None
        self.epoch, self.stream = Epoch(0), None
        self.world.say(f"{self.name} starts (boot {self.boot})")
        self.join(self.boot)

    def crash(self) -> None:
        self.world.say(f"{self.name} crashes")
        self.is_alive = False
        if self.stream:
            self.stream.close_client()
            self.stream = None

    def freeze(self, seconds: float) -> None:
        self.world.say(f"{self.name} freezes for {seconds:.1f} s")
        self.frozen_until_s = max(self.frozen_until_s, self.world.now_s + seconds)

    def when_awake(self, boot: int, happen: Callable[[], None]) -> None:
        """What a frozen process receives waits; what a dead one receives is gone."""
        if not self.is_alive or boot != self.boot:
            return
        if self.world.now_s < self.frozen_until_s:
            self.world.after(self.frozen_until_s - self.world.now_s, lambda: self.when_awake(boot, happen))
        else:
            happen()

    def later(self, delay_s: float, happen: Callable[[], None]) -> None:
        boot = self.boot
        self.world.after(delay_s, lambda: self.when_awake(boot, happen))

    # -- the lease

    def join(self, boot: int) -> None:
        if not self.is_alive or boot != self.boot or self.stream is not None:
            return
        self.stream = self.members.connect(self)
        if self.stream is None:
            self.later(self.world.random.uniform(0.2, 0.6), lambda: self.join(boot))
            return
        self.stream.to_server.send(self.hello())
        self.beat(self.stream)

    def hello(self) -> ShardHello:
        capabilities = self.capabilities()
        held = HeldUnits(self.model.digest, frozenset(self.weights))
        return ShardHello(self.name, str(self.boot), (f"{self.name}:1",), capabilities, CLUSTER_HASH, 1, 0, "1", held, self.epoch)

    def capabilities(self) -> ShardCapabilities:
        abilities = frozenset({self.model.architecture}), self.model.block_formats
        return ShardCapabilities(self.room_bytes, 0, 2, "scalar", "simulated", self.s_per_byte, 0.0, 0.0, *abilities)

    def beat(self, stream: Stream[Action | Event | ShardHello]) -> None:
        if self.stream is stream:
            stream.to_server.send(HeartbeatReceived(self.name, str(self.boot), ShardUsage(), 400))
            self.later(HEARTBEAT_S, lambda: self.beat(stream))

    def lose_lease(self, stream: Stream[Action | Event | ShardHello]) -> None:
        if self.stream is stream:
            self.stream = None
            boot = self.boot
            self.later(self.world.random.uniform(0.1, 0.4), lambda: self.join(boot))

    def tell(self, event: Event) -> None:
        if self.stream:
            self.stream.to_server.send(event)

    def hear(self, action: Action) -> None:
        match action:
            case AssignUnits():
                self.prepare(action)
            case ActivateStage():
                self.activate(action)
            case ReleaseShard():
                self.release(action)
            case AskToDrain():
                self.leave()
            case ConfigureLimits() if action.memory_budget_bytes is not None:
                self.room_bytes = action.memory_budget_bytes
                self.tell(CapabilitiesChanged(self.name, str(self.boot), self.capabilities()))

    def leave(self) -> None:
        self.is_leaving = True
        self.tell(ShardLeaving(self.name, str(self.boot), "asked to"))

    # -- stages

    def prepare(self, order: AssignUnits) -> None:
        self.epoch = max(self.epoch, order.epoch)
        if order.exclusive and self.stage:
            for unit in set(self.stage.units) - set(order.units):
                self.attic[unit] = self.caches.pop(unit, {})
            self.weights &= set(order.units)
        kept = set(self.stage.units) if self.stage and not order.exclusive else set()
        self.weights &= kept | set(order.units)
        missing = set(order.units) - self.weights
        size_bytes = sum(self.model.unit_sizes_bytes[unit] for unit in self.weights | missing)
        if size_bytes > self.room_bytes and missing:
            self.tell(StageLoadFailed(self.name, str(self.boot), order.epoch, "no room for both", False, not order.exclusive))
            return
        self.prepared = Prepared(order)
        load_bytes = sum(self.model.unit_sizes_bytes[unit] for unit in missing)
        self.later(load_bytes * 1e-6 + self.world.random.uniform(0.0, 0.01), lambda: self.finish_loading(order, load_bytes))

    def finish_loading(self, order: AssignUnits, load_bytes: int) -> None:
        if self.prepared is None or self.prepared.order is not order:
            return
        if load_bytes and self.world.chance(0.02):
            self.tell(StageLoadFailed(self.name, str(self.boot), order.epoch, "a source was away", True))
            return
        self.weights |= set(order.units)
        self.bytes_loaded += load_bytes
        self.prepared.is_ready = True
        self.tell(StageLoaded(self.name, str(self.boot), order.epoch, load_bytes, 0, 0.1))

    def activate(self, order: ActivateStage) -> None:
        if self.stage and self.stage.epoch == order.epoch:
            self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(), 0, 0.0))
            return
        prepared = self.prepared
        if prepared is None or not prepared.is_ready or prepared.order.epoch != order.epoch:
            self.tell(StageLoadFailed(self.name, str(self.boot), order.epoch, "nothing was prepared for it", True))
            return
        before = set(self.stage.units) if self.stage else set()
        units = set(prepared.order.units)
        present = {**self.attic, **self.caches}
        self.attic = {unit: cache for unit, cache in present.items() if unit not in units & before}
        self.caches = {unit: self.caches.get(unit, {}) if unit in before else {} for unit in units}
        self.stage, self.prepared = prepared.order, None
        self.weights &= units
        self.fetch(order)

    def fetch(self, order: ActivateStage) -> None:
        moves = [(unit, move.source.name) for move in order.moves for unit in move.units]
        taken: set[int] = set()
        left = {"count": len(moves)}

        def finish(unit: int, cache: KvCache | None) -> None:
            if cache is not None and left["count"]:
                self.caches[unit] = cache
                taken.add(unit)
            left["count"] -= 1
            if left["count"] == 0:
                note = "" if len(taken) == len(moves) else "the old owner did not answer"
                self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(taken), 0, 0.01, note))

        if not moves:
            self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(), 0, 0.0))
        for unit, source in moves:
            self.fetch_unit(order, unit, source, finish)

    def fetch_unit(self, order: ActivateStage, unit: int, source: str, finish: Callable[[int, KvCache | None], None]) -> None:
        done: list[bool] = []

        def once(cache: KvCache | None) -> None:
            if not done and self.stage and self.stage.epoch == order.epoch:
                done.append(True)
                finish(unit, cache)

        def ask() -> None:
            owner = self.members.find(source)
            if owner is None or not owner.is_alive or self.world.chance(0.05):
                self.later(0.01, lambda: once(None))
                return
            boot = owner.boot
            owner.when_awake(boot, lambda: self.later(self.network.delay_s(), lambda: once(owner.copy_of(unit))))

        self.network.send(ask)
        self.later(FETCH_TIMEOUT_S, lambda: once(None))

    def copy_of(self, unit: int) -> KvCache | None:
        cache = self.caches.get(unit, self.attic.get(unit))
        return None if cache is None else {sequence: list(values) for sequence, values in cache.items()}

    def release(self, order: ReleaseShard) -> None:
        if self.stage and self.stage.epoch > order.epoch:
            return
        if self.prepared and order.epoch >= self.prepared.order.epoch:
            self.prepared = None
        if self.stage is None or order.epoch >= self.stage.epoch:
            self.stage, self.caches, self.attic, self.weights = None, {}, {}, set()
        if order.leave:
            self.world.say(f"{self.name} leaves")
            self.crash()
            self.world.after(AWAY_S, lambda: None if self.is_alive else self.start())

    # -- frames

    def receive(self, frame: Frame) -> None:
        stage = self.stage
        if stage is None or stage.epoch != frame.epoch or not self.weights.issuperset(stage.units):
            return
        self.attic = {}
        rows = frame.rows
        for unit in stage.units:
            rows = self.compute(unit, frame._replace(rows=rows))
        onward = frame._replace(rows=rows)
        spent_s = 0.004 * self.slowness * len(stage.units)
        self.later(spent_s, lambda: self.send_on(stage, onward))

    def compute(self, unit: int, frame: Frame) -> tuple[int, ...]:
        if unit == 0:
            return tuple(embed(token) for token in frame.rows)
        if unit == self.model.num_units - 1:
            return tuple(sample(value) for value in frame.rows)
        cache = self.caches[unit].setdefault(frame.sequence, [])
        missing = f"{len(cache)} of {frame.first_position} rows of sequence {frame.sequence}"
        self.world.require(len(cache) >= frame.first_position, f"{self.name} was believed to have unit {unit}, and has {missing}")
        del cache[frame.first_position :]
        rows = []
        for value in frame.rows:
            cache.append(value)
            rows.append(attend(unit, cache))
        return tuple(rows)

    def send_on(self, stage: AssignUnits, frame: Frame) -> None:
        if stage.next is None:
            self.network.send(lambda: self.members.receive(frame))
            return
        following = self.members.find(stage.next.name)
        if following is None or not following.is_alive:
            self.tell(EdgeBroken(stage.epoch, self.name, stage.next.name, "connection refused"))
            return
        boot = following.boot
        self.network.send(lambda: following.when_awake(boot, lambda: following.receive(frame)))
