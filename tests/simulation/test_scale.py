"""A thousand shards join within a minute of virtual time, and some are lost: what the machine costs the coordinator."""

import resource
import time
from pathlib import Path

from dairllm.coordinator.cluster.actions import Action, ActivateStage, AssignUnits, OpenRing
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.events import (
    Event,
    HeartbeatReceived,
    JoinRequested,
    LeaseBroken,
    ModelRegistered,
    RingDrained,
    RingOpened,
    StageActivated,
    StageLoaded,
    TimePassed,
)
from dairllm.coordinator.cluster.identities import LeaseId
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.cluster.shard_reports import ShardCapabilities, ShardHello, ShardUsage
from tests.instruments.descriptions import FEATURES, FORMATS, demand_of

GIB = 1 << 30
SHARDS = 1000
TICK_S = 0.25
MODEL = demand_of("large", b"\1", (GIB,) * 82)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def hello(number: int) -> ShardHello:
    name, memory = f"s{number:04}", (4 + number % 5) * GIB
    capabilities = ShardCapabilities(memory, 0, 8, "avx2", "a CPU", 5e-11 * (1 + number % 7), FORMATS, FEATURES)
    return ShardHello(name, "1", (f"{name}:7000",), capabilities, "home", 1, 0, "1")


class Timed:
    """The machine with shards that do at once what they are told. Remembers the longest call, and the longest that made a plan."""

    def __init__(self) -> None:
        self.machine = ClusterMachine(ClusterConfig("home", 1))
        self.now_s = self.spent_s = self.longest_s = 0.0
        self.plans_s: list[float] = []

    def happen(self, event: Event) -> None:
        begin_s = time.process_time()
        actions = self.machine.handle(event, self.now_s)
        spent_s = time.process_time() - begin_s
        self.spent_s += spent_s
        self.longest_s = max(self.longest_s, spent_s)
        if any(isinstance(action, AssignUnits) for action in actions):
            self.plans_s.append(spent_s)
        for action in actions:
            self.obey(action)

    def obey(self, action: Action) -> None:
        match action:
            case AssignUnits():
                self.happen(StageLoaded(action.name, action.boot_id, action.epoch, 1, 1, 0.1))
            case ActivateStage():
                moved = frozenset(unit for move in action.moves for unit in move.units)
                self.happen(StageActivated(action.name, action.boot_id, action.epoch, moved, 1, 0.1))
            case OpenRing():
                self.happen(RingOpened(action.epoch))
            case _:
                if self.machine.phase is Phase.DRAINING:
                    self.happen(RingDrained(self.machine.epoch))


def test_a_thousand_shards_join_within_a_minute_and_some_are_lost() -> None:
    before_bytes, timed = resident_bytes(), Timed()
    timed.happen(ModelRegistered(MODEL))
    joined = 0
    while timed.now_s < 60.0:
        timed.now_s += TICK_S
        for number in range(joined, round(SHARDS * timed.now_s / 60.0)):
            timed.happen(JoinRequested(LeaseId(number), hello(number)))
        joined = round(SHARDS * timed.now_s / 60.0)
        if timed.now_s % 1.0 == 0.0:
            for number in range(joined):
                timed.happen(HeartbeatReceived(f"s{number:04}", "1", ShardUsage(), 400))
        timed.happen(TimePassed())
    joining_s, assignments = timed.spent_s, len(timed.plans_s)
    longest_plan_s, grown_bytes = max(timed.plans_s), resident_bytes() - before_bytes
    assert timed.machine.phase is Phase.SERVING
    assert timed.machine.plan is not None
    for stage in timed.machine.plan.stages[::3]:
        timed.happen(LeaseBroken(stage.shard, "1", LeaseId(int(stage.shard[1:])), "gone"))
        timed.machine.check_invariants()
        assert timed.machine.phase is Phase.SERVING
    lost_s = max(timed.plans_s[assignments:])
    print(f"\n{SHARDS} shards joined in 60 s: {joining_s:.1f} s of CPU, {grown_bytes / 2**20:.0f} MiB of memory, {assignments} plans")
    print(f"longest call {timed.longest_s * 1e3:.0f} ms, longest that changed the plan {longest_plan_s * 1e3:.0f} ms")
    print(f"a shard lost among {SHARDS}: planned anew in at most {lost_s * 1e3:.0f} ms")
    assert assignments < 30, "shards that join one after the other are planned together"
