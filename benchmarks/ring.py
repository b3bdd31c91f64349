"""What a ring of real processes reaches: decoding, eight clients at once, time per hop, and a long prompt on one shard or several.

    .venv/bin/python benchmarks/ring.py --model smollm2:135m [--shards 1,2,3] [--repeat 5] [--json]

Starts one cluster per number of shards, all on this machine over loopback, each shard with one thread, and asks them in turn, so that
what other programs do meets all alike; an idle cluster costs nothing but heartbeats. Medians, with lowest and highest. Everything shares
this machine's cores, the coordinator and this client included: with more shards than cores the figures say what the ring costs, not
what more machines give.

- one stream: tokens per second after the first, of one streaming client with a prompt of one token.
- step and hop: a step is the time from token to token. What stages report as computing and coding (decoding a frame, encoding its
  rows) is taken off; the rest is shared by the hops: coordinator to first shard, from shard to shard, last shard to coordinator. It
  holds queues, serialisation, gRPC, wake-ups of threads, scheduling, and the answer to the client.
- clients at once: that many streaming clients, each its own prompt, on the clusters of two and more shards. Tokens per second of all
  together, from the first request to the last token. Busy: seconds that a stage computed or coded, over that time. If the shards took
  turns, these shares could not add up to more than 100 %.
- Every answer is compared with the one that the same prompt got alone, before: tokens and log-probabilities once, text in the timed
  runs.
- prefill: a prompt of many tokens, one token of answer; tokens per second until that arrives. Shards work on its chunks at the same
  time.
"""

import contextlib
import http.client
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import typer
from command import WITHOUT_REUSE, run, show
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.errors import DairllmError, InvalidSetting
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster, ShardSetup

REQUEST_TIMEOUT_S = 120.0
PROMPT_TOKENS = range(20, 60, 5)
"""Lengths of the clients' prompts, in turn."""


class Spread(NamedTuple):
    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(median(values), min(values), max(values))

    def shown(self, digits: int = 1) -> str:
        return f"{self.median:.{digits}f} ({self.lowest:.{digits}f} to {self.highest:.{digits}f})"


class Answer(NamedTuple):
    """arrivals_s: of each event with text, by this process's clock."""

    text: str
    arrivals_s: tuple[float, ...]


class Busy(NamedTuple):
    """What a stage spent within some time, in seconds."""

    compute_s: float
    codec_s: float
    queue_s: float
    frames: int


@dataclass(slots=True)
class Measurements:
    """What was seen of one cluster, one entry per repeat; busy shares are per shard, in ring order."""

    decode_tok_s: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    compute_ms: list[float] = field(default_factory=list)
    codec_ms: list[float] = field(default_factory=list)
    queue_ms: list[float] = field(default_factory=list)
    hop_ms: list[float] = field(default_factory=list)
    clients_tok_s: list[float] = field(default_factory=list)
    busy_shares: list[list[float]] = field(default_factory=list)
    prefill_tok_s: list[float] = field(default_factory=list)
    prefill_busy_shares: list[list[float]] = field(default_factory=list)


