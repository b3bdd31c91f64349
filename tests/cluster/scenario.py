"""Scenarios of a cluster in simulated time: commands, and the transcript of what the machine does.

A command is one line:
    config min_shards=2 settle_s=0             before anything else; fields of ClusterConfig
    model layers=4 layer=1GiB head=512MiB      also: embedding, tied, kv (bytes per token and layer), context
    join A memory=8GiB speed=20                also: reserved, boot, cluster, protocol, formats, held=0..3; speed in GB/s
    tick 1.5s                                  time passes in steps of 0.25 s; shards that are not silent send heartbeats
    round_trips A=40ms B=3ms 5                 heartbeats that say so, that many
    idle / busy                                no answer runs or waits from now on; some do, as in the beginning
    silence A / speak A                        A hangs: its connection stands but nothing comes
    asked / answered                           frames go around the ring from now on, one with every step of time; none do
    hang A / move A                            the thread of A that computes stands still, while its lease goes on; it moves again
    slow A                                     the same, but that its processor time goes on
    mute A                                     it says nothing of frames, sends none, and proves nothing
    lie A                                      it says that it has sent frames on, and has not
    lost A / leave A                           the connection ends without / with a word
    stale A                                    a connection of before is said to have ended
    standstill 100s                            the whole coordinator stands still
    progress A 50%                             of its assignment
    loaded [A] [epoch=N boot=X]                reports the stage ready, of the epoch that was assigned last; without names: all do
    failed A 'message' [retryable|exclusive] [missing=10MiB]   reports that loading failed; exclusive: that it must free layers first;
                                               missing: so much memory
    drained                                    nothing is in flight any more in the ring that was closed
    activated A [transferred=2..3]             has switched; without transferred it has taken over all that it should
    edge A B [silent] [epoch=N]                A reports that its stream to B broke, or fell silent
    fault A 'message' [believed]               A is found to be at fault: it did this; believed: what it sent before was right
    accuse B A 'message' [epoch=N]             B says that A, which comes before it, has sent it this
    opened / broken 'message' [epoch=N]        the coordinator's own stream to the first shard
    switched                                   drained if need be, all activated, opened
    work                                       all who live load what they were told, and switch
    leaving A / drain A / cordon A / uncordon A [force]   the shard wants to leave; people want it to leave, not to be used, to be used
    without A                                  whether the others suffice
    with A memory=1GiB                         whether all suffice when it has so much
    configure A memory=2GiB threads=4          people change limits, and the shard has applied them
    refused A 'message'                        the shard has applied nothing of them
    step 0.01 [A]                              measured seconds per token
    steps A=0.01 B=0.02 8s                     the same every second
    check                                      prints the state
epoch=-1 is the one before the newest that was assigned. What a shard without a connection says, it says with a boot that nobody knows.
Actions are printed as they come, events of the log with '#' and the time.
"""

import shlex
from dataclasses import fields, replace

from dairllm.coordinator.cluster import actions as do
from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.identities import Epoch, LeaseId
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.cluster.shard_reports import HeldUnits, LoadProgress, ShardCapabilities, ShardHello, ShardUsage, ShardWork
from dairllm.coordinator.cluster_state import state_to_proto
from dairllm.coordinator.planner import Infeasible, ModelDemand, Plan
from tests.instruments.descriptions import FEATURES, demand_of

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
TICK_S = 0.25


def size(text: str) -> int:
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return round(float(text.removesuffix(unit)) * factor)
    return int(text)


def units_of(text: str) -> range:
    """'2..3', or '' for none."""
    if not text:
        return range(0)
    first, last = text.split("..")
    return range(int(first), int(last) + 1)


