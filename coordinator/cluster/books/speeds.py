"""How fast a shard really is: what its probe said, corrected by what is measured while it works.

A measurement counts when it has differed from what is planned with by more than DEVIATION, and by more than measurements of this shard
differ from each other anyway, for SUSTAINED_S: a moment of load changes nothing, and neither does a load that comes and goes. A shard
that became slow and lost all its layers is not measured any more; after a while it is believed to be as fast as its probe said, and for
longer each time that this turns out to be wrong.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from dairllm.coordinator.planner import ASSUMED_DECODE_S_PER_BYTE

DEVIATION = 0.15
SUSTAINED_S = 10.0
WINDOW = 5
"""Measurements whose median counts; one comes about every second."""
HISTORY = 36
"""Medians, one after the other, that tell how restless a shard is."""
APART = 4
"""Medians this far from each other are compared: one change for good is among few such pairs, a load that comes and goes among many."""
LEAST_PAIRS = 4
RESTLESS_SHARE = 0.75
"""Of these pairs, how many differ by no more than what counts as the spread."""
NOTEWORTHY = 0.3
"""What has changed by more than this since it was told last is told."""
MOST_CALIBRATION = 2.0
MEMORY_S = 300.0
LONGEST_MEMORY_S = 3600.0


@dataclass(slots=True)
class SpeedEstimate:
    """All in seconds per byte of weights for one row. adopted_s: what a measurement has replaced the probe's value by, None if nothing.

    told_s: what people were told last, None if nothing. assumed_s: without a probe. deviation: see above.
    """

    probed_s: float
    adopted_s: float | None = None
    told_s: float | None = None
    window_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    medians_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    num_measured: int = 0
    measured_at_s: float = 0.0
    off_from_s: float | None = None
    off_s: list[float] = field(default_factory=list)
    least_ratio: float | None = None
    memory_s: float = MEMORY_S
    assumed_s: float = ASSUMED_DECODE_S_PER_BYTE
    deviation: float = DEVIATION

    @property
    def expected_s(self) -> float:
        return self.probed_s or self.assumed_s

    @property
    def used_s(self) -> float:
        return self.adopted_s or self.expected_s

    @property
    def spread(self) -> float:
        """By what part of each other measurements differ that are some time apart; 0 while there are few."""
        medians = list(self.medians_s)
        differences = sorted(_difference(one, other) for one, other in zip(medians, medians[APART:], strict=False))
        return differences[int(RESTLESS_SHARE * len(differences))] if len(differences) >= LEAST_PAIRS else 0.0

    def planned_s(self, calibration: float) -> float:
        """What to plan with. calibration: how much slower practice is than probes in this cluster, for shards without measurements."""
        if self.adopted_s is not None:
            return self.adopted_s
        return self.expected_s if self.least_ratio is not None else self.expected_s * calibration

    def measure(self, s_per_byte: float, now_s: float) -> bool:
        """True if the planner should know."""
        self.window_s.append(s_per_byte)
        self.measured_at_s = now_s
        self.num_measured += 1
        smoothed_s = median(self.window_s)
        if len(self.window_s) == WINDOW:
            ratio = smoothed_s / self.expected_s
            self.least_ratio = min(self.least_ratio or ratio, ratio)
            if self.num_measured % WINDOW == 0:
                self.medians_s.append(smoothed_s)
        return self._adopt_if_sustained(smoothed_s, now_s)

    def _adopt_if_sustained(self, smoothed_s: float, now_s: float) -> bool:
        if _difference(smoothed_s, self.used_s) <= max(self.deviation, self.spread):
            self._be_as_planned()
            return False
        if self.off_from_s is None:
            self.off_from_s = now_s
        self.off_s.append(smoothed_s)
        if now_s - self.off_from_s <= SUSTAINED_S:
            return False
        self.adopted_s = median(self.off_s)
        self._be_as_planned()
        return True

    def _be_as_planned(self) -> None:
        self.off_from_s = None
        self.off_s.clear()

    def is_worth_telling(self) -> bool:
        """Whether what is planned with is noticeably other than what people know; from then on they know it."""
        if _difference(self.used_s, self.told_s or self.expected_s) <= NOTEWORTHY:
            return False
        self.told_s = self.used_s
        return True

    def interrupt(self) -> None:
        """Its stage changes: what was smoothed belongs to the old one."""
        self.window_s.clear()
        self._be_as_planned()

    def expire(self, now_s: float) -> bool:
        """Forget a slowness that was measured long ago. True if the planner should know."""
        if self.adopted_s is None or now_s - self.measured_at_s <= self.memory_s:
            return False
        self.adopted_s = None
        self.memory_s = min(LONGEST_MEMORY_S, 2 * self.memory_s)
        return True


def _difference(one: float, other: float) -> float:
    """As a part of the smaller."""
    return max(one, other) / min(one, other) - 1


def calibration_of(estimates: list[SpeedEstimate]) -> float:
    """By how much practice seems to be slower than probes for all: the best that any has reached. What is above is its own slowness."""
    ratios = [estimate.least_ratio for estimate in estimates if estimate.least_ratio is not None]
    return min(MOST_CALIBRATION, max(1.0, min(ratios, default=1.0)))
