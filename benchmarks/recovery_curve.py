"""How long an answer stands still when one of three shards is killed, by its context: real processes on this machine over loopback.

    .venv/bin/python benchmarks/synthetic_model.py 1b.gguf
    .venv/bin/python benchmarks/recovery_curve.py 1b.gguf [--contexts 100,1000,3000] [--repeat 1] [--json]     # root for 'fetched'

Three shards with one thread each answer a prompt of so many tokens. After some tokens one of them, each place in the ring in turn, is
killed (SIGKILL). The others take over its layers, and the answer is compared with the undisturbed one: tokens and log-probabilities.

- at hand: the others read the lost layers from this machine's file, which lies in the page cache.
- fetched: shards see no file, and what nobody else has comes from the coordinator over gRPC. Their caches on disk are emptied before each
  loss.
- noticed and planned, loaded, switched, replayed: the parts of the silence, as the coordinator's events tell them: until the new plan was
  made, until its layers were loaded, until the ring was open, until the next token.
"""

import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from command import WITHOUT_REUSE, run, show
from recovery import bits_of, end_of_silence_s
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.errors import DairllmError
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.streamed_answers import StreamedAnswer

REQUEST_TIMEOUT_S = 900.0
NUM_SHARDS = 3
TOKENS_BEFORE = 6
NUM_TOKENS = 16
HEALED_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Silence:
    """stage: the place of the shard that was killed. The parts add up to silence_s: from the signal to the first token after it."""

    context: int
    at_hand: bool
    stage: int
    silence_s: float
    planned_s: float
    loaded_s: float
    switched_s: float
    replayed_s: float


@contextlib.contextmanager
def cluster_of(model: Path, folder: Path, memory: str, context: int, *, at_hand: bool) -> Iterator[Cluster]:
    seen = folder / "model" / model.name
    seen.parent.mkdir(parents=True)
    shutil.copyfile(model, seen)
    members = [ShardSetup(name, memory=memory, cache=None if at_hand else folder / name) for name in "abc"]
    tokens = context + NUM_TOKENS + 32
    arguments = ("--context-length", str(tokens), "--kv-tokens", str(2 * tokens), *WITHOUT_REUSE)
    with Cluster(seen, members, min_shards=NUM_SHARDS, name="curve", arguments=arguments) as cluster:
        yield cluster


def measure(model: Path, memory: str, context: int, repeat: int, *, at_hand: bool) -> list[Silence]:
    prompt = [(7 * position) % 997 for position in range(context)]
    silences = []
    with (
        tempfile.TemporaryDirectory(prefix="dairllm-curve-") as folder,
        cluster_of(model, Path(folder), memory, context, at_hand=at_hand) as cluster,
    ):
        with StreamedAnswer(cluster.http, prompt, NUM_TOKENS, REQUEST_TIMEOUT_S) as stream:
            expected = bits_of(stream.wait_complete())
        for number in range(NUM_SHARDS * repeat):
            for name in () if at_hand else "abc":
                shutil.rmtree(Path(folder) / name, ignore_errors=True)
            silences.append(_lose(cluster, number % NUM_SHARDS, prompt, expected, at_hand=at_hand))
    return silences


def _lose(cluster: Cluster, stage: int, prompt: Sequence[int], expected: Sequence[Any], *, at_hand: bool) -> Silence:
    with StreamedAnswer(cluster.http, prompt, NUM_TOKENS, REQUEST_TIMEOUT_S) as stream:
        stream.wait_tokens(TOKENS_BEFORE, REQUEST_TIMEOUT_S)
        shard = _ring(cluster.state())[stage]
        killed_s, killed_at_s = time.monotonic(), time.time()
        cluster.processes[shard].send(signal.SIGKILL)
        tokens = stream.wait_complete()
    if bits_of(tokens) != expected:
        raise DairllmError(f"after the loss of stage {stage} the answer differs from the undisturbed one")
    next_s = end_of_silence_s(tokens, killed_s) - killed_s
    after_s = [(event["kind"], _since_1970_s(event) - killed_at_s) for event in cluster.state()["events"]]
    planned_s, loaded_s, open_s = (_last_s(after_s, kinds) for kinds in (("plan",), ("plan", "loaded"), ("recovered",)))
    cluster.processes[shard].wait()
    cluster.processes[shard].start()
    cluster.wait_until(_is_whole, HEALED_WITHIN_S)
    return Silence(len(prompt), at_hand, stage, next_s, planned_s, loaded_s - planned_s, open_s - loaded_s, next_s - open_s)


def _since_1970_s(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def _last_s(events: Sequence[tuple[str, float]], kinds: Sequence[str]) -> float:
    """When the last event of these kinds came after the loss."""
    return max((at_s for kind, at_s in events if kind in kinds and at_s > 0), default=0.0)


def _ring(state: dict[str, Any]) -> list[str]:
    stages = [shard for shard in state["shards"] if shard["stage"] is not None]
    return [shard["name"] for shard in sorted(stages, key=lambda shard: shard["stage"])]


def _is_whole(state: dict[str, Any]) -> bool:
    return state["phase"] == "serving" and not state["next_epoch"] and len(_ring(state)) == NUM_SHARDS


def print_curve(silences: Sequence[Silence], title: str) -> None:
    table = Table("context", "layers", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("losses", "silence, median", "worst", "noticed and planned", "loaded", "switched", "replayed"):
        table.add_column(column, justify="right")
    for context, at_hand in dict.fromkeys((silence.context, silence.at_hand) for silence in silences):
        each = [silence for silence in silences if (silence.context, silence.at_hand) == (context, at_hand)]
        whole = [silence.silence_s for silence in each]
        parts = [
            [getattr(silence, part) / silence.silence_s for silence in each]
            for part in ("planned_s", "loaded_s", "switched_s", "replayed_s")
        ]
        shares = (f"{median(part):.0%}" for part in parts)
        where = "at hand" if at_hand else "fetched"
        table.add_row(f"{context:,}", where, str(len(each)), f"{median(whole):.1f} s", f"{max(whole):.1f} s", *shares)
    show(table)


def recovery_curve(
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A GGUF file.")],
    contexts: Annotated[str, typer.Option(help="Tokens of the prompts, parted by commas.")] = "100,1000,3000",
    repeat: Annotated[int, typer.Option(min=1, help="Losses of each place in the ring.")] = 1,
    memory: Annotated[str, typer.Option(help="Memory of each shard.")] = "2GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure how long an answer stands still when a shard is lost, by its context."""
    lengths = [int(context) for context in contexts.split(",")]
    silences = [
        silence for at_hand in (True, False) for context in lengths for silence in measure(model, memory, context, repeat, at_hand=at_hand)
    ]
    if as_json:
        print(json.dumps([asdict(silence) for silence in silences]))
        return
    print_curve(silences, f"{model.name}: one of {NUM_SHARDS} shards with one thread each is killed")


if __name__ == "__main__":
    run(recovery_curve)
