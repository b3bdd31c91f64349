"""How fast a shard reads weights that have no room in its memory: its heartbeats say how many bytes it has read, and for how long."""

from dataclasses import dataclass, field

from dairllm.coordinator.cluster.books.speeds import SpeedEstimate
from dairllm.coordinator.cluster.shard_reports import ShardUsage
from dairllm.coordinator.planner import ASSUMED_STREAM_S_PER_BYTE

LEAST_BYTES = 16 << 20
"""Fewer say little."""
DEVIATION = 0.05
"""A measurement that differs by more, for long, counts: what is expected of a plan that streams hangs on it alone."""


@dataclass(slots=True)
class Disk:
    """One process of a shard. streamed_bytes, streaming_us: up to the last measurement."""

    speed: SpeedEstimate = field(default_factory=lambda: SpeedEstimate(0.0, assumed_s=ASSUMED_STREAM_S_PER_BYTE, deviation=DEVIATION))
    streamed_bytes: int = 0
    streaming_us: int = 0

    @property
    def s_per_byte(self) -> float:
        """What to plan with."""
        return self.speed.used_s

    def measure(self, usage: ShardUsage, now_s: float) -> bool:
        """The first measurement takes the place of what was assumed. True if the planner should know."""
        read_bytes, read_us = usage.streamed_bytes - self.streamed_bytes, usage.streaming_us - self.streaming_us
        if read_bytes < LEAST_BYTES or read_us <= 0:
            return False
        self.streamed_bytes, self.streaming_us = usage.streamed_bytes, usage.streaming_us
        s_per_byte = read_us * 1e-6 / read_bytes
        if not self.speed.probed_s:
            self.speed.probed_s = s_per_byte
            return True
        return self.speed.measure(s_per_byte, now_s)
