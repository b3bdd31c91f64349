"""What an encoding on the wire costs in quality, against exact activations (F32).

    .venv/bin/python benchmarks/quality.py --model smollm2:135m [--cuts 16 --cuts 11,21] [--float-weights] [--json]

A cluster rounds the residual stream at every boundary between two units, whatever its plan, and that is what is measured here unless
`--cuts` names boundaries. How much of the cost is due to one boundary, or to a few, is what `--cuts` is for.

Teacher-forced: a text goes through the model once per cut and encoding, and the distributions of the next token over the full
vocabulary are compared with those under F32, position by position. One process holds stages that end at each rounded boundary and hands
rows from one to the next encoded and decoded; that the kernels round to the same bits inside a stage is what tests/kernels/test_stage.py
shows, and that whole clusters do, tests/e2e/test_same_bits.py.

- KL: mean over all positions of KL(F32 || encoding), in nats, and the largest.
- |Δ log p|: mean absolute difference of the log-probability of the token that does come next in the text.
- perplexity: exp of the mean negative log-probability of those tokens.
- same best: share of positions with the same most probable token.

Kernels with quantised weights quantise the activations, too (int8 per block of 32): the least change of a row flips some of these
roundings, and they add up. The row "one ulp" says what it costs when every value on the wire is merely the next float; no encoding
can be expected to cost less there. `--float-weights` turns the weights into float32 first (four to eight times the memory): without
that noise what is left is the encoding's own cost.

Statistics in float64. The golden conversations of tests/data are token ids of SmolLM2; for other models use `--no-conversations`.
Document text is the project's own, or `--text FILE`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import typer
from command import run, show
from loaded_model import CHUNK_ROWS, LoadedModel, Text, TokenIds, block_table, conversations, documents, load, with_float_weights
from rich.table import Table

from dairllm.kernels_pyx import WIRE_ENCODINGS, StageSlice, decode_rows, encode_rows
from dairllm.mesh.cache_types import DEFAULT_CACHE_TYPE, parse_cache_type
from dairllm.mesh.errors import InvalidSetting
from dairllm.model_files.memory import HEAD_ROWS
from dairllm.shard_service.forward.building import StageParts

EXACT = "F32"
SMALLEST_CHANGE = "one ulp"

Rows = npt.NDArray[np.float32]
LogProbs = npt.NDArray[np.float64]


class Shard(NamedTuple):
    """span: its units."""

    span: range
    parts: StageParts


class Variant(NamedTuple):
    """cuts: boundaries that are rounded; boundary b lies before unit b, unit 0 being the embedding. kv_cache: its element type."""

    cuts: tuple[int, ...]
    encoding: str
    kv_cache: str = DEFAULT_CACHE_TYPE


@dataclass(slots=True)
class Sums:
    """What is added up over the positions of one kind of text. num_scored: positions whose next token is known."""

    num_positions: int = 0
    num_scored: int = 0
    kl_nats: float = 0.0
    largest_kl_nats: float = 0.0
    difference: float = 0.0
    surprise: float = 0.0
    exact_surprise: float = 0.0
    num_same_best: int = 0

    def add(self, exact: LogProbs, rounded: LogProbs, next_ids: TokenIds) -> None:
        """exact, rounded: [positions, vocabulary]; next_ids: of the first positions, all or all but the last."""
        kl = (np.exp(exact) * (exact - rounded)).sum(axis=1)
        scored = np.arange(len(next_ids))
        exact_next, rounded_next = exact[scored, next_ids], rounded[scored, next_ids]
        self.num_positions += len(exact)
        self.num_scored += len(next_ids)
        self.kl_nats += float(kl.sum())
        self.largest_kl_nats = max(self.largest_kl_nats, float(kl.max()))
        self.difference += float(np.abs(exact_next - rounded_next).sum())
        self.surprise -= float(rounded_next.sum())
        self.exact_surprise -= float(exact_next.sum())
        self.num_same_best += int((exact.argmax(axis=1) == rounded.argmax(axis=1)).sum())

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.num_positions + other.num_positions,
            self.num_scored + other.num_scored,
            self.kl_nats + other.kl_nats,
            max(self.largest_kl_nats, other.largest_kl_nats),
            self.difference + other.difference,
            self.surprise + other.surprise,
            self.exact_surprise + other.exact_surprise,
            self.num_same_best + other.num_same_best,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    positions: int
    kl_nats: float
    largest_kl_nats: float
    mean_abs_difference: float
    perplexity: float
    exact_perplexity: float
    same_best: float

    @classmethod
    def of(cls, sums: Sums) -> "Cost":
        return cls(
            positions=sums.num_positions,
            kl_nats=sums.kl_nats / sums.num_positions,
            largest_kl_nats=sums.largest_kl_nats,
            mean_abs_difference=sums.difference / sums.num_scored,
            perplexity=math.exp(sums.surprise / sums.num_scored),
            exact_perplexity=math.exp(sums.exact_surprise / sums.num_scored),
            same_best=sums.num_same_best / sums.num_positions,
        )


class Comparison:
    """Runs every text through all variants side by side, so that only a few rows of logits exist at a time."""

    def __init__(self, model: LoadedModel, variants: Sequence[Variant]) -> None:
        self.model = model
        self.variants = variants
        self.sums: dict[tuple[Variant, str], Sums] = {}
        self._shards = {cuts: shards_of(model, cuts) for cuts in {(), *(variant.cuts for variant in variants)}}

    def add(self, text: Text) -> None:
        runs = [self._hidden(text.token_ids, variant) for variant in (Variant((), EXACT), *self.variants)]
        first = 0
        for exact_hidden, *hidden in zip(*runs, strict=True):
            for start in range(0, len(exact_hidden), HEAD_ROWS):
                rows = slice(start, start + HEAD_ROWS)
                exact = self._log_probs(exact_hidden[rows])
                next_ids = text.token_ids[first + start + 1 : first + start + 1 + len(exact)]
                for variant, variant_hidden in zip(self.variants, hidden, strict=True):
                    sums = self.sums.setdefault((variant, text.kind), Sums())
                    sums.add(exact, self._log_probs(variant_hidden[rows]), next_ids)
            first += len(exact_hidden)

    def _hidden(self, token_ids: TokenIds, variant: Variant) -> Iterator[Rows]:
        """What the head sees, in chunks of rows."""
        shards = self._shards[variant.cuts]
        caches = [self.model.kv_caches(shard.span, len(token_ids), variant.kv_cache) for shard in shards]
        table = block_table(len(token_ids))
        for first in range(0, len(token_ids), CHUNK_ROWS):
            rows: TokenIds | Rows = token_ids[first : first + CHUNK_ROWS]
            for shard, kv in zip(shards, caches, strict=True):
                if shard.span.start:
                    rows = cross(np.asarray(rows, np.float32), variant.encoding)
                if shard.parts.body is not None:
                    rows = shard.parts.body.run(kv, rows, [StageSlice(len(rows), first, table)])
            yield np.asarray(rows, np.float32)

    def _log_probs(self, hidden: Rows) -> LogProbs:
        return log_probs(head_logits(self._shards[()][0].parts, hidden))


def head_logits(parts: StageParts, hidden: Rows) -> Rows:
    """[rows, vocabulary], of at most HEAD_ROWS rows. parts: those of a stage that ends with the head."""
    assert parts.head is not None, "a whole model has a head"
    rows = np.ascontiguousarray(hidden)
    whole = StageSlice(len(rows), 0, np.empty(0, np.int32))
    return parts.head.run(None, rows, [whole], np.arange(len(rows), dtype=np.int32))


def log_probs(logits: Rows) -> LogProbs:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    result: LogProbs = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return result


def shards_of(model: LoadedModel, cuts: Sequence[int]) -> tuple[Shard, ...]:
    edges = (0, *cuts, model.spec.num_layers + 2)
    spans = [range(start, stop) for start, stop in pairwise(edges)]
    return tuple(Shard(span, model.stage(span)) for span in spans)


def cross(rows: Rows, encoding: str) -> Rows:
    """What a row is behind a boundary."""
    if encoding == SMALLEST_CHANGE:
        return np.nextafter(rows, np.float32(np.inf))
    return decode_rows(encode_rows(rows, encoding), len(rows), rows.shape[1], encoding)


def every_boundary(num_layers: int) -> tuple[int, ...]:
    return tuple(range(1, num_layers + 2))


def parse_cuts(text: str, num_layers: int) -> tuple[int, ...]:
    try:
        cuts = tuple(int(part) for part in text.split(","))
    except ValueError:
        cuts = ()
    if not cuts or list(cuts) != sorted(set(cuts)) or not 1 <= cuts[0] <= cuts[-1] <= num_layers + 1:
        raise InvalidSetting(f"--cuts {text} is not an ascending list of boundaries from 1 to {num_layers + 1}")
    return cuts


def summarise(sums: Mapping[tuple[Variant, str], Sums]) -> list[dict[str, Any]]:
    """One row per variant and kind of text, and one over all text."""
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in sums):
        own = {kind: value for (other, kind), value in sums.items() if other == variant}
        if len(own) > 1:
            own["all"] = sum(own.values(), Sums())
        facts = {"cuts": list(variant.cuts), "encoding": variant.encoding, "kv_cache": variant.kv_cache}
        rows += [{**facts, "text": kind, **asdict(Cost.of(value))} for kind, value in own.items()]
    return rows


def describe_cuts(cuts: Sequence[int]) -> str:
    if not cuts:
        return "none"
    return f"all {len(cuts)}" if list(cuts) == list(range(1, len(cuts) + 1)) else ",".join(map(str, cuts))


def print_table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    table = Table("cuts", "encoding", "KV cache", "text", title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for name in ("KL, nats", "largest", "|Δ log p|", "perplexity", "of F32", "same best"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            *(describe_cuts(row["cuts"]), row["encoding"], row["kv_cache"], f"{row['text']} ({row['positions']})"),
            *(f"{row['kl_nats']:.2e}", f"{row['largest_kl_nats']:.2f}", f"{row['mean_abs_difference']:.5f}"),
            *(f"{row['perplexity']:.4f}", f"{row['exact_perplexity']:.4f}", f"{row['same_best']:.2%}"),
        )
    show(table)


def quality(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    cuts: Annotated[
        list[str] | None,
        typer.Option(help="Boundaries that are rounded, like 11,21; repeatable. Default: every one, as in a cluster."),
    ] = None,
    encoding: Annotated[list[str] | None, typer.Option(help="Encodings to compare with F32; repeatable. Default: all.")] = None,
    kv_cache: Annotated[
        list[str] | None, typer.Option(help="Element types of the KV cache to compare with F16, in place of encodings; repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of documents.")] = 2000,
    window: Annotated[int, typer.Option(min=2, help="Documents are read in pieces of this many tokens.")] = 1000,
    text: Annotated[list[Path] | None, typer.Option(exists=True, help="Document to read instead of the project's; repeatable.")] = None,
    with_conversations: Annotated[
        bool, typer.Option("--conversations/--no-conversations", help="Read the golden conversations, too (SmolLM2 only).")
    ] = True,
    float_weights: Annotated[bool, typer.Option("--float-weights", help="Compute with float32 weights: no noise of the kernels.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure what each wire encoding, or another KV cache, costs in quality."""
    samples = conversations() if with_conversations else []
    loaded = load(model, max(window, *(len(sample.token_ids) for sample in samples), 2))
    samples += documents(loaded.path, tokens, window, text or ())
    layers = loaded.spec.num_layers
    chosen = [parse_cuts(one, layers) for one in cuts] if cuts else [every_boundary(layers)]
    encodings = encoding or [SMALLEST_CHANGE, *(name for name in WIRE_ENCODINGS if name != EXACT)]
    if float_weights:
        loaded = with_float_weights(loaded)
    variants = [Variant(one, name) for one in chosen for name in encodings]
    if kv_cache:
        variants = [Variant((), EXACT, parse_cache_type(name)) for name in kv_cache]
    comparison = Comparison(loaded, variants)
    for sample in samples:
        comparison.add(sample)
    rows = summarise(comparison.sums)
    if as_json:
        print(json.dumps({"model": loaded.spec.name, "num_layers": layers, "float_weights": float_weights, "results": rows}))
        return
    print_table(
        rows, f"{loaded.spec.name}, {layers} layers{', float32 weights' if float_weights else ''}: compared with F32 and a KV cache in F16"
    )


if __name__ == "__main__":
    run(quality)
