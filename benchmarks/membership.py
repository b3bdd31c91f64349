"""What it costs one coordinator to hold the leases of many shards, over real gRPC.

    .venv/bin/python benchmarks/membership.py [--shards 200] [--seconds 60] [--watchers 1] [--model PATH|NAME] [--json]

A real coordinator process, and as many light shards (real leases, each on its own connection, without weights) in this process. They
join all at once, and hold their leases for some time. Two modes, one after the other:

- waiting: the shards offer no memory, so that no plan is possible.
- serving: a plan with a stage for every shard is made and its ring opened; no requests come.

Checked, in both: no lease ends, every heartbeat is acknowledged, and the plan that serves stays the same. Reported:

- joined: from the start until every shard is welcomed. Served: until the ring of all of them is open.
- round trip of heartbeats, as shards see it. It holds the delay of this process's own event loop, which is shown beside it.
- delay of the coordinator's event loop: how much later than it was due a timer runs, sampled every 50 ms, within the last minute: with
  less than 60 s of holding, the joins are part of it. The longest until the leases are held stands apart, too.
- the coordinator's CPU time over the time that passed, and its resident memory before the shards and with them.

watchers: programs that follow /api/cluster/events meanwhile, as an open status page does. By default a model is made up, with a unit
for every shard. Everything shares this machine's cores.
"""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import psutil
import typer
from command import run, show
from prometheus_client import CollectorRegistry
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.coordinator.event_loop import DelaySummary, EventLoopDelay
from dairllm.mesh.errors import DairllmError, InvalidSetting
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster
from tests.instruments.light_shards import LightFleet
from tests.tiny_gguf import write_tiny_llama

ROOM_BYTES = {"waiting": 0, "serving": 1 << 30}
"""Of each shard, by mode."""
JOIN_TIMEOUT_S = 60.0
SERVING_TIMEOUT_S = 60.0
OPENING_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Cost:
    """The coordinator's process at one time."""

    cpu_s: float
    resident_bytes: int

    @classmethod
    def of(cls, process: psutil.Process) -> "Cost":
        times = process.cpu_times()
        return cls(times.user + times.system, process.memory_info().rss)


