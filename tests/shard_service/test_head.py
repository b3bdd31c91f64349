"""What the shard with the head makes of rows of the residual stream."""

import math

import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import PackedMatrix, Stage
from dairllm.mesh.ring.frames import RingId, SequenceBegin, SequenceSlice
from dairllm.mesh.sampling import SamplingParams
from dairllm.model_files.memory import HEAD_ROWS
from dairllm.shard_service.forward.head import Head, WholeProjection
from dairllm.shard_service.forward.sampler import TokenHistory
from dairllm.shard_service.forward.sequences import CheckedSlice, RunningSequence
from dairllm.shard_service.forward.stage_layers import stage_spec
from tests.instruments.descriptions import layer_of, spec_of

NUM_TOKENS, PADDING_ROWS, WIDTH = 50, 14, 64
SPEC = spec_of(1, layer=layer_of(), hidden_size=WIDTH, vocab_size=NUM_TOKENS + PADDING_ROWS, padding_rows=PADDING_ROWS)
NO_BLOCKS = np.empty(0, np.int32)


def head_whose_padding_is_loudest() -> Head:
    """Rows of the output that are no token have by far the highest logits, as rows that nobody trained may."""
    output = np.random.default_rng(1).standard_normal((SPEC.vocab_size, WIDTH)).astype(np.float32)
    output[NUM_TOKENS:] = 100.0
    matrix = PackedMatrix("F32", SPEC.vocab_size, WIDTH)
    matrix.pack_rows(0, output.tobytes())
    stage = Stage(stage_spec(SPEC, "F32"), max_rows=HEAD_ROWS, max_context=HEAD_ROWS)
    stage.set_head(np.ones(WIDTH, np.float32), matrix)
    return Head(WholeProjection(stage), SPEC.num_tokens, None)


def sampled_slice(sampling: SamplingParams) -> CheckedSlice:
    begin = SequenceBegin(RingId(1), prompt_length=1, sampling=sampling)
    slice_ = SequenceSlice(RingId(1), first_position=0, token_ids=(3,), new_block_ids=(), num_samples=1, score_targets=(5,))
    return CheckedSlice(slice_, RunningSequence(begin, TokenHistory(sampling, 1), NO_BLOCKS, 1), NO_BLOCKS)


def test_rows_that_are_no_tokens_are_neither_chosen_nor_counted() -> None:
    head = head_whose_padding_is_loudest()
    hidden = np.ones((1, WIDTH), np.float32)
    for temperature in (0.0, 1.0, 100.0):
        sampling = SamplingParams(temperature=temperature, seed=7, logprobs=True, top_logprobs=20)
        (result,) = head.results([sampled_slice(sampling)], hidden)
        assert len(result.sampled) == 1
        for found in (*result.sampled, *result.scores):
            assert found.token_id < NUM_TOKENS
            assert all(top.token_id < NUM_TOKENS for top in found.top)
            assert math.isclose(found.logprob, logprobs_of_tokens(head, hidden)[found.token_id], abs_tol=1e-4)


def logprobs_of_tokens(head: Head, hidden: NDArray[np.float32]) -> list[float]:
    logits = head.logits(hidden)[0].astype(np.float64)
    assert logits.shape == (NUM_TOKENS,)
    logprobs: list[float] = (logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()).tolist()
    return logprobs
