"""How often the cluster changes its plan for speed alone: seldom on machines that are busy with other things, and soon where it matters.

recorded_noise.txt: seconds per byte of two shards, once a second, as a multiple of the fastest: SmolLM2 on a machine with two cores that
several other programs used, too.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.actions import EventKind
from dairllm.coordinator.cluster.books.speeds import SpeedEstimate
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.cluster.shard_reports import ShardUsage
from dairllm.model_files.memory import STREAMED_FEATURE, StreamedSize
from tests.cluster.scenario import Cluster, hello
from tests.instruments.descriptions import demand_of

RECORDED = [tuple(map(float, line.split())) for line in (Path(__file__).parent / "recorded_noise.txt").read_text().splitlines()]
GIB = 1 << 30
SPEED_S = 1e-9 / 20
BLOCK_S = 20
Factor = Callable[[str, float], float]
"""How much slower than its probe said a shard is at this time."""


class Served:
    """Machines that serve a model that any two of them can hold, and are measured every second."""

    def __init__(self, *names: str) -> None:
        self.cluster = Cluster()
        layer = GIB // 4
        self.cluster.happen(on.ModelRegistered(demand_of("toy", b"\1", (0, *[layer] * 24, 0))))
        for name in names:
            self.join(name, speed_gbs=20.0)
        self.pass_time(5, lambda name, now_s: 1.0)

    def pass_time(self, seconds: int, slowness: Factor) -> None:
        for _ in range(seconds):
            self.cluster.now_s += 1.0
            for name, (boot, _) in self.cluster.streams.items():
                self._happen(on.HeartbeatReceived(name, boot, ShardUsage(), 0))
            self._happen(on.TimePassed())
            if self.cluster.machine.phase is not Phase.SERVING or self.cluster.newest_epoch != self.cluster.machine.epoch:
                self.cluster.work()
            if self.cluster.machine.phase is Phase.SERVING:
                for stage in self.cluster.plan.stages:
                    step_s = stage.weights_bytes * SPEED_S * slowness(stage.shard, self.cluster.now_s)
                    self._happen(on.StepMeasured(self.cluster.machine.epoch, stage.shard, step_s))

    def _happen(self, event: on.Event) -> None:
        """Where little happens, that it holds all invariants is for other tests."""
        for action in self.cluster.machine.handle(event, self.cluster.now_s):
            self.cluster.follow(action)

    def join(self, name: str, speed_gbs: float, memory_gib: float = 4.5) -> None:
        self.cluster.join(hello(name, memory=round(memory_gib * GIB), speed=speed_gbs))

    def measures_itself(self, name: str, speed_gbs: float) -> None:
        capabilities = replace(self.cluster.hellos[name].capabilities, decode_s_per_byte=1e-9 / speed_gbs)
        self.cluster.happen(on.CapabilitiesChanged(name, self.cluster.boot_of(name), capabilities))

    def times_of(self, kind: EventKind) -> list[float]:
        return [event.time_s for event in self.cluster.machine.snapshot(self.cluster.now_s).events if event.kind is kind]

    @property
    def layers(self) -> dict[str, int]:
        return {stage.shard: len(stage.units) for stage in self.cluster.plan.stages}


def noise(seed: int) -> Factor:
    """What was recorded, in another order of its parts, for shards a and b; for others what a or b had at another time."""
    order = random.Random(seed)

    def blocks() -> Iterator[tuple[float, ...]]:
        while True:
            first = order.randrange(len(RECORDED) - BLOCK_S)
            yield from RECORDED[first : first + BLOCK_S]

    source, rows = blocks(), list[tuple[float, ...]]()

    def factor(name: str, now_s: float) -> float:
        index = int(now_s) + 300 * (ord(name) - ord("a"))
        while len(rows) <= index:
            rows.append(next(source))
        return rows[index][(ord(name) - ord("a")) % 2]

    return factor


@pytest.mark.parametrize(("names", "seed"), [("ab", 0), ("ab", 1), ("abc", 0), ("abc", 2)])
def test_noise_changes_the_plan_at_most_three_times_an_hour(names: str, seed: int) -> None:
    served = Served(*names)
    served.pass_time(3600, noise(seed))
    assert len(served.times_of(EventKind.SWITCHED)) <= 3
    assert len(served.times_of(EventKind.SPEED_CHANGED)) <= 60, "the events of hours stay readable"


def test_a_machine_that_comes_and_goes_is_no_licence_for_noise() -> None:
    """It holds no part, so that no plan is made for it."""
    served = Served("a", "b", "c")
    for _ in range(60):
        served.join("tiny", speed_gbs=1.0, memory_gib=0.1)
        served.pass_time(30, noise(1))
        served.cluster.lost("tiny", polite=True)
        served.pass_time(30, noise(1))
    assert len(served.times_of(EventKind.SWITCHED)) <= 3


def test_a_machine_that_becomes_three_times_slower_loses_layers_within_a_minute_and_once() -> None:
    served = Served("a", "b", "c")
    served.pass_time(600, lambda name, now_s: 1 + 0.1 * random.Random(f"{name}{now_s}").random())
    before, began_s = served.layers, served.cluster.now_s
    slow = next(iter(before))
    served.pass_time(600, lambda name, now_s: (3.0 if name == slow else 1.0) + 0.1 * random.Random(f"{name}{now_s}").random())
    switched_s = served.times_of(EventKind.SWITCHED)
    assert len(switched_s) == 1
    assert switched_s[0] - began_s <= 60
    assert served.layers.get(slow, 0) < before[slow]


def test_a_machine_that_measures_itself_again_and_is_fast_has_layers_within_a_minute() -> None:
    served = Served("a", "b")
    served.join("c", speed_gbs=2.0)
    served.pass_time(120, lambda name, now_s: 1.0)
    assert "c" not in served.layers
    began_s = served.cluster.now_s
    served.measures_itself("c", speed_gbs=60.0)
    served.pass_time(300, lambda name, now_s: 1 / 3 if name == "c" else 1.0)
    switched_s = [time_s for time_s in served.times_of(EventKind.SWITCHED) if time_s > began_s]
    assert len(switched_s) == 1
    assert switched_s[0] - began_s <= 60
    assert served.layers["c"] > 12


def test_a_load_that_comes_and_goes_is_no_reason_however_regular() -> None:
    served = Served("a", "b", "c")
    served.pass_time(3600, lambda name, now_s: 2.0 if int(now_s / 25) % 3 == ord(name) - ord("a") else 1.0)
    assert len(served.times_of(EventKind.SWITCHED)) <= 1


def test_each_switch_for_speed_makes_the_next_one_harder() -> None:
    """Machines that are slow in turn, for long enough to be believed each time."""
    served = Served("a", "b", "c")
    served.pass_time(7200, lambda name, now_s: 3.0 if int(now_s / 150) % 3 == ord(name) - ord("a") else 1.0)
    times_s = served.times_of(EventKind.SWITCHED)
    assert 1 <= len(times_s) <= 6
    assert all(sum(0 <= other_s - one_s < 3600 for other_s in times_s) <= 3 for one_s in times_s)


def test_a_shard_that_is_restless_is_believed_to_have_changed_only_by_more_than_that() -> None:
    speed, calm = SpeedEstimate(1.0), SpeedEstimate(1.0)
    for second in range(600):
        speed.measure(1.7 if second // 20 % 2 else 1.0, second)
        calm.measure(1.0, second)
    assert speed.spread == pytest.approx(0.7)
    assert calm.spread == 0
    believed = speed.adopted_s
    assert not any(speed.measure(1.7 if second // 20 % 2 else 1.0, second) for second in range(600, 900))
    assert speed.adopted_s == believed
    assert any(speed.measure(6.0, second) for second in range(900, 930)), "what is much slower is noticed all the same"
    assert any(calm.measure(1.3, second) for second in range(600, 630))


def test_a_change_for_good_is_not_taken_for_restlessness() -> None:
    speed = SpeedEstimate(1.0)
    for second in range(300):
        speed.measure(1.0 if second < 150 else 3.0, second)
        assert speed.spread == 0
    assert speed.adopted_s == 3.0


def a_tenth_more_or_less(name: str, now_s: float) -> float:
    return 1 + 0.2 * (random.Random(f"{name}{now_s}").random() - 0.5)


def streaming_pair() -> "StreamsServed":
    served = StreamsServed()
    served.read_for(60, a_tenth_more_or_less)
    return served


class StreamsServed(Served):
    """Two machines that have half of the memory that the model needs, and disks that are measured with every heartbeat."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        layer, size = GIB // 4, StreamedSize(GIB // 4, 0, 0)
        model = demand_of("toy", b"\1", (0, *[layer] * 24, 0))
        units = [unit._replace(streamed=size) if unit.size_bytes else unit for unit in model.units]
        self.cluster.happen(on.ModelRegistered(replace(model, units=tuple(units))))
        for name in "ab":
            plain = hello(name, memory=2 * GIB)
            able = replace(plain.capabilities, features=plain.capabilities.features | {STREAMED_FEATURE})
            self.cluster.join(replace(plain, capabilities=able))
        self.read: dict[str, tuple[int, float]] = dict.fromkeys("ab", (0, 0.0))
        self.pass_time(5, lambda name, now_s: 1.0)

    def read_for(self, seconds: int, slowness: Factor) -> None:
        """1 GB/s, and slower."""
        for _ in range(seconds):
            for name, (read_bytes, us) in self.read.items():
                self.read[name] = read_bytes + 10**8, us + 1e5 * slowness(name, self.cluster.now_s)
                usage = ShardUsage(streamed_bytes=self.read[name][0], streaming_us=round(self.read[name][1]))
                self._happen(on.HeartbeatReceived(name, self.cluster.boot_of(name), usage, 0))
            self.pass_time(1, lambda name, now_s: 1.0)

    @property
    def streamed(self) -> dict[str, int]:
        return {stage.shard: stage.streamed_bytes for stage in self.cluster.plan.stages}


def test_disks_that_are_as_expected_change_no_plan_for_an_hour() -> None:
    served = streaming_pair()
    served.read_for(3600, a_tenth_more_or_less)
    assert served.times_of(EventKind.SWITCHED) == []


def test_less_is_streamed_from_a_disk_that_is_much_slower_than_assumed_and_what_is_expected_follows() -> None:
    served = streaming_pair()
    before = served.streamed
    slow = max(before, key=lambda name: before[name])
    served.read_for(300, lambda name, now_s: 4.0 if name == slow else 1.0)
    assert served.streamed.get(slow, 0) < before[slow] / 2
    assert len(served.times_of(EventKind.SWITCHED)) == 1
    (fast,) = (name for name in "ab" if name != slow)
    reads_s = served.streamed[fast] * 1e-9
    assert served.cluster.plan.predicted_step_s == pytest.approx(reads_s, rel=0.15)
    served.read_for(300, lambda name, now_s: 1.1)
    assert served.cluster.plan.predicted_step_s == pytest.approx(1.1 * reads_s, rel=0.05), "the plan stays, with new numbers"
    assert len(served.times_of(EventKind.SWITCHED)) == 1