def hello(
    name: str,
    memory: int = 8 << 30,
    speed: float = 20.0,
    reserved: int = 0,
    boot: str = "1",
    cluster: str = "home",
    protocol: int = 1,
    formats: str = "Q4_0",
    addresses: tuple[str, ...] | None = None,
    held: range = range(0),
) -> ShardHello:
    capabilities = ShardCapabilities(
        memory, reserved, 2, "avx2", "a CPU", 1e-9 / speed if speed else 0.0, frozenset(formats.split(",")), FEATURES
    )
    at = (f"{name}:7000",) if addresses is None else addresses
    holding = HeldUnits(b"\1", frozenset(held))
    return ShardHello(name, boot, at, capabilities, cluster, protocol, 0, "0.1.0", holding)


class Cluster:
    """The machine and a simple picture of its shards: which streams stand, which shards are silent."""

    def __init__(self, **settings: float) -> None:
        types = {field.name: field.type for field in fields(ClusterConfig)}
        typed = {key: int(value) if types[key] in (int, "int", "int | None", int | None) else value for key, value in settings.items()}
        self.machine = ClusterMachine(ClusterConfig("home", 1, **typed))  # type: ignore[arg-type]
        self.now_s = 0.0
        self.streams: dict[str, tuple[str, LeaseId]] = {}
        self.silent: set[str] = set()
        self.is_idle = False
        self.is_asked = False
        self.faults: dict[str, str] = {}
        self.num_back = 0
        self.to_prove: dict[str, int] = {}
        self.hellos: dict[str, ShardHello] = {}
        self.assigned: dict[str, do.AssignUnits] = {}
        self.activating: dict[str, do.ActivateStage] = {}
        self.open_epoch: Epoch | None = None
        self.draining_epoch: Epoch | None = None
        self.epochs: list[Epoch] = []
        self._leases = 0

    @property
    def plan(self) -> Plan:
        """The active one, which there must be."""
        assert self.machine.plan is not None
        return self.machine.plan

    def happen(self, event: on.Event) -> list[do.Action]:
        """Handle an event, check every invariant, and follow the actions."""
        actions = self.machine.handle(event, self.now_s)
        self.machine.check_invariants()
        state_to_proto(self.machine.snapshot(self.now_s), 0.0)
        for action in actions:
            self.follow(action)
        self.epochs.append(self.machine.epoch)
        assert self.epochs[-1] >= self.epochs[-2] if len(self.epochs) > 1 else True, "epochs only grow"
        return actions

    def follow(self, action: do.Action) -> None:
        match action:
            case do.AdmitShard():
                self.streams[action.name] = (action.boot_id, action.lease)
            case do.EndLease():
                ended = (action.boot_id, action.lease)
                self.streams = {name: stream for name, stream in self.streams.items() if (name, stream) != (action.name, ended)}
            case do.AssignUnits():
                assert action.name in self.streams, "only members are assigned units"
                assert not (action.exclusive and self.open_epoch), "nothing is freed that is in use"
                self.assigned[action.name] = action
            case do.ActivateStage():
                assert self.assigned[action.name].epoch == action.epoch, "only what was prepared is activated"
                assert self.open_epoch is None, "no switch under an open ring"
                assert all(move.source.name in self.streams and move.source.name != action.name for move in action.moves)
                self.activating[action.name] = action
            case do.OpenRing():
                assert self.open_epoch is None, "one ring at a time"
                assert not action.kept & action.transferred
                self.num_back = 0
                self.open_epoch = action.epoch
            case do.CloseRing():
                assert action.epoch in (self.open_epoch, self.draining_epoch), "only an open ring is closed"
                self.draining_epoch = action.epoch if action.graceful else None
                self.open_epoch = None
            case do.AskForProof():
                self.to_prove[action.name] = action.number
            case do.RefuseShard() | do.ReleaseShard() | do.TellEvent() | do.AskToDrain() | do.ConfigureLimits():
                pass

    def join(self, facts: ShardHello) -> list[do.Action]:
        self._leases += 1
        self.silent.discard(facts.name)
        self.hellos[facts.name] = facts
        return self.happen(on.JoinRequested(LeaseId(self._leases), facts))

    def lost(self, name: str, polite: bool = False) -> list[do.Action]:
        boot, lease = self.streams.pop(name)
        return self.happen(on.ShardLeft(name, boot, lease, "stopped") if polite else on.LeaseBroken(name, boot, lease, "connection reset"))

    def boot_of(self, name: str) -> str:
        """What its stream began with; of who has none one that nobody knows."""
        return self.streams.get(name, ("unknown", LeaseId(0)))[0]

    @property
    def newest_epoch(self) -> Epoch:
        return max([self.machine.epoch, *(assignment.epoch for assignment in self.assigned.values())])

    def loaded(self, name: str, epoch: int | None = None, boot: str | None = None) -> list[do.Action]:
        of = self.assigned[name].epoch if epoch is None else Epoch(epoch)
        return self.happen(on.StageLoaded(name, boot or self.boot_of(name), of, 1 << 30, 1 << 20, 2.0))

    def drained(self) -> list[do.Action]:
        epoch, self.draining_epoch = self.draining_epoch, None
        return self.happen(on.RingDrained(epoch)) if epoch is not None else []

    def activated(self, name: str, transferred: range | None = None) -> list[do.Action]:
        order = self.activating.pop(name)
        moved = {unit for move in order.moves for unit in move.units}
        taken = frozenset(moved if transferred is None else transferred)
        note = "" if taken >= moved else "the old owner did not answer"
        return self.happen(on.StageActivated(name, self.boot_of(name), order.epoch, taken, len(taken) << 20, 0.02, note))

    def switched(self) -> list[do.Action]:
        actions = self.drained()
        for name in sorted(self.activating):
            if name in self.streams and name in self.activating:
                actions += self.activated(name)
        if self.machine.phase is Phase.OPENING and self.open_epoch is not None:
            actions += self.happen(on.RingOpened(self.open_epoch))
        return actions

    def load(self) -> list[do.Action]:
        """Every shard that lives has loaded what it was told."""
        living = [
            name
            for name, assignment in sorted(self.assigned.items())
            if name not in self.silent and assignment.boot_id == self.boot_of(name)
        ]
        return [action for name in living for action in self.loaded(name)]

    def work(self) -> list[do.Action]:
        """All of it: they load and switch, also what follows from that."""
        return [*self.load(), *self.switched(), *self.load(), *self.switched()]

    def configure(self, name: str, memory: int | None, threads: int | None) -> list[do.Action]:
        capabilities = self.hellos[name].capabilities
        changed = replace(
            capabilities, memory_budget_bytes=memory or capabilities.memory_budget_bytes, num_threads=threads or capabilities.num_threads
        )
        self.hellos[name] = replace(self.hellos[name], capabilities=changed)
        asked = self.happen(on.ConfigureRequested(name, memory, threads))
        return [*asked, *self.happen(on.CapabilitiesChanged(name, self.streams[name][0], changed))]

    def heartbeats(self) -> list[do.Action]:
        speaking = [(name, boot) for name, (boot, _) in sorted(self.streams.items()) if name not in self.silent]
        beats = [on.HeartbeatReceived(name, boot, ShardUsage(), 0, self._work_of(name)) for name, boot in speaking]
        actions = [action for beat in beats for action in self.happen(beat)]
        for name, boot in speaking:
            if name in self.to_prove and name not in self.faults:
                actions += self.happen(on.ProofGiven(name, boot, self.to_prove.pop(name), True))
        return actions

    def _work_of(self, name: str) -> ShardWork | None:
        """What it says. A frame that does not come back has got to the first shard that is at fault."""
        fault = self.faults.get(name)
        ring = list(self.plan.placement) if self.is_asked and self.open_epoch is not None else []
        if fault == "mute":
            return None
        given, done = (2, 1) if fault in ("hang", "slow") else (1, 1)
        cpu_us = round(self.now_s * 1e6) if fault == "slow" else 0
        if name not in ring or self.open_epoch is None:
            return ShardWork(given, done, cpu_us)
        stuck = next((ring.index(other) for other in ring if other in self.faults), len(ring))
        number, place = self.num_back + 1, ring.index(name)
        received = number if place <= stuck else self.num_back
        computed = number if place < stuck or (place == stuck and fault == "lie") else self.num_back
        return ShardWork(given, done, cpu_us, self.open_epoch, received, computed, computed)

    def go_around(self) -> list[do.Action]:
        """One more frame."""
        if not self.is_asked or self.open_epoch is None:
            return []
        if not set(self.plan.placement) & set(self.faults):
            self.num_back += 1
        return self.happen(on.FramesAwaited(self.open_epoch, self.num_back, 1.0))

    def tick(self, seconds: float) -> list[do.Action]:
        actions: list[do.Action] = []
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            self.now_s = min(end_s, self.now_s + TICK_S)
            actions += [*self.heartbeats(), *self.go_around(), *self.happen(on.TimePassed(self.is_idle))]
        return actions


