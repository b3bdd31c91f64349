"""A shard as the protocol demands it: membership, stages, edges and frames. What it holds is `tests.engine.shard_contents`.

It is as forgetful as it may be: a layer that it gives up with a switch can be fetched until the next one, but should the layer come
back, it begins empty, unless its cache was transferred.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from dairllm.coordinator.cluster.actions import Action, ActivateStage, AskForProof, AskToDrain, AssignUnits, ConfigureLimits, ReleaseShard
from dairllm.coordinator.cluster.events import (
    CapabilitiesChanged,
    EdgeBroken,
    Event,
    HeartbeatReceived,
    ProofGiven,
    ShardLeaving,
    StageActivated,
    StageLoaded,
    StageLoadFailed,
)
from dairllm.coordinator.cluster.identities import Epoch
from dairllm.coordinator.cluster.shard_reports import HeldUnits, ShardCapabilities, ShardHello, ShardUsage, ShardWork
from dairllm.coordinator.planner import ModelDemand
from tests.engine.shard_contents import Cells, Passage, ShardContents
from tests.simulation.network import Network, Stream
from tests.simulation.world import World

CLUSTER_HASH = "simulated"
KV_BLOCK_TOKENS = 4
HEARTBEAT_S = 1.0
LEASE_TIMEOUT_S = 4.5
FETCH_TIMEOUT_S = 1.0
UNIT_S = 0.012
"""What a frame takes in one unit."""
AWAY_S = 4.0
"""Who has left comes back after it."""


class Activation(NamedTuple):
    """What the coordinator adds to the machine's order."""

    order: ActivateStage
    block_ids: tuple[int, ...]
    alive: tuple[int, ...]


class Welcomed(NamedTuple):
    """coordinator_id: of one run of the coordinator, whose epochs are its own."""

    coordinator_id: str


class RingKey(NamedTuple):
    """What tells the ring of an epoch from that of another run of the coordinator."""

    coordinator_id: str
    epoch: Epoch


Message = Action | Activation | Event | ShardHello | Welcomed
Edge = Stream[Passage]
"""From one stage to the next; its client sends."""