class Bench:
    """One cluster under measurement."""

    def __init__(self, cluster: Cluster, num_shards: int, prompts: Sequence[Sequence[int]], generate: int) -> None:
        self._cluster = cluster
        self._address = urlsplit(cluster.http).netloc
        self._prompts = prompts
        self._generate = generate
        self.num_shards = num_shards
        self.units = {
            shard["name"]: [shard["first_unit"], shard["end_unit"]] for shard in cluster.state()["shards"] if shard["stage"] is not None
        }
        self.measured = Measurements()
        self._alone: list[str] = []

    def check_answers(self) -> None:
        """Bits of all answers at once are those of each alone; remembers the texts. Raises DairllmError."""
        self._alone = [self._ask(prompt, self._generate).text for prompt in self._prompts]
        alone = [self._bits(prompt) for prompt in self._prompts]
        with ThreadPoolExecutor(len(self._prompts)) as pool:
            _require_equal(list(pool.map(self._bits, self._prompts)), alone, "tokens and log-probabilities")

    def measure_stream(self) -> None:
        with self._watch() as busy:
            answer = self._ask([1], self._generate)
        step_s = (answer.arrivals_s[-1] - answer.arrivals_s[0]) / (self._generate - 1)
        compute_s, codec_s, queue_s = (sum(getattr(one, name) / one.frames for one in busy) for name in ("compute_s", "codec_s", "queue_s"))
        seen = self.measured
        seen.decode_tok_s.append(1 / step_s)
        seen.step_ms.append(1e3 * step_s)
        seen.compute_ms.append(1e3 * compute_s)
        seen.codec_ms.append(1e3 * codec_s)
        seen.queue_ms.append(1e3 * queue_s)
        seen.hop_ms.append(1e3 * (step_s - compute_s - codec_s) / (self.num_shards + 1))

    def measure_clients(self) -> None:
        with self._watch() as busy, ThreadPoolExecutor(len(self._prompts)) as pool:
            began_s = time.perf_counter()
            answers = list(pool.map(lambda prompt: self._ask(prompt, self._generate), self._prompts))
            wall_s = max(answer.arrivals_s[-1] for answer in answers) - began_s
        _require_equal([answer.text for answer in answers], self._alone, "text")
        self.measured.clients_tok_s.append(self._generate * len(answers) / wall_s)
        self.measured.busy_shares.append([(one.compute_s + one.codec_s) / wall_s for one in busy])

    def measure_prefill(self, prompt: Sequence[int]) -> None:
        with self._watch() as busy:
            began_s = time.perf_counter()
            wall_s = self._ask(prompt, 1).arrivals_s[0] - began_s
        self.measured.prefill_tok_s.append(len(prompt) / wall_s)
        self.measured.prefill_busy_shares.append([(one.compute_s + one.codec_s) / wall_s for one in busy])

    @contextlib.contextmanager
    def _watch(self) -> Iterator[list[Busy]]:
        """Gives a list that is filled when the block ends: what each stage spent during it, in ring order."""
        busy: list[Busy] = []
        before = self._cluster.state()["stage_loads"]
        yield busy
        after = self._cluster.state()["stage_loads"]
        idle = dict.fromkeys(Busy._fields, 0)
        busy += [Busy(*(after[name][key] - before.get(name, idle)[key] for key in Busy._fields)) for name in self.units]

    def _ask(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """As a streaming client of little weight, since it runs on the same cores."""
        connection = http.client.HTTPConnection(self._address, timeout=REQUEST_TIMEOUT_S)
        body = {"prompt": list(prompt), "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise DairllmError(f"the coordinator answered {response.status}: {response.read().decode()}")
            lines, arrivals_s = [], []
            for line in response:
                if line.startswith(b"data: {"):
                    lines.append(line)
                    arrivals_s.append(time.perf_counter())
        return Answer("".join(json.loads(line[6:])["choices"][0]["text"] for line in lines), tuple(arrivals_s))

    def _bits(self, prompt: Sequence[int]) -> Any:
        choice = self._cluster.complete(prompt, max_tokens=self._generate, ignore_eos=True, logprobs=3)["choices"][0]
        return choice["text"], choice["logprobs"]

    def to_json(self) -> dict[str, Any]:
        seen = asdict(self.measured)
        spreads = {name: Spread.of(values)._asdict() for name, values in seen.items() if values and not name.endswith("shares")}
        shares = {name: _shares(values) for name, values in seen.items() if values and name.endswith("shares")}
        return {"shards": self.num_shards, "units": self.units, **spreads, **shares, "repeats": seen}


def _require_equal(answers: Sequence[object], alone: Sequence[object], what: str) -> None:
    for index, (answer, expected) in enumerate(zip(answers, alone, strict=True)):
        if answer != expected:
            raise DairllmError(f"answer {index} among others differs in {what} from the same alone: {answer!r} instead of {expected!r}")


def _shares(repeats: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {
        "per_shard": [median(values) for values in zip(*repeats, strict=True)],
        "sum": Spread.of([sum(one) for one in repeats])._asdict(),
    }


def measure(benches: Sequence[Bench], long_prompts: Sequence[Sequence[int]]) -> None:
    """Everything of all clusters once per long prompt; the first round is to warm up and not counted. A prompt that was asked before would
    be found in the cache."""
    for bench in benches:
        bench.check_answers()
    for round_number, long_prompt in enumerate(long_prompts):
        for bench in benches:
            if round_number == 1:
                bench.measured = Measurements()
            bench.measure_stream()
            bench.measure_prefill(long_prompt)
            if bench.num_shards > 1:
                bench.measure_clients()


def print_tables(benches: Sequence[Bench], title: str, generate: int, num_clients: int, long_tokens: int) -> None:
    stream = _table(f"{title}: one stream, {generate} tokens", "tok/s", "step, ms", "computing", "coding", "queues", "per hop, ms")
    clients = _table(f"{num_clients} streaming clients at once; every answer as alone", "tok/s", "busy, each shard", "busy, sum")
    prefill = _table(f"Prompt of {long_tokens} tokens", "tok/s", "busy, each shard", "busy, sum")
    for bench in benches:
        seen, name = bench.measured, str(bench.num_shards)
        parts = [f"{median(values):.2f}" for values in (seen.compute_ms, seen.codec_ms, seen.queue_ms)]
        tok_s, step, hop = Spread.of(seen.decode_tok_s), Spread.of(seen.step_ms), Spread.of(seen.hop_ms)
        stream.add_row(name, tok_s.shown(), step.shown(2), *parts, hop.shown(2))
        if seen.clients_tok_s:
            clients.add_row(name, Spread.of(seen.clients_tok_s).shown(), *_busy_cells(seen.busy_shares))
        prefill.add_row(name, Spread.of(seen.prefill_tok_s).shown(0), *_busy_cells(seen.prefill_busy_shares))
    show(stream, clients, prefill)


def _table(title: str, *columns: str) -> Table:
    table = Table("shards", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _busy_cells(repeats: Sequence[Sequence[float]]) -> tuple[str, str]:
    shares = _shares(repeats)
    total = Spread(**shares["sum"])
    return ", ".join(f"{share:.0%}" for share in shares["per_shard"]), f"{total.median:.0%} ({total.lowest:.0%} to {total.highest:.0%})"


def parse_counts(text: str) -> tuple[int, ...]:
    counts = [int(part) for part in text.split(",") if part.strip().isdigit()]
    if len(counts) != text.count(",") + 1 or not all(1 <= count <= 8 for count in counts):
        raise InvalidSetting(f"--shards {text} is not a list of numbers from 1 to 8")
    return tuple(counts)


def random_prompts(vocab_size: int, lengths: Sequence[int]) -> list[list[int]]:
    """Token ids as they come: speed does not depend on their sense."""
    numbers = np.random.default_rng(1)
    ids: list[list[int]] = [numbers.integers(0, vocab_size, length).tolist() for length in lengths]
    return ids


def ring(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    shards: Annotated[str, typer.Option(help="Numbers of shards: one cluster for each.")] = "1,2,3",
    wire: Annotated[str, typer.Option(help="Encoding of activations between shards.")] = "Q8_0_OUTLIERS",
    clients: Annotated[int, typer.Option(min=1, max=64, help="Streaming clients at once.")] = 8,
    generate: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the long prompt.")] = 2048,
    repeat: Annotated[int, typer.Option(min=1, help="Runs after one to warm up; their medians are reported.")] = 5,
    memory: Annotated[str, typer.Option(help="Memory of each shard.")] = "1GiB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure rings of real processes on this machine."""
    counts = parse_counts(shards)
    path = resolve_model(model)
    spec = build_manifest(path).spec
    lengths = [PROMPT_TOKENS[i % len(PROMPT_TOKENS)] for i in range(clients)]
    prompts, long_prompts = random_prompts(spec.vocab_size, lengths), random_prompts(spec.vocab_size, [prompt] * (repeat + 1))
    with contextlib.ExitStack() as stack:
        benches = []
        for count in counts:
            members = [ShardSetup("abcdefgh"[i], memory=memory) for i in range(count)]
            cluster = stack.enter_context(Cluster(path, members, wire, arguments=WITHOUT_REUSE, name=f"ring-{count}"))
            benches.append(Bench(cluster, count, prompts, generate))
        measure(benches, long_prompts)
    if as_json:
        facts: Mapping[str, Any] = {"model": spec.name, "wire": wire, "clients": clients, "generate": generate, "prompt": prompt}
        print(json.dumps({**facts, "results": [bench.to_json() for bench in benches]}))
        return
    print_tables(benches, f"{spec.name}, {wire}, 1 thread per shard", generate, clients, prompt)


if __name__ == "__main__":
    run(ring)
