"""What guesses bring: answers of four kinds, with guesses and without, by numbers of shards.

    .venv/bin/python benchmarks/guesses.py --model smollm2:135m [--shards 1,2,3,4] [--memory 160MiB] [--repeat 5] [--json]

Starts two clusters per number of shards, one with `--no-guesses`, all on this machine over loopback, each shard with one thread, and asks
them in turn, so that what other programs do meets all alike. Medians, with lowest and highest.

- code: a function is written again with another name. quotes: a text is copied. JSON: lines are written as JSON, as in an example. All with
  the most probable tokens. prose: a story at temperature 0.9, which repeats nothing on purpose.
- tok/s: of one answer at a time, from its first token to its last one. ratio: to the cluster without guesses, of the same round.
- per frame: tokens that a frame brings. With `--memory` for less than the model that is what each reading of the weights brings.
- guessed, right: guesses per token of the answers, and how many of them were right.
- Every answer is compared with the one of the first cluster: tokens and log-probabilities. A different one ends the run.
"""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from command import run, show
from rich.table import Table
from ring import Spread, parse_counts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.errors import DairllmError
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.streamed_answers import StreamedAnswer

FUNCTION = '''def area(shape):
    """The area of a shape, in square metres."""
    if shape.kind == "circle":
        return 3.14159 * shape.radius * shape.radius
    elif shape.kind == "square":
        return shape.side * shape.side
    elif shape.kind == "rectangle":
        return shape.width * shape.height
    elif shape.kind == "triangle":
        return shape.base * shape.height / 2
    else:
        raise ValueError("unknown shape: " + shape.kind)
'''
REPORT = (
    "The harbour of Lindow was closed for three days last week, after a cargo ship had lost its anchor in the channel. "
    "Divers found the anchor on Thursday morning, at a depth of eleven metres. "
    "The port authority said that no oil had been spilled, and that nobody had been hurt. "
    "Fishermen complained that they had not been told how long the closure would last. "
    "The ship, which carried timber from Norway, will be repaired in the dry dock until the end of the month. "
)
RECORDS = "name: Anna Berg, age: 31, city: Oslo, job: teacher\nname: Tom Hill, age: 45, city: Leeds, job: baker\n"
MORE_RECORDS = "".join(
    f"name: {name}, age: {age}, city: {city}, job: {job}\n"
    for name, age, city, job in (
        ("Eva Roth", 28, "Bern", "nurse"),
        ("Paul Weir", 52, "Cork", "farmer"),
        ("Ines Sousa", 39, "Porto", "engineer"),
        ("Jan Novak", 61, "Brno", "driver"),
    )
)
JSON_OF_RECORDS = """[
  {"name": "Anna Berg", "age": 31, "city": "Oslo", "job": "teacher"},
  {"name": "Tom Hill", "age": 45, "city": "Leeds", "job": "baker"}
]
"""