def words_of(action: do.Action) -> str:
    """One line of a transcript."""
    match action:
        case do.AdmitShard():
            return f"admit {action.name}"
        case do.RefuseShard():
            return f"refuse {action.name!r}: {type(action.error).__name__}"
        case do.EndLease():
            return f"end lease of {action.name} (boot {action.boot_id}): {action.reason}"
        case do.AssignUnits():
            following = action.next.name if action.next else "coordinator"
            units, cache = action.units, f"{action.num_kv_blocks} x {action.kv_block_tokens} tokens"
            exclusive = ", exclusive" if action.exclusive else ""
            return f"assign {action.name} epoch {action.epoch}: units {words_of_units(units)}, next {following}, cache {cache}{exclusive}"
        case do.ActivateStage():
            moves = "".join(f", cache of {words_of_units(move.units)} from {move.source.name}" for move in action.moves)
            return f"activate {action.name} epoch {action.epoch}{moves}"
        case do.ReleaseShard():
            return f"release {action.name} epoch {action.epoch}{', it may leave' if action.leave else ''}: {action.reason}"
        case do.OpenRing():
            cache = "".join(
                f", {word} {','.join(map(str, sorted(units)))}"
                for word, units in (("kept", action.kept), ("transferred", action.transferred))
                if units
            )
            return f"open ring {action.epoch} at {action.first.name}{cache}"
        case do.CloseRing():
            return f"close ring {action.epoch}{' when it is empty' if action.graceful else ''}: {action.reason}"
        case do.AskToDrain():
            return f"ask {action.name} to drain: {action.reason}"
        case do.AskForProof():
            return f"ask {action.name} for a proof"
        case do.ConfigureLimits():
            return f"configure {action.name}: memory {action.memory_budget_bytes}, threads {action.num_threads}"
        case do.TellEvent():
            return f"# {action.event.time_s:.2f} s {action.event.kind}: {action.event.text}"


