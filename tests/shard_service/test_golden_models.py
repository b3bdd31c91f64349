"""Tiny models of all families through the real kernels: the logits and the tokens of transformers, on one stage and on two."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.mesh.cache_types import cache_type_to_proto
from dairllm.mesh.ring.frames import MicroBatch, RingId, SequenceBegin, SequenceSlice, TokenScore
from dairllm.mesh.sampling import SamplingParams
from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.containers import open_container
from dairllm.model_files.converting.writing import convert_model
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.memory import STREAM_READERS
from dairllm.model_files.spec import ModelSpec
from tests.instruments.golden import LARGEST_F32_ERROR, TINY
from tests.shard_service.fake_coordinator import KV_BLOCK_TOKENS
from tests.shard_service.local_ring import LocalRing, ring_over

WIRE, DEFAULT_WIRE = "F32", "Q8_0_OUTLIERS"
NUM_TOP = 20
NUM_CONTINUED = 8
UNSAYABLE = ("deepseek-v3-plain-queries",)
"""GGUF has no key for two different magnitudes."""


def spec_of(path: Path) -> ModelSpec:
    container = open_container(path)
    return architecture_of(container).read_spec(container)


SPECS = {folder.name: spec_of(folder) for folder in sorted(TINY.iterdir()) if (folder / "golden.npz").exists()}
RUNNABLE = [name for name, spec in SPECS.items() if spec.needed_features() <= set(STAGE_FEATURES)]


def frame(batch_id: int, begins: tuple[SequenceBegin, ...], rows: SequenceSlice, wire: str = WIRE) -> MicroBatch:
    return MicroBatch(1, batch_id, wire, begins, (rows,), ())


def blocks(first_position: int, count: int) -> tuple[int, ...]:
    """That the rows need beside those of the positions before."""
    begin, end = (-(-position // KV_BLOCK_TOKENS) for position in (first_position, first_position + count))
    return tuple(range(begin, end))


def prompt_scores(ring: LocalRing, ids: list[int], wire: str = WIRE) -> tuple[tuple[TokenScore, ...], int]:
    """Of each row the next token's, and the token after the last one."""
    sampling = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=NUM_TOP)
    begin = SequenceBegin(RingId(1), len(ids), sampling)
    rows = SequenceSlice(RingId(1), 0, tuple(ids), blocks(0, len(ids)), num_samples=1, score_targets=(*ids[1:], 0))
    (result,) = ring.compute(frame(1, (begin,), rows, wire)).results
    assert result.sampled, result.failure
    return result.scores, result.sampled[0].token_id


def continued(ring: LocalRing, first: int, position: int, count: int, wire: str = WIRE) -> list[int]:
    tokens = [first]
    while len(tokens) < count:
        rows = SequenceSlice(RingId(1), position, (tokens[-1],), blocks(position, 1), num_samples=1)
        (result,) = ring.compute(frame(1 + len(tokens), (), rows, wire)).results
        assert result.sampled, result.failure
        tokens.append(result.sampled[0].token_id)
        position += 1
    return tokens


