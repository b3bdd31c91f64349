"""Rows of guesses on shards: the head gives the tokens that it would have given without them, and none behind a wrong one."""

from pathlib import Path

import pytest

from dairllm.mesh.errors import MalformedFrame
from dairllm.mesh.ring.frames import MicroBatch, RingId, SequenceBegin, SequenceSlice, TokenScore
from dairllm.mesh.sampling import SamplingParams
from tests.shard_service.local_ring import LocalRing, ring_over
from tests.shard_service.test_golden_models import blocks
from tests.tiny_gguf import write_tiny_llama

PROMPT = (3, 14, 15)
GREEDY = SamplingParams(temperature=0.0, logprobs=True, top_logprobs=3)
DRAWN = SamplingParams(temperature=1.2, seed=7, logprobs=True, top_logprobs=3)
PENALISED = SamplingParams(temperature=0.9, seed=3, repetition_penalty=1.7, frequency_penalty=0.4, logprobs=True)
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("guesses") / "tiny.gguf", block_format="F32")


class Answering:
    """One answer by two stages. send(): rows from this position on, a token after each."""

    def __init__(self, model: Path, sampling: SamplingParams) -> None:
        self._ring: LocalRing = ring_over(model, "Q8_0")
        self._frames = 0
        begin = SequenceBegin(RingId(1), len(PROMPT), sampling)
        self.tokens = [*PROMPT]
        self.scores = self._compute(SequenceSlice(RingId(1), 0, PROMPT, blocks(0, len(PROMPT)), num_samples=1), begin)
        self.tokens += [score.token_id for score in self.scores]

    def send(self, position: int, *token_ids: int) -> tuple[TokenScore, ...]:
        return self._compute(SequenceSlice(RingId(1), position, token_ids, blocks(position, len(token_ids)), num_samples=len(token_ids)))

    def _compute(self, rows: SequenceSlice, *begins: SequenceBegin) -> tuple[TokenScore, ...]:
        self._frames += 1
        results = self._ring.compute(MicroBatch(1, self._frames, "Q8_0", begins, (rows,), ())).results
        return results[0].sampled if results else ()


def one_by_one(model: Path, sampling: SamplingParams) -> tuple[TokenScore, ...]:
    answering = Answering(model, sampling)
    scores = list(answering.scores)
    while len(scores) < NUM_TOKENS:
        scores += answering.send(len(PROMPT) + len(scores) - 1, scores[-1].token_id)
    return tuple(scores)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, PENALISED])
@pytest.mark.parametrize("num_right", [0, 1, 4])
def test_tokens_and_their_probabilities_are_those_without_guesses(model: Path, sampling: SamplingParams, num_right: int) -> None:
    expected = one_by_one(model, sampling)
    answering = Answering(model, sampling)
    scores = list(answering.scores)
    while len(scores) < NUM_TOKENS:
        guesses = [score.token_id for score in expected[len(scores) : len(scores) + num_right]]
        wrong = [(score.token_id + 1) % 90 for score in expected[len(scores) + num_right :][:2]]
        found = answering.send(len(PROMPT) + len(scores) - 1, scores[-1].token_id, *guesses, *wrong)
        assert len(found) == len(guesses) + 1
        scores += found
    assert tuple(scores) == expected[: len(scores)] or tuple(scores[:NUM_TOKENS]) == expected


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED])
def test_slices_that_rest_on_a_wrong_guess_give_nothing_until_one_goes_on_from_the_right_token(
    model: Path, sampling: SamplingParams
) -> None:
    expected = [score.token_id for score in one_by_one(model, sampling)]
    answering = Answering(model, sampling)
    first = len(PROMPT)
    wrong = (expected[1] + 1) % 90
    assert [score.token_id for score in answering.send(first, expected[0])] == [expected[1]]
    assert answering.send(first + 1, wrong) == ()
    assert answering.send(first + 2, expected[2], expected[3]) == (), "right by itself, and behind a wrong one"
    found = [score.token_id for score in answering.send(first + 1, expected[1], expected[2])]
    assert found == expected[2:4]
    assert [score.token_id for score in answering.send(first + 3, expected[3])] == [expected[4]]


def test_more_tokens_than_rows_cannot_be_asked_for(model: Path) -> None:
    ring = ring_over(model, "Q8_0")
    rows = SequenceSlice(RingId(1), 0, PROMPT, blocks(0, len(PROMPT)), num_samples=4)
    with pytest.raises(MalformedFrame, match="asks for tokens after 4 rows of 3"):
        ring.compute(MicroBatch(1, 1, "Q8_0", (SequenceBegin(RingId(1), 3, GREEDY),), (rows,), ()))
