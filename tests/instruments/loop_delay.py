"""How long the process itself held up its event loop, however busy the machine is."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

TICK_S = 0.005


@dataclass
class LongestHold:
    seconds: float = 0.0


@asynccontextmanager
async def watching_the_loop() -> AsyncIterator[LongestHold]:
    """Of each delay of a timer counts what the process computed meanwhile: in the loop's thread, or in another one that kept the GIL.

    Threads that compute without the GIL count, too, but only while the loop is late for a reason.
    """
    longest = LongestHold()

    async def watch() -> None:
        while True:
            began_s, computed_s = time.perf_counter(), time.process_time()
            await asyncio.sleep(TICK_S)
            delay_s = time.perf_counter() - began_s - TICK_S
            longest.seconds = max(longest.seconds, min(delay_s, time.process_time() - computed_s))

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.sleep(0)
        yield longest
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
