"""Whether a result can be what a frame asked for. One that cannot says that the shard which sent it is at fault, whatever the reason.

It costs little for each token: numbers are compared, nothing is computed.
"""

from collections.abc import Callable, Iterator, Sequence

from dairllm.mesh.ring.frames import MicroBatchResult, RingId, SequenceResult, SequenceSlice, TokenScore
from dairllm.mesh.sampling import SamplingParams

HIGHEST_LOGPROB = 0.01
"""Rounding makes 0 a little more."""

SamplingOf = Callable[[RingId], SamplingParams | None]
"""How a sequence is sampled; None if it has ended since the frame was sent, so that nothing that comes of it matters."""


def fault_in(
    batch: MicroBatchResult, asked: Sequence[SequenceSlice] | None, sampling_of: SamplingOf, num_tokens: int, *, has_states: bool = False
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
        sampling = sampling_of(sequence_id)
        if sampling is None:  # it may have no cache to stand on any more
            continue
        result = results.get(sequence_id, SequenceResult(sequence_id, None))
        may_be_lost = slice_.replay is not None or (has_states and slice_.first_position > 0)
        wrong = next(_wrong(slice_, result, sampling, num_tokens, may_be_lost=may_be_lost), "")
        if wrong:
            return f"sent {wrong} for sequence {sequence_id} in frame {batch.batch_id}"
    return ""


def _wrong(slice_: SequenceSlice, result: SequenceResult, sampling: SamplingParams, num_tokens: int, *, may_be_lost: bool) -> Iterator[str]:
    if result.replay_failed and not may_be_lost:
        yield "a failed replay where none was asked for"
    if result.replay_failed or result.failure:
        return
    if (result.sampled is not None) != slice_.sample:
        yield "no token where one was asked for" if slice_.sample else "a token that nobody has asked for"
    if len(result.scores) != len(slice_.score_targets):
        yield f"{len(result.scores)} scores instead of {len(slice_.score_targets)}"
    for score, target in zip(result.scores, slice_.score_targets, strict=False):
        if score.token_id != target:
            yield f"the score of token {score.token_id} instead of {target}"
        yield from _wrong_score(score, sampling, num_tokens, has_logprob=True)
    if result.sampled is not None:
        yield from _wrong_score(result.sampled, sampling, num_tokens, has_logprob=sampling.logprobs)


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