def _chat(text: str) -> str:
    """As the template of SmolLM2 writes it."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


class Kind(NamedTuple):
    prompt: str
    stop: tuple[str, ...] = ()
    temperature: float = 0.0


KINDS = {
    "code": Kind(
        _chat(f"Rewrite this Python code, with the function renamed to compute_area, and nothing else changed:\n```python\n{FUNCTION}```")
    ),
    "quotes": Kind(f"Report:\n\n{REPORT}\n\nThe same report, copied word by word:\n\nThe harbour of Lindow", ("\n\n",)),
    "JSON": Kind(
        f'Records:\n\n{RECORDS}\nAs JSON:\n\n{JSON_OF_RECORDS}\nRecords:\n\n{MORE_RECORDS}\nAs JSON:\n\n[\n  {{"name": "Eva Roth", "age"',
        ("]",),
    ),
    "prose": Kind(_chat("Tell me a long story about a lighthouse keeper and the sea."), temperature=0.9),
}
MOST_TOKENS = 200
CONTEXT = ("--context-length", "1024", "--kv-tokens", "1024")


@dataclass(slots=True)
class Measured:
    """One entry per round."""

    tok_s: list[float] = field(default_factory=list)
    tokens: int = 0
    frames: int = 0
    guessed: int = 0
    right: int = 0


class Bench:
    """One cluster under measurement, by kinds of answers."""

    def __init__(self, cluster: Cluster, num_shards: int, guesses: bool) -> None:
        self._cluster = cluster
        self.num_shards = num_shards
        self.guesses = guesses
        self.measured = {kind: Measured() for kind in KINDS}

    def ask(self, kind: str) -> list[tuple[str, float]]:
        guessed, right = self._guesses()
        num_frames = self._num_frames()
        prompt, stop, temperature = KINDS[kind]
        changes: dict[str, Any] = {"stop": stop, "temperature": temperature, "seed": 1, "ignore_eos": False}
        with StreamedAnswer(self._cluster.http, prompt, MOST_TOKENS, **changes) as stream:
            tokens = stream.wait_complete()
        seen, now = self.measured[kind], self._guesses()
        seen.tok_s.append((len(tokens) - 1) / (tokens[-1].arrived_s - tokens[0].arrived_s))
        seen.tokens += len(tokens)
        seen.frames += self._num_frames() - num_frames
        seen.guessed += now[0] - guessed
        seen.right += now[1] - right
        return [(token.text, token.logprob) for token in tokens]

    def _num_frames(self) -> int:
        return max((int(load["frames"]) for load in self._cluster.state()["stage_loads"].values()), default=0)

    def _guesses(self) -> tuple[int, int]:
        metrics = dict(line.rsplit(" ", 1) for line in self._cluster.client.get("/metrics").raise_for_status().text.splitlines())
        return int(float(metrics["dairllm_guessed_tokens_total"])), int(float(metrics["dairllm_guessed_tokens_right_total"]))


def measure(benches: Sequence[Bench], repeat: int) -> None:
    """The first round is to warm up and not counted. Raises DairllmError where answers differ."""
    for number in range(repeat + 1):
        for kind in KINDS:
            answers = [bench.ask(kind) for bench in benches]
            if any(answer != answers[0] for answer in answers):
                raise DairllmError(f"an answer of {kind} differs between clusters: {answers}")
        if number == 0:
            for bench in benches:
                bench.measured = {kind: Measured() for kind in KINDS}


def table_of(benches: Sequence[Bench], title: str) -> Table:
    table = Table("", "shards", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("tokens", "tok/s without", "tok/s with", "ratio", "per frame", "guessed", "right"):
        table.add_column(column, justify="right")
    for kind in KINDS:
        for without, with_ in zip(benches[::2], benches[1::2], strict=True):
            plain, seen = without.measured[kind], with_.measured[kind]
            ratios = Spread.of([fast / slow for fast, slow in zip(seen.tok_s, plain.tok_s, strict=True)])
            speeds = (Spread.of(plain.tok_s).shown(), Spread.of(seen.tok_s).shown(), ratios.shown(2))
            right = f"{seen.right / seen.guessed:.0%}" if seen.guessed else "–"
            per_round = seen.tokens // len(seen.tok_s)
            per_frame = f"{seen.tokens / seen.frames:.2f}"
            table.add_row(kind, str(with_.num_shards), str(per_round), *speeds, per_frame, f"{seen.guessed / seen.tokens:.2f}", right)
    return table


def guesses(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    shards: Annotated[str, typer.Option(help="Numbers of shards: two clusters for each.")] = "1,2,3,4",
    memory: Annotated[str, typer.Option(help="Of each shard.")] = "1GiB",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up; their medians are reported.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure what guesses bring."""
    path = resolve_model(model)
    spec = build_manifest(path).spec
    with contextlib.ExitStack() as stack:
        benches = []
        for count in parse_counts(shards):
            for is_on in (False, True):
                members = [ShardSetup("abcdefgh"[i], memory=memory) for i in range(count)]
                arguments, name = ("--guesses" if is_on else "--no-guesses", *CONTEXT), f"guesses-{count}-{is_on}"
                cluster = stack.enter_context(Cluster(path, members, min_shards=count, arguments=arguments, name=name))
                benches.append(Bench(cluster, count, is_on))
        measure(benches, repeat)
    if as_json:
        results = [
            {"shards": bench.num_shards, "guesses": bench.guesses, **{kind: asdict(seen) for kind, seen in bench.measured.items()}}
            for bench in benches
        ]
        print(json.dumps({"model": spec.name, "results": results}))
        return
    show(table_of(benches, f"{spec.name}, 1 thread per shard, one answer at a time"))


if __name__ == "__main__":
    run(guesses)
