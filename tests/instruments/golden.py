"""Tiny models of the families, with the logits that another implementation gives in float32."""

from pathlib import Path

import numpy as np
import pytest

from tests.instruments.clusters import Cluster, shards

TINY = Path(__file__).parent.parent / "data" / "tiny"
LARGEST_F32_ERROR = 2e-3
NUM_TOP = 5


def require_golden_logits(name: str, model: Path) -> None:
    """Wire and KV cache in F32: what is left is the order of additions. Two shards, token ids for a model without a tokenizer.

    name: of a folder in tests/data/tiny. model: that folder, or another file of the same weights.
    """
    golden = np.load(TINY / name / "golden.npz")
    ids, logits = golden["input_ids"].tolist(), golden["logits"].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    with Cluster(model, shards(2), wire="F32", arguments=("--kv-cache", "F32")) as cluster:
        answer = cluster.complete(ids, echo=True, logprobs=NUM_TOP, max_tokens=0)
    scores = answer["choices"][0]["logprobs"]
    for position, (logprob, top) in enumerate(zip(scores["token_logprobs"], scores["top_logprobs"], strict=True)):
        if position:
            row = expected[position - 1]
            assert logprob == pytest.approx(row[ids[position]], abs=LARGEST_F32_ERROR)
            assert sorted(top.values())[-NUM_TOP:] == pytest.approx(sorted(row)[-NUM_TOP:], abs=LARGEST_F32_ERROR)
