"""Measurements of several processes on one host, and what is remembered of them."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dairllm.shard_service.machine import probe
from dairllm.shard_service.machine.disturbance import CpuTimes, Load, was_disturbed
from dairllm.shard_service.machine.probe import Speed, alone, measure_again, measure_or_recall, recall, remember, scaled
from dairllm.shard_service.machine.standby import measure_while_idle
from tests.instruments.processes import ManagedProcess
from tests.shard_service.fake_coordinator import CLUSTER, FakeCoordinator

HOLD = """
import sys
from pathlib import Path
from dairllm.shard_service.machine.probe import alone
with alone(Path(sys.argv[1]), 5.0):
    print("alone", flush=True)
    sys.stdin.readline()
"""
DISTURBED_SHARD = """
from dairllm.shard_service import main, service
from dairllm.shard_service.machine import probe, standby
async def is_quiet(*_):
    return True
results = iter([probe.Speed(1e-9, 1.0, False), probe.Speed(1e-10, 2.0, True)])
probe._measure_decode = lambda now_s: next(results)
standby.FIRST_PAUSE_S, service.machine_is_quiet = 0.1, is_quiet
main.main()
"""
SPEED = 1e-10
WEEK_S = 7 * 24 * 3600.0
WRONG_SPEEDS = ("-1", "0", "NaN", "Infinity", "null", "[]", '"x"', "1" + "0" * 400)


def test_only_one_process_measures_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "probe.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "alone\n"
        began_s = time.monotonic()
        with alone(path, 0.3):
            assert time.monotonic() - began_s >= 0.3, "it waits as long as it may, and then goes on"
        other.stdin.write("\n")
        other.stdin.flush()
        began_s = time.monotonic()
        with alone(path, 20.0):
            assert time.monotonic() - began_s < 10.0


def test_without_a_folder_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with alone(tmp_path / "file" / "probe.lock", 5.0):
        pass


@pytest.mark.parametrize(("is_undisturbed", "good_for_s"), [(True, WEEK_S), (False, 600.0)])
def test_what_is_remembered_is_recalled_for_a_week_or_soon_measured_again(tmp_path: Path, is_undisturbed: bool, good_for_s: float) -> None:
    speed = Speed(SPEED, 1000.0, is_undisturbed)
    remember(tmp_path / "probe.json", speed)
    assert recall(tmp_path / "probe.json", now_s=1000.0 + good_for_s - 1) == speed
    assert recall(tmp_path / "probe.json", now_s=1000.0 + good_for_s + 1) is None
    assert recall(tmp_path / "probe.json", now_s=0.0) is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", "null", "{", "[" * 100_000, "\udcff"),
        *(
            f'{{"measured_s": 1500, "decode_s_per_byte": {value}, "is_undisturbed": true}}'
            for value in ("-1", "0", "NaN", "Infinity", "null", "[]", '"x"', "1" + "0" * 400)
        ),
        '{"measured_s": 1500, "decode_s_per_byte": 1e-10}',
        '{"measured_s": 1500, "speed": {"decode_s_per_byte": 1e-10}}',
    ],
)
def test_a_file_of_anything_else_is_not_believed(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe.json").write_text(content, errors="surrogateescape")
    assert recall(tmp_path / "probe.json", now_s=2000.0) is None


@pytest.mark.parametrize(("old", "new", "decode"), [(4, 2, 2e-10), (2, 4, 5e-11), (3, 3, 1e-10)])
def test_fewer_threads_are_expected_to_be_slower(old: int, new: int, decode: float) -> None:
    assert scaled(SPEED, old, new) == pytest.approx(decode)


# Disturbances

STEADY_S = [0.0100, 0.0101, 0.0099, 0.0102, 0.0100]


@pytest.mark.parametrize(
    ("times_s", "load", "num_threads", "num_cpus", "disturbed"),
    [
        (STEADY_S, Load(own=2.0, others=0.1, stolen=0.0), 2, 2, False),
        (STEADY_S, Load(own=2.0, others=5.0, stolen=0.0), 2, 8, False),
        (STEADY_S, Load(own=1.2, others=0.8, stolen=0.0), 2, 2, True),
        (STEADY_S, Load(own=2.0, others=7.0, stolen=0.0), 2, 8, True),
        (STEADY_S, Load(own=1.2, others=0.0, stolen=0.0), 2, 2, True),
        (STEADY_S, Load(own=1.9, others=0.0, stolen=0.3), 2, 2, True),
        ([0.010, 0.010, 0.050, 0.060, 0.010], Load(own=2.0, others=0.0, stolen=0.0), 2, 2, True),
    ],
)
def test_a_measurement_knows_when_it_was_disturbed(
    times_s: list[float], load: Load, num_threads: int, num_cpus: int, disturbed: bool
) -> None:
    assert was_disturbed(times_s, load, num_threads, num_cpus) == disturbed


def test_what_others_took_is_what_this_process_did_not(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 9000 500 1 2 40 60 0\ncpu0 1 2 3\n")
    times = CpuTimes.now(stat)
    assert times.busy_s == pytest.approx(153 / 100)
    assert times.stolen_s == pytest.approx(0.4)
    assert CpuTimes.now(tmp_path / "absent").stolen_s == 0
    load = Load.between(CpuTimes(10.0, 1.0, 50.0, 3.0), CpuTimes(12.0, 3.0, 55.0, 4.0))
    assert load == Load(own=1.0, others=1.5, stolen=0.5)


def test_disturbances_only_ever_make_a_machine_slower() -> None:
    slow, fast = Speed(1e-9, 2000.0, False), Speed(1e-10, 1000.0, False)
    assert slow.or_better(None) == slow
    assert slow.or_better(fast) == fast
    assert fast.or_better(slow) == fast
    assert slow.or_better(fast._replace(is_undisturbed=True)).decode_s_per_byte == 1e-10
    assert slow._replace(is_undisturbed=True).or_better(fast).decode_s_per_byte == 1e-9


# Measuring again


def test_what_was_disturbed_is_replaced_by_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [Speed(1e-9, 1000.0, False), Speed(2e-9, 2000.0, False), Speed(1e-10, 3000.0, True)]
    measured = iter(results)
    monkeypatch.setattr(probe, "_measure_decode", lambda now_s: next(measured))
    known = measure_or_recall(tmp_path, 1000.0)
    assert known == results[0]
    assert measure_or_recall(tmp_path, 1100.0) == known, "for some minutes it is good enough to begin with"
    assert measure_again(tmp_path, 2000.0, known) == known, "slower only because it was disturbed, too"
    known = measure_again(tmp_path, 3000.0, known)
    assert known == results[2]
    assert measure_again(tmp_path, 3100.0, results[0]) == known, "another process has done it"
    assert measure_or_recall(tmp_path, 3000.0 + WEEK_S - 1) == known


async def test_an_idle_shard_measures_when_the_machine_is_quiet_and_then_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    known = Speed(1e-9, 0.0, False)

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) > 6:
            raise asyncio.CancelledError

    async def is_quiet() -> bool:
        return len(pauses) >= 4

    async def measure() -> None:
        nonlocal known
        known = Speed(1e-10, 0.0, True)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await measure_while_idle(lambda: known, lambda: len(pauses) != 1, is_quiet, measure)
    assert pauses == [15.0, 30.0, 60.0, 120.0, 1800.0, 1800.0, 1800.0]


async def test_a_shard_that_stands_by_tells_that_it_is_faster_than_it_seemed(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    flags = ("--coordinator", coordinator.address, "--cluster", CLUSTER, "--name", "s", "--host", "127.0.0.1", "--memory", "512MiB")
    with ManagedProcess([sys.executable, "-c", DISTURBED_SHARD, *flags], {"XDG_CACHE_HOME": str(tmp_path)}, name="shard") as process:
        shard = await coordinator.next_shard()
        assert shard.hello.capabilities.decode_s_per_byte == 1e-9
        changed = await shard.next_message("capabilities_changed")
        assert changed.capabilities.decode_s_per_byte == 1e-10
        await asyncio.to_thread(process.close)
