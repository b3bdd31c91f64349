"""What prompts that begin alike save: a chat's second turn, and many requests with one system prompt, with reuse and without.

    .venv/bin/python benchmarks/prefix_reuse.py --model smollm2:135m [--shards 1,2] [--repeat 5] [--json]

Starts two clusters per number of shards, one with `--prefix-reuse off`, all on this machine over loopback, each shard with one thread, and
asks them in turn, so that what other programs do meets all alike. Medians, with lowest and highest. Tokens are random, and others in each
round.

- second turn: after a prompt and its answer comes a prompt of both and a few tokens more. Seconds to its first token.
- one system prompt: as many requests as `--requests` says begin with it and go on each with tokens of its own; all at once, or one after
  the other. Seconds until the last answer is complete. 0: the second turn alone.
- computed: rows that a shard computed meanwhile, of prompts and answers. cached: tokens that did not have to be, since they were in the
  cache.
- Every answer is compared with the one of the first cluster: tokens and log-probabilities. A different one ends the run.
"""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from command import run, show
from rich.table import Table
from ring import Spread, parse_counts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.mesh.errors import DairllmError
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

FIRST_ANSWER, SECOND_QUESTION, SECOND_ANSWER = 64, 30, 8
OWN_TOKENS, SHORT_ANSWER = 20, 8
WARM_UP_REQUESTS = 4

TokenIds = list[int]
Bits = tuple[tuple[str, float], ...]
"""Of an answer: tokens with their log-probabilities."""


@dataclass(slots=True)
class Measurements:
    """One entry per round. seconds: as the kind of measurement says."""

    seconds: list[float] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)


class Bench:
    """One cluster under measurement, by what is measured."""

    def __init__(self, cluster: Cluster, num_shards: int, reuse: PrefixReuse) -> None:
        self._cluster = cluster
        self.num_shards = num_shards
        self.reuse = reuse
        self.measured: dict[str, Measurements] = {}

    def second_turn(self, prompt: TokenIds, question: TokenIds) -> list[Bits]:
        body = {**completion_body(prompt, FIRST_ANSWER), "return_token_ids": True}
        (first,) = self._cluster.client.post("/v1/completions", json=body).raise_for_status().json()["choices"]
        with self._watch("second turn") as seen:
            began_s = time.monotonic()
            with StreamedAnswer(self._cluster.http, [*prompt, *first["token_ids"], *question], SECOND_ANSWER) as stream:
                tokens = stream.wait_complete()
            seen.seconds.append(tokens[0].arrived_s - began_s)
        return [_bits_of(first), tuple((token.text, token.logprob) for token in tokens)]

    def at_once(self, prompts: Sequence[TokenIds]) -> list[Bits]:
        with self._watch("at once") as seen, ThreadPoolExecutor(len(prompts)) as pool:
            began_s = time.monotonic()
            answers = list(pool.map(self._complete, prompts))
            seen.seconds.append(time.monotonic() - began_s)
        return answers

    def in_turn(self, prompts: Sequence[TokenIds]) -> list[Bits]:
        with self._watch("one after the other") as seen:
            began_s = time.monotonic()
            answers = list(map(self._complete, prompts))
            seen.seconds.append(time.monotonic() - began_s)
        return answers

    def _complete(self, prompt: TokenIds) -> Bits:
        response = self._cluster.client.post("/v1/completions", json=completion_body(prompt, SHORT_ANSWER)).raise_for_status()
        return _bits_of(response.json()["choices"][0])

    @contextlib.contextmanager
    def _watch(self, what: str) -> Iterator[Measurements]:
        seen = self.measured.setdefault(what, Measurements())
        rows, cached = self._num_rows(), self._num_cached()
        yield seen
        seen.computed.append(self._num_rows() - rows)
        seen.cached.append(self._num_cached() - cached)

    def _num_rows(self) -> int:
        """That a shard has computed: each computes every row."""
        return max((load["rows"] for load in self._cluster.state()["stage_loads"].values()), default=0)

    def _num_cached(self) -> int:
        metrics = self._cluster.client.get("/metrics").raise_for_status().text.splitlines()
        return int(next(float(line.split()[1]) for line in metrics if line.startswith("dairllm_kv_reused_tokens_total ")))

    def to_json(self) -> dict[str, Any]:
        return {"shards": self.num_shards, "reuse": self.reuse, **{what: asdict(seen) for what, seen in self.measured.items()}}


