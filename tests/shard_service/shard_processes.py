"""Real dairllm-shard processes on loopback."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from tests.instruments.processes import ManagedProcess
from tests.shard_service.fake_coordinator import CLUSTER, FakeCoordinator, JoinedShard


def shard_process(coordinator: FakeCoordinator, *arguments: str, name: str = "s") -> ManagedProcess:
    flags = ["--coordinator", coordinator.address, "--cluster", CLUSTER, "--name", name, "--host", "127.0.0.1", "--threads", "1"]
    flags += ["--memory", "512MiB", "--ready-file", "{ready_file}", *arguments]
    return ManagedProcess([sys.executable, "-m", "dairllm.shard_service.main", *flags], name=f"shard-{name}")


@contextlib.asynccontextmanager
async def joined(coordinator: FakeCoordinator, *arguments: str, name: str = "s") -> AsyncIterator[JoinedShard]:
    with shard_process(coordinator, *arguments, name=name) as process:
        try:
            shard = await coordinator.next_shard()
            PROCESSES[name] = process
            yield shard
            assert process.running, process.tail()
        except BaseException:
            print(process.tail())
            raise
        finally:
            # Not `with` alone: while it waited for the process, nothing could answer its goodbye.
            await asyncio.to_thread(process.close)


PROCESSES: dict[str, ManagedProcess] = {}


def process_of(shard: JoinedShard) -> ManagedProcess:
    return PROCESSES[shard.hello.name]
