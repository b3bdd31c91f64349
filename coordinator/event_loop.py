"""How late the event loop is. Everything that the coordinator does waits for it: heartbeats, frames, answers."""

import asyncio
from collections import deque
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram

SAMPLE_INTERVAL_S = 0.05
WINDOW_S = 60.0
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class DelaySummary(NamedTuple):
    """Delays within the last WINDOW_S; zeros before the first sample."""

    median_s: float
    p99_s: float
    longest_s: float


class EventLoopDelay:
    """Samples how much later than it was due a timer runs, into the histogram `dairllm_event_loop_delay_seconds` of `registry`.

    Samples are due at fixed times: while something blocks the loop they queue up, so that a long delay counts as what would have
    waited for it, and not once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._histogram = Histogram(
            "dairllm_event_loop_delay_seconds",
            "How much later than it was due a timer of the coordinator ran, sampled every 50 ms.",
            registry=registry,
            buckets=BUCKETS_S,
        )
        self._recent_s: deque[float] = deque(maxlen=round(WINDOW_S / SAMPLE_INTERVAL_S))

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            # After a long stop of the whole process one window of it is enough.
            due_s = max(due_s + SAMPLE_INTERVAL_S, loop.time() - WINDOW_S)
            await asyncio.sleep(due_s - loop.time())
            self._note(max(0.0, loop.time() - due_s))

    def _note(self, delay_s: float) -> None:
        self._histogram.observe(delay_s)
        self._recent_s.append(delay_s)

    def recent(self) -> DelaySummary:
        ascending = sorted(self._recent_s)
        if not ascending:
            return DelaySummary(0.0, 0.0, 0.0)
        return DelaySummary(ascending[len(ascending) // 2], ascending[len(ascending) * 99 // 100], ascending[-1])