@pytest.mark.parametrize("name", [name for name in RUNNABLE if SPECS[name].carried_width])
def test_numbers_that_rows_carry_are_the_same_under_any_cut(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default encoding of the wire, also between a layer and those that look at its keys."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ids, num_units = np.load(TINY / name / "golden.npz")["input_ids"].tolist(), SPECS[name].num_units
    cuts: list[tuple[int, ...]] = [(), (1,), (num_units // 2,), tuple(range(1, num_units))]
    rings = [ring_over(TINY / name, DEFAULT_WIRE, cut, context_length=2 * len(ids)) for cut in cuts]
    scores = [prompt_scores(ring, ids, DEFAULT_WIRE) for ring in rings]
    assert all(one == scores[0] for one in scores)


def require_golden(name: str, model: Path, cuts: tuple[int, ...]) -> None:
    """cuts: units that a stage begins with, but for the first one."""
    golden = np.load(TINY / name / "golden.npz")
    ids, logits = golden["input_ids"].tolist(), golden["logits"].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
    context_length = len(ids) + len(golden["greedy"])
    ring = ring_over(model, WIRE, cuts, kv_cache_type=cache_type_to_proto("F32"), context_length=context_length)
    scores, following = prompt_scores(ring, ids)
    for row, (score, target) in enumerate(zip(scores, (*ids[1:], 0), strict=True)):
        assert score.logprob == pytest.approx(expected[row, target], abs=LARGEST_F32_ERROR)
        assert [one.logprob for one in score.top] == pytest.approx(np.sort(expected[row])[::-1][:NUM_TOP], abs=LARGEST_F32_ERROR)
    greedy = golden["greedy"].tolist()
    assert continued(ring, following, len(ids), len(greedy)) == greedy


@pytest.fixture
def readers() -> Iterator[Executor]:
    with ThreadPoolExecutor(STREAM_READERS) as threads:
        yield threads


@pytest.mark.parametrize("name", RUNNABLE)
def test_layers_that_are_streamed_give_the_same_bits(name: str, readers: Executor) -> None:
    """All of them, with the default encoding of the wire: what rounds rows between units does so between those that are read apart."""
    ids, cuts = np.load(TINY / name / "golden.npz")["input_ids"].tolist(), (SPECS[name].num_units - 1,)
    context_length = len(ids) + NUM_CONTINUED
    in_memory = ring_over(TINY / name, DEFAULT_WIRE, cuts, context_length=context_length)
    streamed = ring_over(TINY / name, DEFAULT_WIRE, cuts, readers, context_length=context_length)
    (scores, first), others = prompt_scores(in_memory, ids, DEFAULT_WIRE), prompt_scores(streamed, ids, DEFAULT_WIRE)
    assert (scores, first) == others
    expected = continued(in_memory, first, len(ids), NUM_CONTINUED, DEFAULT_WIRE)
    assert continued(streamed, first, len(ids), NUM_CONTINUED, DEFAULT_WIRE) == expected
    assert streamed.first.read_bytes > 0


def with_experts(name: str) -> list[ExpertFeedForward]:
    return [layer.feed_forward for layer in SPECS[name].layers if isinstance(layer.feed_forward, ExpertFeedForward)]


@pytest.mark.parametrize("name", [name for name in RUNNABLE if with_experts(name)])
def test_experts_that_are_read_when_they_are_chosen_give_the_same_bits(name: str, readers: Executor) -> None:
    """With as few in memory as can be, where one is computed after the other, with so many that some stay, and above the cliff."""
    ids, cuts = np.load(TINY / name / "golden.npz")["input_ids"].tolist(), (SPECS[name].num_units - 1,)
    context_length, experts = len(ids) + NUM_CONTINUED, with_experts(name)
    least, touched = max(one.num_experts_used for one in experts), sum(one.num_experts_used for one in experts)
    in_memory = ring_over(TINY / name, DEFAULT_WIRE, cuts, context_length=context_length)
    expected = prompt_scores(in_memory, ids, DEFAULT_WIRE)
    tokens = continued(in_memory, expected[1], len(ids), NUM_CONTINUED, DEFAULT_WIRE)
    for places in sorted({least, touched - 1, touched, touched + 1} - {0}):
        if places < least:
            continue
        ring = ring_over(TINY / name, DEFAULT_WIRE, cuts, readers, context_length=context_length, expert_places=places)
        assert prompt_scores(ring, ids, DEFAULT_WIRE) == expected
        assert continued(ring, expected[1], len(ids), NUM_CONTINUED, DEFAULT_WIRE) == tokens
        assert ring.first.read_bytes > 0


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("name", RUNNABLE)
def test_kernels_give_the_golden_logits_and_tokens(name: str, stages: int) -> None:
    require_golden(name, TINY / name, (SPECS[name].num_units // 2,) if stages == 2 else ())


@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in UNSAYABLE])
def test_so_they_do_where_every_unit_is_a_stage_and_weights_come_from_gguf(name: str, tmp_path: Path) -> None:
    convert_model(TINY / name, tmp_path / "model.gguf", "F32")
    require_golden(name, tmp_path / "model.gguf", tuple(range(1, SPECS[name].num_units)))
