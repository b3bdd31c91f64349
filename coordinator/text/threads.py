"""Threads for what takes long on text, beside the event loop.

Few of them: each that computes in Python makes the loop wait for the GIL, 5 ms at a time.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_texts = ThreadPoolExecutor(2, "text")
_rendering = ThreadPoolExecutor(2, "render")


async def beside_loop(work: Callable[..., Result], *arguments: object) -> Result:
    """Work on text that takes some 10 ms: what takes longer comes in steps, so that all take turns."""
    return await asyncio.get_running_loop().run_in_executor(_texts, work, *arguments)


async def next_step(steps: Iterator[Result]) -> Result | None:
    """What the next step of such work gives; None when it is over."""

    def step() -> Result | None:
        return next(steps, None)

    return await beside_loop(step)


async def in_rendering_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Work that mostly waits for a process."""
    return await asyncio.get_running_loop().run_in_executor(_rendering, work, *arguments)
