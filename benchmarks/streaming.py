"""How fast a model decodes that has no room in memory, beside what the disk gives: real processes on this machine over loopback.

    .venv/bin/python benchmarks/synthetic_model.py 8b.gguf --shape 8b
    .venv/bin/python benchmarks/streaming.py 8b.gguf --memory 2GiB --memory 1GiB,1GiB --memory 1GiB,1GiB,1GiB [--tokens 8] [--json]
    .venv/bin/python benchmarks/synthetic_model.py moe.gguf --shape 30b-a3b-8-layers
    .venv/bin/python benchmarks/streaming.py moe.gguf --memory 4GiB --memory 1700MiB --tokens 200 --warm-up 100 --temperature 2

    .venv/bin/python benchmarks/streaming.py 8b.gguf --memory 2GiB --peer-python PYTHON --threads 2

Each --memory is a cluster: a budget for every shard of it, in bytes or in percent of the model. Between the clusters the disk is measured:
the same file, read past the page cache by the threads that shards read with, in the pieces that they take.

With --peer-python, a Python that has the package llama-cpp-python, each --memory of one shard is a memory cgroup, too, and llama.cpp
decodes the same file in another one, mapped. Needs root.

- streamed: bytes read for every token, on average; stall: for how long one waits for them.
- hits: of the experts that were chosen, how many were in memory. With --temperature tokens are drawn, which choose some experts more often
  than others. With --random-tokens N each step is a request of its own for one of N tokens: hardly a text chooses that evenly, and a step
  is some ms longer.
- disk: bytes per second. limit: tok/s if nothing took time but reading. share: of it, what is reached.
- expected: what the plan says once the disks have been measured, which reading for the answer does; off: what was measured beside it.
- peak: of a shard, the most that was resident (VmHWM), beside its budget.
"""

import json
import mmap
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import typer
from command import run, show
from limited_memory import memory_limit
from mapped_peer import mapped_tok_s
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.settings import parse_size
from dairllm.model_files.memory import STREAM_PAGE_BYTES, STREAM_PIECE_BYTES, STREAM_READERS
from dairllm.shard_service.weights.reading import StreamedFile
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.processes import status_bytes
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

CONTEXT = 256
PROMPT = [5, 6, 7, 8]
SERVING_S = 300.0
LOOKED_AFTER_S = 12.0
TOLD_AFTER_S = 1.5
"""Shards say with every heartbeat what they have used."""
MEASURED_BYTES = 2 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Speed:
    """streamed_bytes, stalled_s: of a token. hits: None where all experts are in memory. peer_tok_s: None where it was not asked for."""

    memory: str
    streamed_bytes: float
    stalled_s: float
    hits: float | None
    tok_s: float
    expected_tok_s: float
    disk_bytes_s: float
    peak_bytes: tuple[int, ...]
    peer_tok_s: float | None = None

    @property
    def limit_tok_s(self) -> float:
        return self.disk_bytes_s / self.streamed_bytes if self.streamed_bytes else 0.0


class Run(NamedTuple):
    """tokens: of an answer, of which the first are not measured. random_tokens: instead of one answer, so many tokens are asked about.
    peer_python: None for none."""

    tokens: int
    warm_up: int
    temperature: float
    random_tokens: int
    threads: int
    peer_python: Path | None


