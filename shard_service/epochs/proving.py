"""Showing the coordinator that this shard computes and loads."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor

from dairllm.mesh.proof import proof_of
from dairllm.shard_service.epochs.preparer import LOADER_THREADS
from dairllm.v1 import cluster_pb2

_LOADERS_MEET_S = 5.0


async def prove(message: cluster_pb2.Prove, compute_thread: Executor, loader_threads: Executor, tell: Callable[[int, bytes], None]) -> None:
    """Computed where frames are, and only once every thread that loads has shown that it is free: what hangs gives no proof."""
    loop = asyncio.get_running_loop()
    meeting = threading.Barrier(LOADER_THREADS)
    meetings = [loop.run_in_executor(loader_threads, _meet, meeting) for _ in range(LOADER_THREADS)]
    digest = await loop.run_in_executor(compute_thread, proof_of, message.challenge)
    if all(await asyncio.gather(*meetings)):
        tell(message.number, digest)


def _meet(meeting: threading.Barrier) -> bool:
    try:
        meeting.wait(_LOADERS_MEET_S)
    except threading.BrokenBarrierError:
        return False
    return True
