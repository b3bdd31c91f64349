"""How fast a shard really is: what its probe said, corrected by what is measured while it works.

A measurement counts when it has differed from what is planned with by more than DEVIATION for SUSTAINED_S: a moment of load changes
nothing. A shard that became slow and lost all its layers is not measured any more; after a while it is believed to be as fast as its
probe said, and for longer each time that this turns out to be wrong.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from dairllm.coordinator.planner import ASSUMED_DECODE_S_PER_BYTE

DEVIATION = 0.15
SUSTAINED_S = 5.0
WINDOW = 5
"""Measurements whose median counts; one comes about every second."""
MOST_CALIBRATION = 2.0
MEMORY_S = 300.0
LONGEST_MEMORY_S = 3600.0


@dataclass(slots=True)
class SpeedEstimate:
    """All in seconds per byte of weights for one row. adopted_s: what a measurement has replaced the probe's value by, None if nothing."""

    probed_s: float
    adopted_s: float | None = None
    window_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    measured_at_s: float = 0.0
    off_from_s: float | None = None
    least_ratio: float | None = None
    memory_s: float = MEMORY_S

    @property
    def expected_s(self) -> float:
        return self.probed_s or ASSUMED_DECODE_S_PER_BYTE

    def planned_s(self, calibration: float) -> float:
        """What to plan with. calibration: how much slower practice is than probes in this cluster, for shards without measurements."""
        if self.adopted_s is not None:
            return self.adopted_s
        return self.expected_s if self.least_ratio is not None else self.expected_s * calibration

    def measure(self, s_per_byte: float, now_s: float) -> bool:
        """True if the planner should know."""
        self.window_s.append(s_per_byte)
        self.measured_at_s = now_s
        smoothed_s = median(self.window_s)
        if len(self.window_s) == WINDOW:
            ratio = smoothed_s / self.expected_s
            self.least_ratio = min(self.least_ratio or ratio, ratio)
        return self._adopt_if_sustained(smoothed_s, now_s)

    def _adopt_if_sustained(self, smoothed_s: float, now_s: float) -> bool:
        used_s = self.adopted_s or self.expected_s
        if abs(smoothed_s / used_s - 1) <= DEVIATION:
            self.off_from_s = None
        elif self.off_from_s is None:
            self.off_from_s = now_s
        elif now_s - self.off_from_s > SUSTAINED_S:
            self.adopted_s, self.off_from_s = smoothed_s, None
            return True
        return False

    def interrupt(self) -> None:
        """Its stage changes: what was smoothed belongs to the old one."""
        self.window_s.clear()
        self.off_from_s = None

    def expire(self, now_s: float) -> bool:
        """Forget a slowness that was measured long ago. True if the planner should know."""
        if self.adopted_s is None or now_s - self.measured_at_s <= self.memory_s:
            return False
        self.adopted_s = None
        self.memory_s = min(LONGEST_MEMORY_S, 2 * self.memory_s)
        return True


def calibration_of(estimates: list[SpeedEstimate]) -> float:
    """By how much practice seems to be slower than probes for all: the best that any has reached. What is above is its own slowness."""
    ratios = [estimate.least_ratio for estimate in estimates if estimate.least_ratio is not None]
    return min(MOST_CALIBRATION, max(1.0, min(ratios, default=1.0)))
