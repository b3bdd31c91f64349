"""A shard without a part in a plan measures its machine again now and then: nobody else would ever notice that it has become fast."""

import asyncio
from collections.abc import Awaitable, Callable

from dairllm.shard_service.machine.disturbance import CpuTimes, Load
from dairllm.shard_service.machine.probe import Speed

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0
"""Between attempts while the machine has not been seen undisturbed: they double."""
REST_S = 1800.0
"""While the last measurement was undisturbed."""
LOOK_S = 1.0
"""How long it is watched whether the machine is quiet, before it is measured."""


async def measure_while_idle(
    known: Callable[[], Speed], is_idle: Callable[[], bool], is_quiet: Callable[[], Awaitable[bool]], measure: Callable[[], Awaitable[None]]
) -> None:
    """Until cancelled. known: what is believed now. is_idle: whether the shard has nothing to do. measure: from then on it is known."""
    pause_s = FIRST_PAUSE_S
    while True:
        await asyncio.sleep(REST_S if known().is_undisturbed else pause_s)
        if is_idle() and await is_quiet() and is_idle():
            await measure()
        pause_s = FIRST_PAUSE_S if known().is_undisturbed else min(LONGEST_PAUSE_S, 2 * pause_s)


async def machine_is_quiet(num_threads: int, num_cpus: int) -> bool:
    """Whether so many threads would have processors of their own."""
    before = CpuTimes.now()
    await asyncio.sleep(LOOK_S)
    return Load.between(before, CpuTimes.now()).leaves_room_for(num_threads, num_cpus)
