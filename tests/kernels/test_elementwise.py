"""Exponentials and probabilities: near float64, and the same bits on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dairllm.kernels_pyx import exp_f32, log_softmax_rows
from tests.kernels.computing import AVAILABLE_ISAS, Floats, instruction_set

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, -87.32, -87.33, -87.34, 88.0, 88.37, 88.38, 88.72, 88.73, 1e-30, -200.0, 200.0], np.float32
)
LOGITS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
)


def results_on_every_isa(x: Floats) -> list[bytes]:
    results = []
    for name in AVAILABLE_ISAS:
        with instruction_set(name):
            results.append(exp_f32(x).tobytes() + log_softmax_rows(x.reshape(1, -1)).tobytes())
    return results


def test_exp_is_within_two_ulp(isa: str) -> None:
    x = np.concatenate([np.linspace(-87.32, 88.72, 200_001), np.linspace(-1e-3, 1e-3, 1001)]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exp_f32(x) - exact) / ulp) <= 2


def test_exp_of_special_numbers(isa: str) -> None:
    expected = np.array([1, 1, np.inf, 0, np.nan, 0, 0, 0, 0, 0, 0, 0, np.inf, 1, 0, np.inf], np.float32)
    finite = np.isin(SPECIAL, np.array([-87.32, -87.33, 88.0, 88.37, 88.38, 88.72], np.float32))
    got = exp_f32(SPECIAL)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    np.testing.assert_allclose(got[finite], np.exp(SPECIAL[finite].astype(np.float64)), rtol=3e-7)


@given(LOGITS)
@settings(max_examples=60, deadline=None)
def test_probabilities_agree_with_float64(logits: Floats) -> None:
    wide = logits.astype(np.float64)
    expected = np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1)) + wide.max(1)
    np.testing.assert_allclose(log_softmax_rows(logits), wide - expected[:, None], rtol=1e-6, atol=2e-5)


@given(hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-300, 300, width=32, allow_subnormal=False)))
@settings(max_examples=60, deadline=None)
def test_same_bits_on_every_instruction_set(x: Floats) -> None:
    assert len(set(results_on_every_isa(x))) == 1


def test_a_dominant_or_impossible_logit(isa: str) -> None:
    logits = np.array([[-np.inf, 3.0, -np.inf]], np.float32)
    np.testing.assert_array_equal(log_softmax_rows(logits), np.array([[-np.inf, 0.0, -np.inf]], np.float32))


def test_no_rows_and_no_columns() -> None:
    assert exp_f32(np.empty(0, np.float32)).shape == (0,)
    assert log_softmax_rows(np.empty((0, 5), np.float32)).shape == (0, 5)
    with pytest.raises(ValueError, match="logits have 0 columns, expected 1 to"):
        log_softmax_rows(np.empty((2, 0), np.float32))
    with pytest.raises(ValueError, match="x must be a 1-dimensional array of float32, got 1 dimensions of float64"):
        exp_f32(np.zeros(3))  # type: ignore[arg-type]
