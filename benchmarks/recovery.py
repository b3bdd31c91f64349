"""What clients notice when shards are lost, and when one joins: real processes on this machine over loopback.

    .venv/bin/python benchmarks/recovery.py [--model smollm2:135m] [--repeat 20] [--join-model PATH --memory 3GiB] [--json]

- kill to next token: a ring of three shards with one to spare answers a streaming client with a long prompt. After some tokens a shard of
  the ring, each place in turn, is killed (SIGKILL) or frozen (SIGSTOP); from the signal to the end of the longest silence that follows is
  the time that counts. The spare loads the lost layers from this machine's files, and the answer is compared with the undisturbed one:
  tokens and log-probabilities.
- replayed: of the work that had gone into the answer, how much was done again, as the coordinator says: all layers of all rows are 100 %.
- join: two slower shards (capped to the kernels of --slow-isa, one thread) answer; then one that is as fast as this machine joins, and
  layers move to it while the answer goes on. Pause: the longest time between two tokens from then on. The switch waits for the step that
  is under way, so a pause contains up to one ordinary step of the slow shards. Loaded: what the shards of the new plan read, against the
  bytes of the units that they had not.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer
from command import WITHOUT_REUSE, run, show
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.errors import DairllmError
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.streamed_answers import StreamedAnswer, Token

REQUEST_TIMEOUT_S = 600.0
RING_SHARDS = 3
TOKENS_BEFORE = 16
SETTLING_TOKENS = 4
HEALED_WITHIN_S = 60.0
JOIN_TIMEOUT_S = 240.0
RECOVERED = re.compile(r"went on after [\d.]+ s: .*; (\d+) ?% of the work was done again")


@dataclass(frozen=True, slots=True)
class Loss:
    """next_token_s: from the signal to the first token after the silence. lost_share: of the model's units, what the shard had.
    replayed_share: of the work on the answer, None if unsaid."""

    stage: int
    next_token_s: float
    lost_share: float
    replayed_share: float | None


@dataclass(frozen=True, slots=True)
class Join:
    """pause_s: what the client saw; with all shards on few cores, loading slows the others down. switch_s: of it, what the coordinator says
    that the switch took, for which nothing was computed.
    moved_bytes: of the units of the new plan that their shards had not. loaded_bytes: what these shards read for it."""

    pause_s: float
    switch_s: float
    typical_s_before: float
    tok_s_before: float
    tok_s_after: float
    moved_units: int
    moved_bytes: int
    loaded_bytes: int
    serving_after_join_s: float


def measure_losses(cluster: Cluster, how: signal.Signals, repeat: int, prompt: Sequence[int], num_tokens: int) -> list[Loss]:
    expected = bits_of(_undisturbed(cluster, prompt, num_tokens))
    return [_lose(cluster, how, number % RING_SHARDS, prompt, num_tokens, expected) for number in range(repeat)]


def _undisturbed(cluster: Cluster, prompt: Sequence[int], num_tokens: int) -> list[Token]:
    with StreamedAnswer(cluster.http, prompt, num_tokens, REQUEST_TIMEOUT_S) as stream:
        return stream.wait_complete()


def bits_of(tokens: Sequence[Token]) -> list[tuple[str, float]]:
    return [(token.text, token.logprob) for token in tokens]


def _lose(cluster: Cluster, how: signal.Signals, stage: int, prompt: Sequence[int], num_tokens: int, expected: Sequence[Any]) -> Loss:
    coordinator = cluster.processes["coordinator"]
    read = len(coordinator.output())
    with StreamedAnswer(cluster.http, prompt, num_tokens, REQUEST_TIMEOUT_S) as stream:
        stream.wait_tokens(TOKENS_BEFORE, REQUEST_TIMEOUT_S)
        units = _units(cluster.state())
        shard = list(units)[stage]
        signalled_s = time.monotonic()
        cluster.processes[shard].send(how)
        tokens = stream.wait_complete()
    if bits_of(tokens) != expected:
        raise DairllmError(f"after the loss of stage {stage} the answer differs from the undisturbed one")
    if how is signal.SIGSTOP:
        cluster.processes[shard].resume()
    else:
        cluster.processes[shard].wait()
        cluster.processes[shard].start()
    num_shards = len(cluster.members)
    cluster.wait_until(lambda state: len(state["shards"]) == num_shards and state["phase"] == "serving", HEALED_WITHIN_S)
    said = RECOVERED.findall(coordinator.output()[read:])
    lost_share = len(units[shard]) / sum(map(len, units.values()))
    return Loss(stage, end_of_silence_s(tokens, signalled_s) - signalled_s, lost_share, int(said[0]) / 100 if said else None)


def end_of_silence_s(tokens: Sequence[Token], since_s: float) -> float:
    arrivals_s = [since_s, *(token.arrived_s for token in tokens if token.arrived_s > since_s)]
    gaps = [(later - earlier, later) for earlier, later in itertools.pairwise(arrivals_s)]
    if not gaps:
        raise DairllmError("the answer was over before the shard was lost: a longer one is needed (--generate)")
    return max(gaps)[1]


def measure_join(model: Path, memory: str, slow_isa: str, prompt: Sequence[int], steady_tokens: int) -> Join:
    """One stream before, while and after a fast shard joins two slow ones."""
    slow = [ShardSetup(name, slow_isa, memory=memory) for name in ("a", "b")]
    sizes = [unit.size_bytes for unit in build_manifest(model).units]
    with Cluster(model, slow) as cluster, StreamedAnswer(cluster.http, prompt, 1000, REQUEST_TIMEOUT_S) as stream:
        stream.wait_tokens(steady_tokens, REQUEST_TIMEOUT_S)
        before = list(stream.tokens)
        units_before = _units(cluster.state())
        state, moved = _join_fast(cluster, memory, units_before)
        serving_s = time.monotonic()
        settled = len(stream.tokens) + SETTLING_TOKENS
        stream.wait_tokens(settled + steady_tokens, REQUEST_TIMEOUT_S)
        tokens = list(stream.tokens)
    joined_s = before[-1].arrived_s
    gaps = [later.arrived_s - earlier.arrived_s for earlier, later in itertools.pairwise(tokens) if earlier.arrived_s >= joined_s]
    typical = [later.arrived_s - earlier.arrived_s for earlier, later in itertools.pairwise(before)]
    after = tokens[settled:]
    loaded = sum(
        shard["load"]["from_disk_bytes"] + shard["load"]["from_network_bytes"] for shard in state["shards"] if shard["name"] in moved
    )
    return Join(
        pause_s=max(gaps),
        switch_s=max(event["duration_s"] for event in state["events"] if event["kind"] == "switched"),
        typical_s_before=median(typical),
        tok_s_before=1 / median(typical),
        tok_s_after=(len(after) - 1) / (after[-1].arrived_s - after[0].arrived_s),
        moved_units=sum(map(len, moved.values())),
        moved_bytes=sum(sizes[unit] for units in moved.values() for unit in units),
        loaded_bytes=loaded,
        serving_after_join_s=serving_s - joined_s,
    )


def _join_fast(cluster: Cluster, memory: str, units_before: dict[str, set[int]]) -> tuple[dict[str, Any], dict[str, set[int]]]:
    """The state with it in the plan, and by shard the units that it did not have before."""
    cluster.start_shard(ShardSetup("c", threads=len(os.sched_getaffinity(0)), memory=memory))

    def has_switched(state: dict[str, Any]) -> bool:
        return state["phase"] == "serving" and not state["next_epoch"] and "c" in _units(state)

    state = cluster.wait_until(has_switched, JOIN_TIMEOUT_S)
    moved = {name: units - units_before.get(name, set()) for name, units in _units(state).items()}
    return state, {name: units for name, units in moved.items() if units}


def _units(state: dict[str, Any]) -> dict[str, set[int]]:
    return {shard["name"]: set(range(shard["first_unit"], shard["end_unit"])) for shard in state["shards"] if shard["stage"] is not None}


def print_losses(losses: dict[str, list[Loss]], title: str) -> None:
    table = Table("shard", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("times", "to the next token, median", "lowest", "worst", "units lost, mean", "replayed, mean"):
        table.add_column(column, justify="right")
    for name, each in losses.items():
        lost = f"{mean(loss.lost_share for loss in each):.0%}"
        times_s = [loss.next_token_s for loss in each]
        shares = [loss.replayed_share for loss in each if loss.replayed_share is not None]
        replayed = f"{mean(shares):.0%}" if shares else "none said"
        table.add_row(name, str(len(each)), f"{median(times_s):.2f} s", f"{min(times_s):.2f} s", f"{max(times_s):.2f} s", lost, replayed)
    show(table)


def print_joins(joins: Sequence[Join], title: str) -> None:
    table = Table("join", "median", "worst", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    rows: list[tuple[str, Callable[[Join], float], Callable[[float], str], Callable[[Iterable[float]], float]]] = [
        ("longest pause", lambda join: join.pause_s, _milliseconds, max),
        ("of it, the switch", lambda join: join.switch_s, _milliseconds, max),
        ("typical time between tokens before", lambda join: join.typical_s_before, _milliseconds, max),
        ("tokens per second before", lambda join: join.tok_s_before, "{:.1f}".format, min),
        ("tokens per second after", lambda join: join.tok_s_after, "{:.1f}".format, min),
        ("bytes of the units that moved", lambda join: join.moved_bytes, _mebibytes, max),
        ("bytes loaded", lambda join: join.loaded_bytes, _mebibytes, max),
        ("from the start of its process to serving with it", lambda join: join.serving_after_join_s, "{:.1f} s".format, max),
    ]
    for column in table.columns[1:]:
        column.justify = "right"
    for name, value_of, text_of, worst in rows:
        values = [value_of(join) for join in joins]
        table.add_row(name, text_of(median(values)), text_of(worst(values)))
    show(table)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _mebibytes(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def recovery(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    repeat: Annotated[int, typer.Option(min=0, help="Losses of each kind; 0 for none.")] = 20,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    generate: Annotated[int, typer.Option(min=2 * TOKENS_BEFORE, help="Tokens of each answer.")] = 64,
    wire: Annotated[str, typer.Option(help="What activations are rounded to between layers, and sent as.")] = "Q8_0_OUTLIERS",
    memory: Annotated[str, typer.Option(help="Memory of each shard.")] = "1GiB",
    join_model: Annotated[Path | None, typer.Option(exists=True, help="Measure a join, too, with this model.")] = None,
    joins: Annotated[int, typer.Option(min=1, help="Joins to measure.")] = 5,
    slow_isa: Annotated[str, typer.Option(help="Instruction set of the two shards that answer before the join.")] = "avx2",
    steady: Annotated[int, typer.Option(min=2, help="Tokens before and after the join.")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure what clients notice of shards that are lost or join."""
    path = resolve_model(model)
    spec = build_manifest(path).spec
    ids = [(7 * position) % spec.vocab_size for position in range(prompt)]
    losses: dict[str, list[Loss]] = {}
    with contextlib.ExitStack() as stack:
        if repeat:
            members = [ShardSetup(name, memory=memory) for name in "abcd"]
            cluster = stack.enter_context(Cluster(path, members, wire, min_shards=RING_SHARDS, arguments=WITHOUT_REUSE, name="recovery"))
            cluster.wait_until(lambda state: len(state["shards"]) == len(members))
            for name, how in (("killed (SIGKILL)", signal.SIGKILL), ("frozen (SIGSTOP)", signal.SIGSTOP)):
                losses[name] = measure_losses(cluster, how, repeat, ids, generate)
    measured_joins = [measure_join(join_model, memory, slow_isa, ids, steady) for _ in range(joins)] if join_model is not None else []
    if as_json:
        results = {name: [asdict(loss) for loss in each] for name, each in losses.items()}
        facts = {"model": spec.name, "wire": wire, "prompt": prompt, "generate": generate}
        print(json.dumps({**facts, "losses": results, "joins": [asdict(join) for join in measured_joins]}))
        return
    if losses:
        print_losses(losses, f"{spec.name}, {RING_SHARDS} shards and one to spare, {wire}, prompt of {prompt} tokens")
    if measured_joins:
        print_joins(measured_joins, f"{join_model}: a fast shard joins two slower ones while they answer, {len(measured_joins)} times")


if __name__ == "__main__":
    run(recovery)
