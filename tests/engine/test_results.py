"""What a last shard may send for a frame, and what no honest one does."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.engine.results import Awaited, fault_in
from dairllm.mesh.ring.frames import MicroBatchResult, Replay, RingId, SequenceResult, SequenceSlice, TokenLogprob, TokenScore
from dairllm.mesh.sampling import SamplingParams

NUM_TOKENS = 100
NAN, INF = float("nan"), float("inf")
PLAIN, REPORTED = SamplingParams(), SamplingParams(logprobs=True, top_logprobs=2)
SAMPLED, SCORED, REPLAYED, PASSED = RingId(1), RingId(2), RingId(3), RingId(4)
SLICES = (
    SequenceSlice(SAMPLED, 5, (1,), (), num_samples=1),
    SequenceSlice(SCORED, 0, (1, 2), (0,), num_samples=0, score_targets=(2, 3)),
    SequenceSlice(REPLAYED, 0, (1, 2), (0,), num_samples=0, replay=Replay(1, 3, "a")),
    SequenceSlice(PASSED, 0, (1, 2), (0,), num_samples=0),
)
TOKEN = SequenceResult(SAMPLED, (TokenScore(99, NAN),))
SCORES = SequenceResult(SCORED, (), (TokenScore(2, -1.0), TokenScore(3, -INF)))
TOP = (TokenLogprob(7, 0.0), TokenLogprob(8, -3.0))


def fault_of(*results: SequenceResult, asked: Sequence[SequenceSlice] | None = SLICES, sampling: SamplingParams | None = PLAIN) -> str:
    wanted = Awaited(sampling) if sampling else None
    return fault_in(MicroBatchResult(1, 7, results, ()), asked, lambda ring_id: wanted, NUM_TOKENS)


@pytest.mark.parametrize(
    ("results", "sampling"),
    [
        ((TOKEN, SCORES), PLAIN),
        ((TOKEN, SCORES), None),
        ((SCORES, TOKEN._replace(sampled=(TokenScore(0, -0.5, TOP),))), REPORTED),
        ((TOKEN._replace(sampled=(), failure="the highest logit is nan"), SCORES), PLAIN),
        ((TOKEN, SCORES, SequenceResult(REPLAYED, (), (), replay_failed=True)), PLAIN),
        ((TOKEN, SCORES, SequenceResult(PASSED, (), (), failure="no numbers")), PLAIN),
    ],
)
def test_what_honest_shards_send(results: tuple[SequenceResult, ...], sampling: SamplingParams | None) -> None:
    assert fault_of(*results, sampling=sampling) == ""


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ((SCORES,), "no token where one was asked for"),
        ((TOKEN,), "0 scores instead of 2"),
        ((TOKEN, SCORES._replace(scores=SCORES.scores[:1])), "1 scores instead of 2"),
        ((TOKEN, SCORES._replace(scores=(*SCORES.scores, TokenScore(1, -1.0)))), "3 scores instead of 2"),
        ((TOKEN, SCORES._replace(scores=SCORES.scores[::-1])), "the score of token 3 instead of 2"),
        ((TOKEN, SCORES._replace(scores=(TokenScore(2, NAN), TokenScore(3, -1.0)))), "the log-probability nan"),
        ((TOKEN, SCORES._replace(sampled=(TokenScore(1, NAN),))), "a token that nobody has asked for"),
        ((TOKEN._replace(sampled=(TokenScore(100, NAN),)), SCORES), "token 100, which is not in the vocabulary of 100,"),
        ((TOKEN._replace(sampled=(TokenScore(2**32 - 1, NAN),)), SCORES), "token 4294967295, which"),
        ((TOKEN._replace(sampled=(TokenScore(1, NAN, (TokenLogprob(100, -1.0),)),)), SCORES), "token 100, which"),
        ((TOKEN._replace(sampled=(TokenScore(1, NAN, (TokenLogprob(1, NAN),)),)), SCORES), "the log-probability nan"),
        ((TOKEN._replace(sampled=(TokenScore(1, NAN, TOP),)), SCORES), "2 most probable tokens instead of 0"),
        ((TOKEN, SCORES, SequenceResult(PASSED, (), (), replay_failed=True)), "a failed replay where none was asked for"),
        ((TOKEN, TOKEN, SCORES), "more than one of a sequence"),
        ((TOKEN, SCORES, SequenceResult(RingId(9))), "of sequences that are not in frame 7"),
    ],
)
def test_what_no_honest_shard_sends(results: tuple[SequenceResult, ...], words: str) -> None:
    assert words in fault_of(*results)
    assert fault_of(*results).startswith("sent ")


@pytest.mark.parametrize("logprob", [NAN, INF, 0.5])
def test_log_probabilities_that_were_asked_for_are_numbers(logprob: float) -> None:
    assert "the log-probability" in fault_of(TOKEN._replace(sampled=(TokenScore(1, logprob),)), SCORES, sampling=REPORTED)


def test_a_frame_that_was_not_sent_has_no_result() -> None:
    assert fault_of(asked=None) == "sent a result for frame 7, which nobody has asked for"


scores = st.builds(
    TokenScore, st.integers(0, 2**32), st.floats(), st.lists(st.builds(TokenLogprob, st.integers(0, 2**32), st.floats())).map(tuple)
)
results = st.builds(
    SequenceResult,
    st.integers(0, 5).map(RingId),
    *(st.lists(scores, max_size=3).map(tuple) for _ in range(2)),
    st.booleans(),
    st.text(),
)


@given(st.lists(results, max_size=5), st.sampled_from([PLAIN, REPORTED, None]))
def test_nothing_that_comes_is_an_error_of_this_program(results: list[SequenceResult], sampling: SamplingParams | None) -> None:
    assert isinstance(fault_of(*results, sampling=sampling), str)


@pytest.mark.parametrize(
    ("sampled", "words"),
    [
        ((7, 8, 9), ""),
        ((7, 3), ""),
        ((3,), ""),
        ((), "no token where one was asked for"),
        ((7,), "1 tokens where 1 guesses are right"),
        ((7, 8), "2 tokens where 2 guesses are right"),
        ((3, 8), "2 tokens where 0 guesses are right"),
        ((7, 8, 9, 9), "4 tokens where 2 guesses are right"),
    ],
)
def test_a_token_is_sampled_for_each_guess_that_is_right_and_one_more(sampled: tuple[int, ...], words: str) -> None:
    asked = [SequenceSlice(SAMPLED, 5, (1, 7, 8), (), num_samples=3)]
    result = SequenceResult(SAMPLED, tuple(TokenScore(token_id, NAN) for token_id in sampled))
    found = fault_of(result, asked=asked)
    assert (words in found) if words else found == ""


def test_nothing_is_sampled_after_a_wrong_guess() -> None:
    asked = [SequenceSlice(SAMPLED, 5, (1,), (), num_samples=1)]
    for result, fault in ((TOKEN, "a token that nobody has asked for"), (SequenceResult(SAMPLED), "")):
        batch = MicroBatchResult(1, 7, (result,), ())
        assert fault in fault_in(batch, asked, lambda ring_id: Awaited(PLAIN, is_dead=True), NUM_TOKENS)


def test_a_state_may_be_lost_where_there_are_states() -> None:
    lost = tuple(SequenceResult(ring_id, (), (), replay_failed=True) for ring_id in (SAMPLED, SCORED))
    batch = MicroBatchResult(1, 7, (lost[0], SCORES), ())
    assert fault_in(batch, SLICES, lambda ring_id: Awaited(PLAIN), NUM_TOKENS, has_states=True) == ""
    assert "a failed replay where none was asked for" in fault_in(batch, SLICES, lambda ring_id: Awaited(PLAIN), NUM_TOKENS)
    batch = MicroBatchResult(1, 7, (TOKEN, lost[1]), ())
    wrong = fault_in(batch, SLICES, lambda ring_id: Awaited(PLAIN), NUM_TOKENS, has_states=True)
    assert "a failed replay where none was asked for" in wrong, "it begins without a state"
