"""How many of the experts that rows choose have to be read, where not all have room: what heartbeats say, beside what was expected."""

from dataclasses import dataclass

from dairllm.coordinator.cluster.shard_reports import ShardUsage

LEAST_CHOSEN = 512
"""Fewer choices say little."""
NEWEST_WEIGHT = 0.3
NOTEWORTHY = 0.05


@dataclass(slots=True)
class ExpertMisses:
    """ratio: of what would have to be read if all experts were equally likely, how much is. found, missed: up to the last measurement."""

    ratio: float = 1.0
    found: int = 0
    missed: int = 0

    def measure(self, usage: ShardUsage, expected: float) -> bool:
        """expected: of the chosen ones, what share would be missed if all were equally likely. True if the planner should know."""
        found, missed = usage.experts_found - self.found, usage.experts_missed - self.missed
        if found + missed < LEAST_CHOSEN or not expected:
            return False
        self.found, self.missed = usage.experts_found, usage.experts_missed
        before = self.ratio
        self.ratio += NEWEST_WEIGHT * (missed / (found + missed) / expected - self.ratio)
        return abs(self.ratio - before) > NOTEWORTHY * before