class Quantiles(NamedTuple):
    """Milliseconds."""

    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, ascending_s: Sequence[float]) -> "Quantiles":
        count = len(ascending_s)
        return cls(*(1e3 * ascending_s[index] for index in (count // 2, count * 99 // 100, -1)))

    def shown(self) -> str:
        return f"{self.median:.1f} / {self.p99:.1f} / {self.longest:.1f}"


@dataclass(frozen=True, slots=True)
class Held:
    """What was seen in one mode. ended: leases that did, and why. cpu_share: of one core, while the leases were held."""

    mode: str
    stages: int
    joined_s: float
    served_s: float | None
    beats: int
    unacknowledged: int
    ended: Mapping[str, str]
    plan_changed: bool
    round_trip_ms: Quantiles
    own_delay_ms: Quantiles
    coordinator_delay_ms: Quantiles
    longest_delay_joining_ms: float
    joining_cpu_s: float
    cpu_share: float
    resident_alone_bytes: int
    resident_bytes: int

    def complaint(self) -> str | None:
        """What was dropped; None if nothing was."""
        if self.ended:
            name, reason = next(iter(self.ended.items()))
            return f"{self.mode}: {len(self.ended)} leases ended, that of {name} because {reason}"
        if self.unacknowledged:
            return f"{self.mode}: {self.unacknowledged} of {self.beats} heartbeats were not acknowledged"
        return f"{self.mode}: the plan changed although nothing happened" if self.plan_changed else None


async def hold(cluster: Cluster, mode: str, num_shards: int, seconds: float, num_watchers: int) -> Held:
    """Join, hold and measure. cluster: a coordinator without shards."""
    loop = asyncio.get_running_loop()
    process = psutil.Process(cluster.processes["coordinator"].pid)
    alone, began_s = Cost.of(process), loop.time()
    async with watching(cluster.http, num_watchers), LightFleet(cluster.grpc, cluster.name, num_shards, ROOM_BYTES[mode]) as fleet:
        await fleet.joined(JOIN_TIMEOUT_S)
        joined_s, served_s = loop.time() - began_s, None
        if mode == "serving":
            await fleet.activated(SERVING_TIMEOUT_S)
            await asyncio.to_thread(cluster.wait_serving, OPENING_TIMEOUT_S)
            served_s = loop.time() - began_s
        before = await asyncio.to_thread(cluster.state)
        fleet.forget_round_trips()
        settled, settled_s = Cost.of(process), loop.time()
        async with own_delay() as delay:
            await asyncio.sleep(seconds)
        held, held_s = Cost.of(process), loop.time()
        after = await asyncio.to_thread(cluster.state)
        await fleet.fall_quiet()
        ended = fleet.ended
    return Held(
        mode=mode,
        stages=sum(shard["stage"] is not None for shard in after["shards"]),
        joined_s=joined_s,
        served_s=served_s,
        beats=fleet.beats,
        unacknowledged=fleet.unacknowledged,
        ended=ended,
        plan_changed=(before["phase"], before["epoch"]) != (after["phase"], after["epoch"]),
        round_trip_ms=Quantiles.of(fleet.round_trips_s),
        own_delay_ms=_delay_ms(delay.recent()),
        coordinator_delay_ms=_delay_ms(DelaySummary(**after["event_loop_delay"])),
        longest_delay_joining_ms=1e3 * before["event_loop_delay"]["longest_s"],
        joining_cpu_s=settled.cpu_s - alone.cpu_s,
        cpu_share=(held.cpu_s - settled.cpu_s) / (held_s - settled_s),
        resident_alone_bytes=alone.resident_bytes,
        resident_bytes=held.resident_bytes,
    )


def _delay_ms(summary: DelaySummary) -> Quantiles:
    return Quantiles(*(1e3 * value_s for value_s in summary))


@contextlib.asynccontextmanager
async def own_delay() -> AsyncIterator[EventLoopDelay]:
    """How late this process itself is meanwhile."""
    delay = EventLoopDelay(CollectorRegistry())
    async with _running([delay.run()]):
        yield delay


@contextlib.asynccontextmanager
async def watching(http: str, count: int) -> AsyncIterator[None]:
    """So many programs follow the state of the cluster meanwhile."""
    async with httpx.AsyncClient(base_url=http, timeout=None, trust_env=False) as client, _running([_watch(client) for _ in range(count)]):
        yield


async def _watch(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/api/cluster/events") as response:
        async for _ in response.aiter_raw():
            pass


@contextlib.asynccontextmanager
async def _running(works: Sequence[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure(model: Path, num_shards: int, seconds: float, num_watchers: int) -> list[Held]:
    """Each mode with a coordinator of its own. Raises DairllmError if anything was dropped."""
    results = []
    for mode in ROOM_BYTES:
        with Cluster(model, (), min_shards=num_shards, name=f"membership-{mode}", wait=False) as cluster:
            results.append(asyncio.run(hold(cluster, mode, num_shards, seconds, num_watchers)))
        complaint = results[-1].complaint()
        if complaint is not None:
            raise DairllmError(complaint)
    return results


def print_table(results: Sequence[Held], title: str) -> None:
    table = Table(
        "", *(result.mode for result in results), title=title, title_justify="left", box=None, header_style="bold", pad_edge=False
    )
    for name, cells in _rows(results):
        table.add_row(name, *cells)
    show(table)


def _rows(results: Sequence[Held]) -> Iterator[tuple[str, list[str]]]:
    yield "stages of the plan", [str(one.stages) for one in results]
    yield "all joined, s", [f"{one.joined_s:.2f}" for one in results]
    yield "served, s", ["-" if one.served_s is None else f"{one.served_s:.2f}" for one in results]
    yield "heartbeats, all acknowledged", [str(one.beats) for one in results]
    yield "round trip, ms: median / p99 / longest", [one.round_trip_ms.shown() for one in results]
    yield "event loop delay, ms: coordinator", [one.coordinator_delay_ms.shown() for one in results]
    yield "event loop delay, ms: this process", [one.own_delay_ms.shown() for one in results]
    yield "longest until the leases are held, ms", [f"{one.longest_delay_joining_ms:.1f}" for one in results]
    yield "coordinator: CPU until then, s", [f"{one.joining_cpu_s:.2f}" for one in results]
    yield "coordinator: CPU while they are held", [f"{one.cpu_share:.1%} of a core" for one in results]
    yield (
        "coordinator: resident alone, and with shards, MiB",
        [f"{one.resident_alone_bytes / 2**20:.0f}, {one.resident_bytes / 2**20:.0f}" for one in results],
    )


def membership(
    shards: Annotated[int, typer.Option(min=3, help="Light shards.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="How long the leases are held.")] = 60,
    watchers: Annotated[int, typer.Option(min=0, help="Programs that follow the state of the cluster meanwhile.")] = 1,
    model: Annotated[str | None, typer.Option(help="Path of a GGUF file, or a known name, with a unit for every shard.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Hold the leases of many shards at one coordinator."""
    with tempfile.TemporaryDirectory(prefix="dairllm-membership-") as folder:
        path = resolve_model(model) if model else write_tiny_llama(Path(folder) / "long.gguf", num_layers=shards - 2)
        num_units = len(build_manifest(path).units)
        if num_units < shards:
            raise InvalidSetting(f"--shards is {shards}; {path.name} has {num_units} units, and every stage needs one")
        results = measure(path, shards, seconds, watchers)
    if as_json:
        facts = {"shards": shards, "seconds": seconds, "watchers": watchers}
        print(json.dumps({**facts, "results": [_to_json(result) for result in results]}))
        return
    print_table(results, f"{shards} shards for {seconds:g} s, {watchers} watching")


def _to_json(result: Held) -> dict[str, Any]:
    quantiles = {name: getattr(result, name)._asdict() for name in ("round_trip_ms", "own_delay_ms", "coordinator_delay_ms")}
    return {**asdict(result), **quantiles}


if __name__ == "__main__":
    run(membership)
