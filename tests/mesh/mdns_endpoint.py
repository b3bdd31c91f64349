"""One end of a discovery test in a process of its own.

announce ID CLUSTER PORT      prints "announced", ends at SIGTERM
browse CLUSTER TIMEOUT_S      prints one line of JSON per coordinator found until SIGTERM or the time is over
"""

import asyncio
import json
import sys

from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery.announcer import Announcer
from dairllm.mesh.discovery.browsers import Browser
from dairllm.mesh.discovery.records import Announcement
from dairllm.mesh.process import run_until_signal


async def announce(stop: asyncio.Event, coordinator_id: str, cluster: str, port: str) -> None:
    async with Announcer(Announcement(coordinator_id, cluster_hash(cluster), int(port))):
        print("announced", flush=True)
        await stop.wait()


async def browse(stop: asyncio.Event, cluster: str, timeout_s: str) -> None:
    async with Browser(cluster_hash(cluster)) as browser:
        print("browsing", flush=True)
        printing = asyncio.create_task(print_found(browser))
        try:
            async with asyncio.timeout(float(timeout_s)):
                await stop.wait()
        except TimeoutError:
            pass
        printing.cancel()
        await asyncio.gather(printing, return_exceptions=True)
        print(json.dumps({"foreign": [coordinator.coordinator_id for coordinator in browser.foreign]}), flush=True)


async def print_found(browser: Browser) -> None:
    async for coordinator in browser.found():
        print(json.dumps({"id": coordinator.coordinator_id, "addresses": coordinator.addresses}), flush=True)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    sys.exit(run_until_signal(lambda stop: announce(stop, *arguments) if verb == "announce" else browse(stop, *arguments)))
