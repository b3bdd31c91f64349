"""Whether a result can be what a frame asked for. One that cannot says that the shard which sent it is at fault, whatever the reason.

It costs little for each token: numbers are compared, nothing is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from dairllm.mesh.ring.frames import MicroBatchResult, RingId, SequenceResult, SequenceSlice, TokenScore
from dairllm.mesh.sampling import SamplingParams

HIGHEST_LOGPROB = 0.01
"""Rounding makes 0 a little more."""


class Awaited(NamedTuple):
    """is_dead: the slice rests on a wrong guess."""

    sampling: SamplingParams
    is_dead: bool = False


AwaitedOf = Callable[[RingId], Awaited | None]
"""What is awaited of a sequence; None if it has ended since the frame was sent, so that nothing that comes of it matters."""


def fault_in(
    batch: MicroBatchResult, asked: Sequence[SequenceSlice] | None, awaited_of: AwaitedOf, num_tokens: int, *, has_states: bool = False
) -> str:
    """What is wrong, as a part of a sentence whose subject is the shard; '' if nothing is.

    asked: what was sent under the batch's number, None if nothing was or it has come back. num_tokens: of the vocabulary. has_states:
    shards may lack one that a slice goes on from.
    """
    if asked is None:
        return f"sent a result for frame {batch.batch_id}, which nobody has asked for"
    results = {result.sequence_id: result for result in batch.results}
    slices = {slice_.sequence_id: slice_ for slice_ in asked}
    if len(results) < len(batch.results) or not results.keys() <= slices.keys():
        return f"sent results of sequences that are not in frame {batch.batch_id}, or more than one of a sequence"
    for sequence_id, slice_ in slices.items():
        awaited = awaited_of(sequence_id)
        if awaited is None:  # it may have no cache to stand on any more
            continue
        result = results.get(sequence_id, SequenceResult(sequence_id))
        may_be_lost = slice_.replay is not None or (has_states and slice_.first_position > 0)
        wrong = next(_wrong(slice_, result, awaited, num_tokens, may_be_lost=may_be_lost), "")
        if wrong:
            return f"sent {wrong} for sequence {sequence_id} in frame {batch.batch_id}"
    return ""


def _wrong(slice_: SequenceSlice, result: SequenceResult, awaited: Awaited, num_tokens: int, *, may_be_lost: bool) -> Iterator[str]:
    sampling = awaited.sampling
    if result.replay_failed and not may_be_lost:
        yield "a failed replay where none was asked for"
    if result.replay_failed or result.failure:
        return
    yield from _wrong_number(slice_, [token.token_id for token in result.sampled], is_dead=awaited.is_dead)
    if len(result.scores) != len(slice_.score_targets):
        yield f"{len(result.scores)} scores instead of {len(slice_.score_targets)}"
    for score, target in zip(result.scores, slice_.score_targets, strict=False):
        if score.token_id != target:
            yield f"the score of token {score.token_id} instead of {target}"
        yield from _wrong_score(score, sampling, num_tokens, has_logprob=True)
    for token in result.sampled:
        yield from _wrong_score(token, sampling, num_tokens, has_logprob=sampling.logprobs)


def _wrong_number(slice_: SequenceSlice, sampled: list[int], *, is_dead: bool) -> Iterator[str]:
    """As many tokens are sampled as guesses are right, and one more."""
    if sampled and (is_dead or not slice_.num_samples):
        yield "a token that nobody has asked for"
    if is_dead or not slice_.num_samples:
        return
    if not sampled:
        yield "no token where one was asked for"
    guesses = slice_.token_ids[slice_.num_rows - slice_.num_samples + 1 :]
    num_right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guesses, sampled, strict=False)))
    if len(sampled) != num_right + 1:
        yield f"{len(sampled)} tokens where {num_right} guesses are right"


def _wrong_score(score: TokenScore, sampling: SamplingParams, num_tokens: int, *, has_logprob: bool) -> Iterator[str]:
    for token_id in (score.token_id, *(top.token_id for top in score.top)):
        if not 0 <= token_id < num_tokens:
            yield f"token {token_id}, which is not in the vocabulary of {num_tokens},"
    wanted = [score.logprob] if has_logprob else []
    for logprob in (*wanted, *(top.logprob for top in score.top)):
        if not logprob <= HIGHEST_LOGPROB:
            yield f"the log-probability {logprob}"
    if len(score.top) > sampling.top_logprobs:
        yield f"{len(score.top)} most probable tokens instead of {sampling.top_logprobs}"
