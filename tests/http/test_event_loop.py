"""How late the event loop is, in metrics and as a summary."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from dairllm.coordinator.event_loop import SAMPLE_INTERVAL_S, DelaySummary, EventLoopDelay

METRIC = "dairllm_event_loop_delay_seconds"


@contextlib.asynccontextmanager
async def sampling(delay: EventLoopDelay) -> AsyncIterator[None]:
    task = asyncio.create_task(delay.run())
    await asyncio.sleep(0)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_blocked_loop_is_seen_as_often_as_something_would_have_waited() -> None:
    registry = CollectorRegistry()
    delay = EventLoopDelay(registry)
    assert delay.recent() == DelaySummary(0.0, 0.0, 0.0)
    async with sampling(delay):
        blocked_s = 10 * SAMPLE_INTERVAL_S
        time.sleep(blocked_s)
        while (registry.get_sample_value(f"{METRIC}_count") or 0) < 9:
            await asyncio.sleep(0)
    late = delay.recent()
    assert late.longest_s >= blocked_s - SAMPLE_INTERVAL_S
    assert SAMPLE_INTERVAL_S < late.median_s < late.longest_s
    assert (registry.get_sample_value(f"{METRIC}_bucket", {"le": "0.001"}) or 0) <= 1


async def test_an_idle_loop_is_in_time() -> None:
    delay = EventLoopDelay(CollectorRegistry())
    async with sampling(delay):
        await asyncio.sleep(5 * SAMPLE_INTERVAL_S)
    assert 0 < delay.recent().median_s < SAMPLE_INTERVAL_S
