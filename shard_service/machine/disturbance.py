"""What else the machine does while something is measured: whoever measures a busy machine measures the others."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import NamedTuple

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
MOST_OTHERS = 0.25
"""Processors that others may keep busy of those which are needed; clocks are coarse, and something always runs."""
MOST_STOLEN = 0.05
LEAST_OWN = 0.8
"""Of the time of its threads, how much must be spent computing."""
MOST_SPREAD = 0.3
"""By how much the slower of repetitions may exceed the faster ones (upper and lower quartile)."""


class CpuTimes(NamedTuple):
    """Seconds of processors, from any point in time on. busy_s: of all programs. stolen_s: wanted, and not given by a hypervisor."""

    wall_s: float
    own_s: float
    busy_s: float
    stolen_s: float

    @classmethod
    def now(cls, stat: Path = Path("/proc/stat")) -> "CpuTimes":
        """Where there is no such file, only this process is seen."""
        times = os.times()
        own_s = times.user + times.system
        try:
            user, nice, system, _, _, irq, softirq, stolen = map(int, stat.read_text().splitlines()[0].split()[1:9])
        except (OSError, ValueError, IndexError):
            return cls(time.monotonic(), own_s, own_s, 0.0)
        return cls(time.monotonic(), own_s, (user + nice + system + irq + softirq) * TICK_S, stolen * TICK_S)


class Load(NamedTuple):
    """Of a span of time, in processors: what this process, others and a hypervisor took."""

    own: float
    others: float
    stolen: float

    @classmethod
    def between(cls, before: CpuTimes, after: CpuTimes) -> "Load":
        wall_s, own_s = max(after.wall_s - before.wall_s, 1e-6), after.own_s - before.own_s
        others_s = max(0.0, after.busy_s - before.busy_s - own_s)
        return cls(own_s / wall_s, others_s / wall_s, (after.stolen_s - before.stolen_s) / wall_s)

    def leaves_room_for(self, num_threads: int, num_cpus: int) -> bool:
        """Whether so many threads would have, or had, processors of their own."""
        return self.others <= max(0, num_cpus - num_threads) + MOST_OTHERS and self.stolen <= MOST_STOLEN * num_cpus


def was_disturbed(times_s: Sequence[float], load: Load, num_threads: int, num_cpus: int) -> bool:
    """times_s: what repetitions of the same took, two or more."""
    lower, _, upper = quantiles(times_s, n=4)
    had_processors = load.leaves_room_for(num_threads, num_cpus) and load.own >= LEAST_OWN * min(num_threads, num_cpus)
    return not had_processors or upper > lower * (1 + MOST_SPREAD)