def _bits_of(choice: dict[str, Any]) -> Bits:
    return tuple(zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True))


@dataclass(slots=True)
class Round:
    """Its own tokens, the same for all clusters. alike, others: two sets of prompts, each with a system prompt of its own."""

    prompt: TokenIds
    question: TokenIds
    alike: list[TokenIds]
    others: list[TokenIds]

    @classmethod
    def draw(cls, numbers: np.random.Generator, vocab_size: int, prompt: int, system: int, requests: int) -> "Round":
        def tokens(count: int) -> TokenIds:
            drawn: TokenIds = numbers.integers(0, vocab_size, count).tolist()
            return drawn

        def with_one_system_prompt() -> list[TokenIds]:
            first = tokens(system)
            return [[*first, *tokens(OWN_TOKENS)] for _ in range(requests)]

        return cls(tokens(prompt), tokens(SECOND_QUESTION), with_one_system_prompt(), with_one_system_prompt())


def measure(benches: Sequence[Bench], rounds: Sequence[Round]) -> None:
    """Everything of all clusters once per round; the first one is to warm up and not counted. Raises DairllmError where answers differ."""
    for number, one in enumerate(rounds):
        if number == 1:
            for bench in benches:
                bench.measured.clear()
        _require_equal([bench.second_turn(one.prompt, one.question) for bench in benches])
        if one.alike:
            _require_equal([bench.at_once(one.alike) for bench in benches])
            _require_equal([bench.in_turn(one.others) for bench in benches])


def _require_equal(answers: Sequence[list[Bits]]) -> None:
    for of_others in answers[1:]:
        for expected, answer in zip(answers[0], of_others, strict=True):
            if answer != expected:
                raise DairllmError(f"an answer differs between clusters: {answer} instead of {expected}")


def table_of(benches: Sequence[Bench], title: str) -> Table:
    table = Table("", "shards", "reuse", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("seconds", "of those without", "computed", "cached"):
        table.add_column(column, justify="right")
    for what in benches[0].measured:
        for bench in benches:
            seen = bench.measured[what]
            without = next(b.measured[what] for b in benches if b.num_shards == bench.num_shards and b.reuse is PrefixReuse.OFF)
            times = Spread.of(seen.seconds)
            share = f"{times.median / Spread.of(without.seconds).median:.1%}"
            counts = (f"{Spread.of(counted).median:.0f}" for counted in (seen.computed, seen.cached))
            table.add_row(what, str(bench.num_shards), bench.reuse, times.shown(3), share, *counts)
    return table


def prefix_reuse(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    shards: Annotated[str, typer.Option(help="Numbers of shards: two clusters for each.")] = "1,2",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the first turn.")] = 2000,
    system: Annotated[int, typer.Option(min=1, help="Tokens of the system prompt.")] = 500,
    requests: Annotated[int, typer.Option(min=0, max=100, help="That begin with it.")] = 100,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds after one to warm up; their medians are reported.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure what prompts that begin alike save."""
    counts = parse_counts(shards)
    path = resolve_model(model)
    spec = build_manifest(path).spec
    numbers = np.random.default_rng(1)
    numbers_of_requests = [min(requests, WARM_UP_REQUESTS), *[requests] * repeat]
    rounds = [Round.draw(numbers, spec.vocab_size, prompt, system, number) for number in numbers_of_requests]
    with contextlib.ExitStack() as stack:
        benches = []
        for count in counts:
            for reuse in (PrefixReuse.OFF, PrefixReuse.EVERYONE):
                members = [ShardSetup("abcdefgh"[i]) for i in range(count)]
                arguments, name = ("--prefix-reuse", reuse), f"reuse-{count}-{reuse}"
                benches.append(Bench(stack.enter_context(Cluster(path, members, arguments=arguments, name=name)), count, reuse))
        measure(benches, rounds)
    if as_json:
        facts = {"model": spec.name, "prompt": prompt, "system": system, "requests": requests}
        print(json.dumps({**facts, "results": [bench.to_json() for bench in benches]}))
        return
    title = f"{spec.name}, 1 thread per shard; a first turn of {prompt} tokens, {requests} requests with {system} in common"
    show(table_of(benches, title))


if __name__ == "__main__":
    run(prefix_reuse)
