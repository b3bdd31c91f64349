"""Peak memory of real shard processes against what they hold: weights + KV cache + 150 MB.

    .venv/bin/python benchmarks/memory.py --model smollm2:135m [--shards 2] [--prompt 1500] [--json]

Starts a cluster on this machine, has it load the model, read a long prompt and decode, and then takes each shard's peak resident set from
the kernel (VmHWM of /proc/PID/status) and its weights and KV cache from /api/cluster. Pages of the KV cache that nothing was ever
written to cost nothing, so the peak is held against both: the cache as allocated (the limit that is promised) and as far as it was
written, by whole blocks (what this run could need). Weights that two units share (tied embeddings) count once. Ends with code 1 if a shard
takes more than it may.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from command import run, show
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.processes import status_bytes

ALLOWANCE_BYTES = 150_000_000
BLOCK_TOKENS = 32
"""Of the KV cache, as the coordinator gives them out."""
HEARTBEAT_DEADLINE_S = 10.0
MB = 1e6


@dataclass(frozen=True, slots=True)
class ShardMemory:
    """peak_bytes: of the resident set since the process began. files_bytes: pages of programs and libraries that are resident now."""

    name: str
    units: tuple[int, int]
    weights_bytes: int
    kv_allocated_bytes: int
    kv_written_bytes: int
    peak_bytes: int
    files_bytes: int

    @property
    def beyond_bytes(self) -> int:
        """Of the peak, what is neither weights nor written cache; within ALLOWANCE_BYTES if all is well."""
        return self.peak_bytes - self.weights_bytes - self.kv_written_bytes

    @property
    def is_within(self) -> bool:
        return self.peak_bytes <= self.weights_bytes + self.kv_allocated_bytes + ALLOWANCE_BYTES

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "beyond_bytes": self.beyond_bytes, "is_within": self.is_within}


def measure(cluster: Cluster, prompt: list[int], generate: int) -> list[ShardMemory]:
    """Of all shards of the plan, after this prompt and answer, which must be the first of a fresh cluster."""
    cluster.complete(prompt, max_tokens=generate, ignore_eos=True)
    frames = {name: load["frames"] for name, load in cluster.state()["stage_loads"].items()}
    state = cluster.wait_until(
        lambda state: all(shard["usage"]["frames"] >= frames.get(shard["name"], 0) for shard in state["shards"]), HEARTBEAT_DEADLINE_S
    )
    # The last token of the answer is never fed back.
    blocks = -(-(len(prompt) + generate - 1) // BLOCK_TOKENS)
    share_written = blocks / state["kv_blocks_total"]
    return [_shard_memory(cluster, shard, share_written) for shard in state["shards"] if shard["stage"] is not None]


def _shard_memory(cluster: Cluster, shard: dict[str, Any], share_written: float) -> ShardMemory:
    pid, usage = cluster.processes[shard["name"]].pid, shard["usage"]
    return ShardMemory(
        name=shard["name"],
        units=(shard["first_unit"], shard["end_unit"]),
        weights_bytes=usage["weights_bytes"],
        kv_allocated_bytes=usage["kv_cache_bytes"],
        kv_written_bytes=round(usage["kv_cache_bytes"] * share_written),
        peak_bytes=status_bytes(pid, "VmHWM"),
        files_bytes=status_bytes(pid, "RssFile"),
    )


def memory_table(shards: list[ShardMemory], title: str) -> Table:
    table = Table("shard", "units", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("weights", "KV allocated", "KV written", "peak", "beyond weights and KV written", "of which files", "within the limit"):
        table.add_column(name, justify="right")
    for shard in shards:
        sizes = (
            shard.weights_bytes,
            shard.kv_allocated_bytes,
            shard.kv_written_bytes,
            shard.peak_bytes,
            shard.beyond_bytes,
            shard.files_bytes,
        )
        units = f"{shard.units[0]} to {shard.units[1] - 1}"
        table.add_row(shard.name, units, *(f"{size / MB:.1f}" for size in sizes), "yes" if shard.is_within else "NO")
    return table


def memory(
    model: Annotated[list[str] | None, typer.Option(help="GGUF file or known name; repeatable. Default: smollm2:135m.")] = None,
    shards: Annotated[int, typer.Option(min=1, max=8, help="Shards of each cluster.")] = 2,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 1500,
    generate: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 32,
    budget: Annotated[str, typer.Option(help="Memory that each shard may use.")] = "2GiB",
    threads: Annotated[int, typer.Option(min=1, help="Threads of each shard.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure the peak memory of shards."""
    results: dict[str, list[ShardMemory]] = {}
    for name in model or ["smollm2:135m"]:
        path = resolve_model(name)
        spec = build_manifest(path).spec
        ids: list[int] = np.random.default_rng(1).integers(0, spec.vocab_size, prompt).tolist()
        members = [ShardSetup("abcdefgh"[i], threads=threads, memory=budget) for i in range(shards)]
        with Cluster(path, members, "Q8_0_OUTLIERS", name="memory") as cluster:
            results[name] = measure(cluster, ids, generate)
    if as_json:
        facts = {"prompt": prompt, "generate": generate, "threads": threads, "allowance_bytes": ALLOWANCE_BYTES}
        print(json.dumps({**facts, "results": {name: [shard.to_json() for shard in rows] for name, rows in results.items()}}))
    else:
        show(*(memory_table(rows, f"{name}, prompt of {prompt}, answer of {generate} tokens; MB") for name, rows in results.items()))
    if not all(shard.is_within for rows in results.values() for shard in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    run(memory)