def words_of_units(units: range) -> str:
    return f"{units.start}..{units.stop - 1}"


class Scenario:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self.cluster = Cluster()

    def run(self, line: str) -> list[str]:
        words = shlex.split(line)
        plain = [word for word in words[1:] if "=" not in word]
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        if words[0] == "config":
            self.cluster = Cluster(**{key: float(value) for key, value in options.items()})
            return []
        if words[0] == "check":
            return self._state()
        if words[0] == "without":
            lack = self.cluster.machine.can_do_without(plain[0])
            return [f"without {plain[0]}: {lack.reason if isinstance(lack, Infeasible) else 'fine'}"]
        if words[0] == "with":
            lack = self.cluster.machine.can_do_with(plain[0], size(options["memory"]))
            return [f"{plain[0]} with {options['memory']}: {lack.reason if isinstance(lack, Infeasible) else 'fine'}"]
        return [words_of(action) for action in self._do(words[0], plain, options)]

    def _do(self, command: str, plain: list[str], options: dict[str, str]) -> list[do.Action]:
        cluster = self.cluster
        stated = self._stated_epoch(options)
        epoch = cluster.machine.epoch if stated is None else stated
        match command, plain:
            case "model", []:
                return cluster.happen(on.ModelRegistered(self._model(options)))
            case "join", [name]:
                return cluster.join(self._hello(name, options))
            case "tick", [duration]:
                return cluster.tick(float(duration.removesuffix("s")))
            case "round_trips", [count]:
                times_us = {name: round(1000 * float(text.removesuffix("ms"))) for name, text in options.items()}
                beats = [on.HeartbeatReceived(name, cluster.streams[name][0], ShardUsage(), us) for name, us in times_us.items()]
                return [action for _ in range(int(count)) for beat in beats for action in cluster.happen(beat)]
            case (("idle" | "busy"), []):
                cluster.is_idle = command == "idle"
                return []
            case (("asked" | "answered"), []):
                cluster.is_asked = command == "asked"
                return []
            case (("hang" | "slow" | "mute" | "lie"), [name]):
                cluster.faults[name] = command
                return []
            case "move", [name]:
                del cluster.faults[name]
                return []
            case "silence", [name]:
                cluster.silent.add(name)
                return []
            case "speak", [name]:
                cluster.silent.discard(name)
                return []
            case (("lost" | "leave"), [name]):
                return cluster.lost(name, polite=command == "leave")
            case "progress", [name, percent]:
                progress = LoadProgress(int(percent.removesuffix("%")), 100)
                return cluster.happen(on.LoadProgressed(name, cluster.boot_of(name), epoch, progress))
            case "loaded", [*names]:
                names = names or [name for name, order in sorted(cluster.assigned.items()) if order.epoch == cluster.newest_epoch]
                return [action for name in names for action in cluster.loaded(name, stated, options.get("boot"))]
            case "failed", [name, message, *rest]:
                assigned = cluster.assigned[name].epoch if stated is None else stated
                kinds = rest == ["retryable"], rest == ["exclusive"], size(options.get("missing", "0"))
                return cluster.happen(on.StageLoadFailed(name, cluster.boot_of(name), assigned, message, *kinds))
            case "drained", []:
                return cluster.drained() if stated is None else cluster.happen(on.RingDrained(stated))
            case "activated", [name] if stated is not None:
                units = frozenset(units_of(options.get("transferred", "")))
                return cluster.happen(on.StageActivated(name, cluster.boot_of(name), stated, units, len(units) << 20, 0.02))
            case "activated", [*names]:
                taken = units_of(options["transferred"]) if "transferred" in options else None
                return [action for name in names for action in cluster.activated(name, taken)]
            case "switched", []:
                return cluster.switched()
            case "work", []:
                return cluster.work()
            case "stale", [name]:
                return cluster.happen(on.LeaseBroken(name, cluster.boot_of(name), LeaseId(-1), "an old stream ended"))
            case "standstill", [duration]:
                cluster.now_s += float(duration.removesuffix("s"))
                return cluster.happen(on.TimePassed())
            case "edge", [reporter, peer]:
                return cluster.happen(on.EdgeBroken(epoch, reporter, peer, "stream reset"))
            case "edge", [reporter, peer, "silent"]:
                return cluster.happen(on.EdgeBroken(epoch, reporter, peer, "nothing was heard of it", silent=True))
            case "fault", [name, reason, *rest]:
                return cluster.happen(on.MemberAtFault(name, cluster.boot_of(name), reason, rest == ["believed"]))
            case "accuse", [name, peer, reason]:
                return cluster.happen(on.MemberAccused(name, cluster.boot_of(name), epoch, peer, reason))
            case "opened", []:
                return cluster.happen(on.RingOpened(epoch))
            case "broken", [message]:
                return cluster.happen(on.RingBroken(epoch, message))
            case "steps", [duration]:
                actions: list[do.Action] = []
                for _ in range(int(duration.removesuffix("s"))):
                    for shard, seconds in options.items():
                        actions += cluster.happen(on.StepMeasured(cluster.machine.epoch, shard, float(seconds)))
                    actions += cluster.tick(1.0)
                return actions
            case "step", [seconds, *shard]:
                return cluster.happen(on.StepMeasured(epoch, shard[0] if shard else None, float(seconds)))
            case _:
                return self._do_as_people(command, plain, options, epoch)

    def _do_as_people(self, command: str, plain: list[str], options: dict[str, str], epoch: Epoch) -> list[do.Action]:
        cluster = self.cluster
        match command, plain:
            case "leaving", [name]:
                return cluster.happen(on.ShardLeaving(name, cluster.boot_of(name), "SIGTERM"))
            case "drain", [name, *rest]:
                return cluster.happen(on.DrainRequested(name, rest == ["force"]))
            case (("cordon" | "uncordon"), [name, *rest]):
                return cluster.happen(on.CordonRequested(name, command == "cordon", rest == ["force"]))
            case "refused", [name, message]:
                boot, facts = cluster.streams[name][0], cluster.hellos[name].capabilities
                return cluster.happen(on.CapabilitiesChanged(name, boot, facts, message))
            case "configure", [name]:
                memory, threads = options.get("memory"), options.get("threads")
                return cluster.configure(name, size(memory) if memory else None, int(threads) if threads else None)
        raise ValueError(f"unknown command {command} {plain}")

    def _stated_epoch(self, options: dict[str, str]) -> Epoch | None:
        text = options.get("epoch")
        if text is None:
            return None
        return Epoch(self.cluster.newest_epoch + int(text)) if text.startswith("-") else Epoch(int(text))

    def _model(self, options: dict[str, str]) -> ModelDemand:
        layers = int(options.get("layers", "4"))
        layer, head, embedding = (
            size(options.get(key, default)) for key, default in (("layer", "1GiB"), ("head", "0"), ("embedding", "0"))
        )
        sizes = (embedding, *(layer for _ in range(layers)), head)
        tied, kv, context = size(options.get("tied", "0")), size(options.get("kv", "0")), int(options.get("context", "64"))
        return demand_of("toy", b"\1", sizes, tied=tied, kv_per_token=kv, context=context)

    def _hello(self, name: str, options: dict[str, str]) -> ShardHello:
        numbers = {key: size(options[key]) for key in ("memory", "reserved") if key in options}
        texts = {key: options[key] for key in ("boot", "cluster", "formats") if key in options}
        before = {"held": units_of(options["held"]) if "held" in options else range(0)}
        speed, protocol = float(options.get("speed", "20")), int(options.get("protocol", "1"))
        return hello(name, speed=speed, protocol=protocol, **numbers, **texts, **before)  # type: ignore[arg-type]

    def _state(self) -> list[str]:
        state = self.cluster.machine.snapshot(self.cluster.now_s)
        first = f"{state.public_phase}, epoch {state.epoch}" + (f": {state.reason}" if state.reason else "")
        shards = [
            f"  {shard.name} {shard.phase.value}"
            + (f" units {words_of_units(shard.units)}" if shard.units else "")
            + (f", then {words_of_units(shard.next_units)}" if shard.next_units and shard.next_units != shard.units else "")
            + (f" {shard.load.loaded_bytes} of {shard.load.total_bytes}" if shard.load.total_bytes else "")
            + (f" ({shard.note})" if shard.note else "")
            for shard in state.shards
        ]
        speed = [f"  expected {state.predicted_decode_tok_s:.1f} tok/s, measured {state.measured_decode_tok_s:.1f}"] if state.epoch else []
        return [first, *shards, *speed]