def disk_bytes_s(model: Path) -> float:
    """Several pieces at a time, as shards read, over the beginning of the file."""
    path = max(model.iterdir(), key=lambda one: one.stat().st_size) if model.is_dir() else model
    file, size = StreamedFile(path), min(MEASURED_BYTES, path.stat().st_size - STREAM_PIECE_BYTES)
    offsets = range(0, size // STREAM_PIECE_BYTES * STREAM_PIECE_BYTES, STREAM_PIECE_BYTES)

    def read(offset: int) -> None:
        with mmap.mmap(-1, STREAM_PIECE_BYTES + 2 * STREAM_PAGE_BYTES) as buffer:
            file.read(offset, STREAM_PIECE_BYTES, buffer).release()

    began_s = time.perf_counter()
    with ThreadPoolExecutor(STREAM_READERS) as threads:
        list(threads.map(read, offsets))
    return len(offsets) * STREAM_PIECE_BYTES / (time.perf_counter() - began_s)


def measure(model: Path, memory: str, run: Run) -> Speed:
    """Beside the peer, in as much memory, if it is asked for."""
    if run.peer_python is None or "," in memory:
        return measure_in(model, memory, run, ())
    limit_bytes = parse_size(memory)
    with memory_limit(limit_bytes) as limit:
        speed = measure_in(model, memory, run, limit.prefix)
    peer_tok_s = mapped_tok_s(run.peer_python, model, run.threads, limit_bytes, run.warm_up, run.tokens - run.warm_up)
    return replace(speed, peer_tok_s=peer_tok_s)


def measure_in(model: Path, memory: str, run: Run, prefix: tuple[str, ...]) -> Speed:
    """The mean of the times between two tokens, since some wait for more than others."""
    budgets = zip("abcdefgh", memory.split(","), strict=False)
    members = [ShardSetup(name, memory=budget, threads=run.threads, prefix=prefix) for name, budget in budgets]
    arguments = ("--context-length", str(CONTEXT), "--kv-tokens", str(CONTEXT))
    before = disk_bytes_s(model)
    with Cluster(model, members, name="streaming", arguments=arguments, wait=False) as cluster:
        cluster.wait_serving(SERVING_S)
        begun, times = _ask(cluster, run) if run.random_tokens else _answer(cluster, run)
        time.sleep(TOLD_AFTER_S)
        used = {name: value - begun[name] for name, value in _used(cluster.state()).items()}
        state = _measured_state(cluster)
        peaks = tuple(status_bytes(cluster.processes[member.name].pid, "VmHWM") for member in members)
    num_tokens, chosen = len(times) - 1, used["experts_found"] + used["experts_missed"]
    step_s = statistics.mean(after - earlier for earlier, after in pairwise(times))
    return Speed(
        memory,
        used["streamed_bytes"] / num_tokens,
        used["stalled_us"] * 1e-6 / num_tokens,
        used["experts_found"] / chosen if chosen else None,
        1 / step_s,
        float(state["predicted_decode_tok_s"]),
        statistics.mean((before, disk_bytes_s(model))),
        peaks,
    )


def _answer(cluster: Cluster, run: Run) -> tuple[dict[str, int], list[float]]:
    """What was used before, and when each token came from then on."""
    with StreamedAnswer(cluster.http, PROMPT, run.tokens, temperature=run.temperature, seed=1) as stream:
        stream.wait_tokens(run.warm_up)
        begun, before = _used(cluster.state()), len(stream.tokens)
        return begun, [token.arrived_s for token in stream.wait_complete()][before - 1 :]


def _ask(cluster: Cluster, run: Run) -> tuple[dict[str, int], list[float]]:
    """The same, a request for each."""
    tokens, times = random.Random(1), list[float]()
    with httpx.Client(base_url=cluster.http, timeout=SERVING_S, trust_env=False) as client:
        for number in range(run.tokens):
            if number == run.warm_up:
                time.sleep(TOLD_AFTER_S)
                begun, times = _used(cluster.state()), [time.monotonic()]
            body = completion_body([tokens.randrange(run.random_tokens)], 1)
            client.post("/v1/completions", json=body).raise_for_status()
            times.append(time.monotonic())
    return begun, times


def _used(state: dict[str, Any]) -> dict[str, int]:
    names = ("streamed_bytes", "stalled_us", "experts_found", "experts_missed")
    return {name: sum(int(shard["usage"][name]) for shard in state["shards"]) for name in names}


def _measured_state(cluster: Cluster) -> dict[str, Any]:
    """After the coordinator has looked whether another plan would be faster now."""
    time.sleep(LOOKED_AFTER_S)
    return cluster.state()


def _in_bytes(memory: str, model: Path) -> str:
    """Percents of the model's size become bytes."""
    size_bytes = sum(one.stat().st_size for one in (model.iterdir() if model.is_dir() else (model,)))
    parts = [f"{round(float(part[:-1]) / 100 * size_bytes / MIB)}MiB" if part.endswith("%") else part for part in memory.split(",")]
    return ",".join(parts)


def main(
    model: Annotated[Path, typer.Argument(exists=True)],
    memory: Annotated[
        list[str], typer.Option(metavar="SIZE[,SIZE]", help="A budget for each shard of a cluster, also as 50%, of the model; repeatable.")
    ],
    tokens: Annotated[int, typer.Option(min=4)] = 8,
    warm_up: Annotated[int, typer.Option(min=1, help="So many of them are not measured.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    random_tokens: Annotated[int, typer.Option(min=0, help="Ask about tokens below it, one by one.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of each shard.")] = 1,
    peer_python: Annotated[Path | None, typer.Option(exists=True, help="Decode with llama.cpp, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Decode with less memory than the model."""
    how = Run(tokens, warm_up, temperature, random_tokens, threads, peer_python)
    speeds = [measure(model, _in_bytes(one, model), how) for one in memory]
    if as_json:
        print(json.dumps([{**asdict(speed), "limit_tok_s": speed.limit_tok_s} for speed in speeds]))
        return
    columns = ("memory", "streamed, GB", "stall, ms", "hits", "tok/s", "expected", "off", "disk, GB/s", "limit", "share", "peak, MiB")
    table = Table(*columns, "llama.cpp", title=model.name)
    for speed in speeds:
        share = f"{speed.tok_s / speed.limit_tok_s:.0%}" if speed.streamed_bytes else "-"
        budgets = [parse_size(budget) // MIB for budget in speed.memory.split(",")]
        peaks = ", ".join(f"{peak // MIB} of {budget}" for peak, budget in zip(speed.peak_bytes, budgets, strict=True))
        table.add_row(
            speed.memory,
            f"{speed.streamed_bytes / 1e9:.3f}",
            f"{speed.stalled_s * 1e3:.0f}",
            "-" if speed.hits is None else f"{speed.hits:.1%}",
            f"{speed.tok_s:.2f}",
            f"{speed.expected_tok_s:.2f}",
            f"{speed.tok_s / speed.expected_tok_s - 1:+.0%}",
            f"{speed.disk_bytes_s / 1e9:.2f}",
            f"{speed.limit_tok_s:.2f}",
            share,
            peaks,
            "-" if speed.peer_tok_s is None else f"{speed.peer_tok_s:.2f}",
        )
    show(table)


if __name__ == "__main__":
    run(main)
