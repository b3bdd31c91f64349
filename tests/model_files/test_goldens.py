"""Descriptions of config.json are read as transformers reads them: the reference forward pass gives its logits for every tiny model."""

import numpy as np
import pytest

from tests.instruments.golden import LARGEST_F32_ERROR, TINY
from tests.reference_forward import greedy, logits
from tests.role_tensors import read_model

FOLDERS = sorted(folder.name for folder in TINY.iterdir() if (folder / "golden.npz").exists())


@pytest.mark.parametrize("name", FOLDERS)
def test_the_reference_gives_the_golden_logits_and_tokens(name: str) -> None:
    spec, units = read_model(TINY / name)
    golden = np.load(TINY / name / "golden.npz")
    ids = golden["input_ids"].tolist()
    assert np.abs(logits(spec, units, ids) - golden["logits"]).max() < LARGEST_F32_ERROR
    expected = golden["greedy"].tolist()[:4]
    assert greedy(spec, units, ids, len(expected)) == expected