class Members(Protocol):
    """What a shard can reach."""

    def connect(self, shard: "SimulatedShard") -> Stream[Message] | None: ...
    def find(self, name: str) -> "SimulatedShard | None": ...
    def accept_last(self, key: RingKey, on_end: Callable[[], None]) -> Edge | None: ...


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
    hangs_until_s: float = 0.0
    slowness: float = 1.0
    stream: Stream[Message] | None = None
    weights: set[int] = field(default_factory=set)
    coordinator_id: str = ""
    is_member: bool = False
    stage: AssignUnits | None = None
    prepared: Prepared | None = None
    has_stopped: bool = False
    """Its stage had to make room for another."""
    most_sent_rows: int | None = None
    contents: ShardContents = field(init=False)
    attic: dict[int, Cells] = field(default_factory=dict)
    bytes_loaded: int = 0
    incoming: Edge | None = None
    outgoing: Edge | None = None
    inbox: deque[Passage] = field(default_factory=deque)
    is_computing: bool = False
    frames_received: int = 0
    frames_computed: int = 0
    frames_sent: int = 0
    cpu_s: float = 0.0
    waiting: deque[Callable[[], None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._empty()

    def _empty(self) -> None:
        self.contents = ShardContents(self.name, KV_BLOCK_TOKENS, self.most_sent_rows)
        self.weights, self.attic, self.stage, self.has_stopped = set(), {}, None, False

    # -- life

    def start(self) -> None:
        self.boot += 1
        self.is_alive, self.is_leaving, self.frozen_until_s, self.hangs_until_s = True, False, 0.0, 0.0
        self._empty()
        self.prepared, self.coordinator_id, self.stream = None, "", None
        self.waiting.clear()
        self.world.say(f"{self.name} starts (boot {self.boot})")
        self.join(self.boot)

    def crash(self) -> None:
        self.world.say(f"{self.name} crashes")
        self.is_alive = False
        self.close_edges()
        if self.stream:
            self.stream.close_client()
            self.stream = None

    def freeze(self, seconds: float) -> None:
        self.world.say(f"{self.name} freezes for {seconds:.1f} s")
        self.frozen_until_s = max(self.frozen_until_s, self.world.now_s + seconds)

    def hang(self, seconds: float) -> None:
        """It keeps its lease and its edges, and computes nothing."""
        self.world.say(f"{self.name} hangs for {seconds:.1f} s")
        self.hangs_until_s = max(self.hangs_until_s, self.world.now_s + seconds)

    def when_awake(self, boot: int, happen: Callable[[], None]) -> None:
        """What a frozen process receives waits, in its order; what a dead one receives is gone."""
        if not self.is_alive or boot != self.boot:
            return
        if not self.waiting and self.world.now_s >= self.frozen_until_s:
            happen()
            return
        if not self.waiting:
            self.world.after(self.frozen_until_s - self.world.now_s, lambda: self.wake(boot))
        self.waiting.append(happen)

    def wake(self, boot: int) -> None:
        if self.world.now_s < self.frozen_until_s:
            self.world.after(self.frozen_until_s - self.world.now_s, lambda: self.wake(boot))
            return
        while self.waiting and self.is_alive and boot == self.boot:
            self.waiting.popleft()()

    def later(self, delay_s: float, happen: Callable[[], None]) -> None:
        boot = self.boot
        self.world.after(delay_s, lambda: self.when_awake(boot, happen))

    # -- the lease

    def join(self, boot: int) -> None:
        if not self.is_alive or boot != self.boot or self.stream is not None:
            return
        self.is_member = False
        self.stream = self.members.connect(self)
        if self.stream is None:
            self.later(self.world.random.uniform(0.2, 0.6), lambda: self.join(boot))
            return
        self.stream.to_server.send(self.hello())
        self.beat(self.stream)

    def hello(self) -> ShardHello:
        capabilities = self.capabilities()
        held = HeldUnits(self.model.digest, frozenset(self.weights))
        return ShardHello(self.name, str(self.boot), (f"{self.name}:1",), capabilities, CLUSTER_HASH, 1, 0, "1", held)

    def capabilities(self) -> ShardCapabilities:
        abilities = self.model.block_formats, self.model.features
        return ShardCapabilities(self.room_bytes, 0, 2, "scalar", "simulated", self.s_per_byte, *abilities)

    def beat(self, stream: Stream[Message]) -> None:
        if self.stream is stream:
            stream.to_server.send(HeartbeatReceived(self.name, str(self.boot), ShardUsage(), 400, self.work_done()))
            self.later(HEARTBEAT_S, lambda: self.beat(stream))

    def work_done(self) -> ShardWork:
        if self.world.now_s >= self.hangs_until_s:
            self.cpu_s = self.world.now_s
        frames = self.frames_received, self.frames_computed, self.frames_sent
        return ShardWork(1, 1 - self.is_computing, round(self.cpu_s * 1e6), self.stage.epoch if self.stage else Epoch(0), *frames)

    def prove(self, number: int) -> None:
        self.compute(0.001, lambda: self.tell(ProofGiven(self.name, str(self.boot), number, True)))

    def compute(self, seconds: float, finish: Callable[[], None]) -> None:
        """Longer if it hangs meanwhile."""
        self.later(seconds, lambda: self.compute(left_s, finish) if (left_s := self.hangs_until_s - self.world.now_s) > 0 else finish())

    def lose_lease(self, stream: Stream[Message]) -> None:
        if self.stream is stream:
            self.stream = None
            boot = self.boot
            self.later(self.world.random.uniform(0.1, 0.4), lambda: self.join(boot))

    def tell(self, event: Event) -> None:
        """Nothing before the welcome."""
        if self.stream and self.is_member:
            self.stream.to_server.send(event)

    def hear(self, action: Message) -> None:
        match action:
            case Welcomed(coordinator_id):
                self.obey(coordinator_id)
            case AssignUnits():
                self.prepare(action)
            case Activation():
                self.activate(action)
            case ReleaseShard():
                self.release(action)
            case AskForProof():
                self.prove(action.number)
            case AskToDrain():
                self.leave()
            case ConfigureLimits() if action.memory_budget_bytes is not None:
                self.room_bytes = action.memory_budget_bytes
                self.tell(CapabilitiesChanged(self.name, str(self.boot), self.capabilities()))

    def leave(self) -> None:
        self.is_leaving = True
        self.tell(ShardLeaving(self.name, str(self.boot), "asked to"))

    def obey(self, coordinator_id: str) -> None:
        """Stages and sequences of another run of the coordinator are of no use; weights stay."""
        if self.coordinator_id not in ("", coordinator_id):
            weights = self.weights
            self.close_edges()
            self._empty()
            self.prepared, self.weights = None, weights
        self.coordinator_id, self.is_member = coordinator_id, True

    # -- stages

    def prepare(self, order: AssignUnits) -> None:
        if order.exclusive and self.stage:
            for unit in self.contents.cells.keys() - set(order.units):
                self.attic[unit] = self.contents.cells.pop(unit)
            self.has_stopped = True
            self.close_edges()
            self.weights &= set(order.units)
        if self.has_stopped:
            self.contents.shrink(order.num_kv_blocks)
        kept = set(self.stage.units) if self.stage and not order.exclusive else set()
        self.weights &= kept | set(order.units)
        missing = set(order.units) - self.weights
        size_bytes = sum(self.model.units[unit].size_bytes for unit in self.weights | missing)
        if size_bytes > self.room_bytes and missing:
            self.tell(StageLoadFailed(self.name, str(self.boot), order.epoch, "no room for both", False, not order.exclusive))
            return
        self.prepared = Prepared(order)
        load_bytes = sum(self.model.units[unit].size_bytes for unit in missing)
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

    def activate(self, activation: Activation) -> None:
        order = activation.order
        if self.stage and self.stage.epoch == order.epoch:
            self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(), 0, 0.0))
            return
        prepared = self.prepared
        if prepared is None or not prepared.is_ready or prepared.order.epoch != order.epoch:
            self.tell(StageLoadFailed(self.name, str(self.boot), order.epoch, "nothing was prepared for it", True))
            return
        before = set(self.stage.units) if self.stage else set()
        units = set(prepared.order.units)
        present = {**self.attic, **self.contents.cells}
        self.close_edges()
        self.attic = {unit: cells for unit, cells in present.items() if unit not in units & before}
        self.contents.cells = {unit: cells for unit, cells in self.contents.cells.items() if unit in units & before}
        self.contents.keep_only(prepared.order.num_kv_blocks, activation.alive)
        self.stage, self.prepared, self.has_stopped = prepared.order, None, False
        self.frames_received = self.frames_computed = self.frames_sent = 0
        self.weights &= units
        self.fetch(activation)

    def fetch(self, activation: Activation) -> None:
        order, stage = activation.order, self.stage
        moves = [(unit, move.source.name) for move in order.moves for unit in move.units]
        taken: set[int] = set()
        left = {"count": len(moves)}

        def finish(unit: int, cells: Cells | None) -> None:
            if self.stage is not stage:
                return
            if cells is not None and left["count"]:
                self.contents.cells[unit] = cells
                taken.add(unit)
            left["count"] -= 1
            if left["count"] == 0:
                note = "" if len(taken) == len(moves) else "the old owner did not answer"
                self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(taken), 0, 0.01, note))

        if not moves:
            self.tell(StageActivated(self.name, str(self.boot), order.epoch, frozenset(), 0, 0.0))
        for unit, source in moves:
            self.fetch_unit(activation, unit, source, finish)

    def fetch_unit(self, activation: Activation, unit: int, source: str, finish: Callable[[int, Cells | None], None]) -> None:
        done: list[bool] = []

        def once(cells: Cells | None) -> None:
            if not done:
                done.append(True)
                finish(unit, cells)

        def ask() -> None:
            owner = self.members.find(source)
            if owner is None or not owner.is_alive or self.world.chance(0.05):
                self.later(0.01, lambda: once(None))
                return
            boot = owner.boot
            owner.when_awake(boot, lambda: self.later(self.network.delay_s(), lambda: once(owner.copy_of(unit, activation.block_ids))))

        self.network.send(ask)
        self.later(FETCH_TIMEOUT_S, lambda: once(None))

    def copy_of(self, unit: int, block_ids: tuple[int, ...]) -> Cells | None:
        cells = self.contents.cells.get(unit, self.attic.get(unit))
        return None if cells is None else {block: list(cells[block]) for block in block_ids if block in cells}

    def release(self, order: ReleaseShard) -> None:
        if self.stage and self.stage.epoch > order.epoch:
            return
        if self.prepared and order.epoch >= self.prepared.order.epoch:
            self.prepared = None
        if self.stage is None or order.epoch >= self.stage.epoch:
            self.close_edges()
            self._empty()
        if order.leave:
            self.world.say(f"{self.name} leaves")
            self.crash()
            self.world.after(AWAY_S, lambda: None if self.is_alive else self.start())

    # -- edges and frames

    def accept(self, key: RingKey, on_end: Callable[[], None]) -> Edge | None:
        """An edge to this shard; None if it does not serve this epoch. on_end: the sender's."""
        if not self.is_alive or self.stage is None or self.key_of(self.stage) != key or self.has_stopped:
            return None
        boot = self.boot

        def take(passage: Passage) -> None:
            if self.incoming is edge and self.boot == boot:
                self.inbox.append(passage)
                self.frames_received += 1
                self.when_awake(boot, self.work)

        if self.incoming:
            self.incoming.close_server()
        edge: Edge = Stream(self.world, self.network, take, lambda _: None, lambda: None, on_end)
        self.incoming = edge
        return edge

    def key_of(self, stage: AssignUnits) -> RingKey:
        return RingKey(self.coordinator_id, stage.epoch)

    def close_edges(self) -> None:
        if self.incoming:
            self.incoming.close_server()
        if self.outgoing:
            self.outgoing.close_client()
        self.incoming = self.outgoing = None
        self.inbox.clear()
        self.is_computing = False

    def work(self) -> None:
        """One frame after the other. A frame of a plan that has ended meanwhile is not sent on."""
        stage = self.stage
        if stage is None or self.is_computing or not self.inbox:
            return
        self.is_computing, self.attic = True, {}
        onward = self.contents.compute(self.inbox.popleft(), stage.units, self.model.num_units)

        def finish() -> None:
            if self.stage is stage and self.is_computing:
                self.is_computing = False
                self.frames_computed += 1
                self.send_on(stage, onward)
                self.work()

        self.compute(UNIT_S * self.slowness * len(stage.units), finish)

    def send_on(self, stage: AssignUnits, passage: Passage) -> None:
        if self.outgoing is None:
            self.outgoing = self.dial(stage)
        if self.outgoing is None:
            self.lose_edge(stage, "connection refused")
        else:
            self.outgoing.to_server.send(passage)
            self.frames_sent += 1

    def dial(self, stage: AssignUnits) -> Edge | None:
        boot = self.boot

        def ended() -> None:
            if self.outgoing is edge:
                self.when_awake(boot, lambda: self.lose_edge(stage, "connection reset"))

        following = self.members.find(stage.next.name) if stage.next else None
        key = self.key_of(stage)
        edge = following.accept(key, ended) if following else self.members.accept_last(key, ended)
        return edge

    def lose_edge(self, stage: AssignUnits, message: str) -> None:
        if self.stage is stage:
            silent = self.world.chance(0.2)
            self.tell(EdgeBroken(stage.epoch, self.name, stage.next.name if stage.next else "coordinator", message, silent))
