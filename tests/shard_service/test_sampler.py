"""Sampling against plain definitions, and the generator against NumPy's."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.mesh.errors import DairllmError
from dairllm.mesh.sampling import SamplingParams
from dairllm.shard_service.forward.philox import philox4x64, uniform
from dairllm.shard_service.forward.sampler import TokenHistory, best_ids, sample, score

WORDS = st.integers(0, 2**64 - 1)
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=300).map(lambda values: np.array(values, np.float32))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 10**6]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    seed=WORDS,
)
Logits = npt.NDArray[np.float32]


def no_history(params: SamplingParams) -> TokenHistory:
    return TokenHistory(params, 0)


def choose(logits: Logits, position: int = 5, **values: object) -> int:
    params = SamplingParams(**values)  # type: ignore[arg-type]
    return sample(logits, params, no_history(params), position).token_id


@given(WORDS, WORDS, WORDS, st.integers(1, 2**64 - 1))
def test_philox_is_numpys(key0: int, key1: int, counter1: int, counter0: int) -> None:
    reference = np.random.Philox(key=np.array([key0, key1], np.uint64), counter=np.array([counter0 - 1, counter1, 0, 0], np.uint64))
    assert philox4x64((counter0, counter1, 0, 0), (key0, key1)) == tuple(int(word) for word in reference.random_raw(4))


@given(WORDS, st.integers(0, 2**31))
def test_uniform_stays_below_one(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=50), st.integers(0, 60))
def test_best_ids_are_those_of_a_full_sort(values: list[int], count: int) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    row = np.array(values, np.float32)
    assert best_ids(row, count).tolist() == expected


@given(LOGITS, PARAMS, st.integers(1, 1000))
def test_the_choice_is_a_token_and_the_same_again(logits: Logits, params: SamplingParams, position: int) -> None:
    history = TokenHistory(params, 2)
    history.extend(0, [0, 0, len(logits) - 1])
    first = sample(logits.copy(), params, history, position)
    assert 0 <= first.token_id < len(logits)
    assert sample(logits, params, history, position).token_id == first.token_id


def candidates_by_definition(logits: Logits, params: SamplingParams) -> list[tuple[int, float]]:
    """(id, weight) in order, by the textbook: float64 throughout, no shortcuts."""
    scaled = [(float(value) - float(logits.max())) / params.temperature for value in logits]
    kept = [(index, math.exp(value)) for index, value in enumerate(scaled) if math.exp(value) >= params.min_p]
    kept.sort(key=lambda pair: (-float(logits[pair[0]]), pair[0]))
    if params.top_k:
        kept = kept[: params.top_k]
    total, cumulated, nucleus = sum(weight for _, weight in kept), 0.0, []
    for pair in kept:
        nucleus.append(pair)
        cumulated += pair[1]
        if cumulated >= params.top_p * total:
            break
    return nucleus


@settings(max_examples=300)
@given(
    st.lists(st.integers(-20, 20), min_size=1, max_size=400),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([0, 1, 5]),
    st.sampled_from([1.0, 0.9, 0.3]),
    st.sampled_from([0.0, 0.1]),
    WORDS,
)
def test_the_draw_is_the_inverse_of_the_cumulated_weights(
    values: list[int], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = np.array(values, np.float32)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    nucleus = candidates_by_definition(logits, params)
    target = uniform(seed, 5) * sum(weight for _, weight in nucleus)
    token_id = sample(logits, params, no_history(params), 5).token_id
    low = 0.0
    bounds = {}
    for index, weight in nucleus:
        bounds[index] = (low, low + weight)
        low += weight
    tolerance = 1e-5 * low
    if token_id not in bounds:  # only where rounding decides what still belongs to the nucleus
        assert min_p or top_p < 1
        return
    assert bounds[token_id][0] - tolerance <= target <= bounds[token_id][1] + tolerance


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.log(probabilities).astype(np.float32)
    params = SamplingParams(seed=7)
    drawn = [sample(logits, params, no_history(params), position).token_id for position in range(4000)]
    counts = np.bincount(drawn, minlength=4)
    chi_squared = float((((counts - 4000 * probabilities) ** 2) / (4000 * probabilities)).sum())
    assert chi_squared < 16.3  # 0.1 % for 3 degrees of freedom


@given(LOGITS)
def test_greedy_takes_the_lowest_of_equals(logits: Logits) -> None:
    assert choose(logits, temperature=0.0) == int(np.flatnonzero(logits == logits.max())[0])
    assert choose(logits, temperature=1.0, top_k=1, seed=3) == choose(logits, temperature=0.0)


@given(LOGITS, WORDS, st.integers(1, 1000))
def test_a_nucleus_of_nothing_is_the_most_probable_token(logits: Logits, seed: int, position: int) -> None:
    assert choose(logits, position, top_p=0.0, seed=seed, temperature=2.0) == choose(logits, temperature=0.0)
    assert choose(logits, position, top_p=0.0, seed=seed, top_k=3) == choose(logits, temperature=0.0)


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    assert choose(np.array([1.0, 3.0, 2.0], np.float32), temperature=1e-38, seed=9) == 1


def test_a_large_vocabulary_is_cut_where_the_draw_needs_it() -> None:
    """The flat tail of 100,000 candidates makes draws land far beyond the first few hundred."""
    logits = np.zeros(100_000, np.float32)
    for seed in range(20):
        expected = int(uniform(seed, 5) * 100_000)
        assert abs(choose(logits, seed=seed) - expected) <= 1


def test_logit_bias_moves_the_choice() -> None:
    logits = np.array([5.0, 0.0, 0.0], np.float32)
    assert choose(logits, temperature=0.0, logit_bias={2: 10.0}) == 2
    assert choose(logits, temperature=0.0, logit_bias={0: -100.0}) == 1


def test_penalties_look_at_prompt_and_answer_as_they_say() -> None:
    logits = np.array([2.0, 1.9, 1.8, -5.0], np.float32)

    def chosen(**values: float) -> int:
        params = SamplingParams(temperature=0.0, **values)  # type: ignore[arg-type]
        history = TokenHistory(params, 1)
        history.extend(0, [0])  # the prompt
        history.extend(1, [1, 1])  # the answer
        return sample(logits, params, history, 3).token_id

    assert chosen() == 0
    assert chosen(presence_penalty=1.0) == 0  # 1.9 - 1 for token 1, none for the prompt's
    assert chosen(repetition_penalty=1.5) == 2  # tokens 0 and 1
    assert chosen(frequency_penalty=-0.1) == 1  # 1.9 + 2 x 0.1


def test_a_slice_may_hold_the_end_of_the_prompt_and_the_answer() -> None:
    params = SamplingParams(presence_penalty=1.0)
    history = TokenHistory(params, 3)
    history.extend(0, [5, 6])
    history.extend(2, [7, 8, 8])
    assert history.answer_counts == {8: 2}
    assert history.all_ids == {5, 6, 7, 8}


@given(LOGITS, st.integers(0, 20), st.data())
def test_scores_are_log_probabilities_of_the_model(logits: Logits, top: int, data: st.DataObject) -> None:
    token_id = data.draw(st.integers(0, len(logits) - 1))
    found = score(logits, token_id, top)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    assert found.logprob == pytest.approx(exact[token_id], abs=2e-5)
    assert [entry.token_id for entry in found.top] == best_ids(logits, top).tolist()
    assert len(found.top) == min(top, len(logits))


def test_logprobs_are_of_the_distribution_before_temperature_and_bias() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    params = SamplingParams(temperature=0.0, logit_bias={0: 50.0}, logprobs=True, top_logprobs=1)
    found = sample(logits, params, no_history(params), 1)
    assert found.token_id == 0
    assert found.logprob == pytest.approx(-1.3132617, abs=1e-5)
    assert found.top[0].token_id == 1
    silent = sample(logits, SamplingParams(), no_history(params), 1)
    assert math.isnan(silent.logprob)


@pytest.mark.parametrize("broken", [[math.nan, 1.0], [1.0, math.inf], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(broken: list[float], temperature: float) -> None:
    with pytest.raises(DairllmError, match="finite"):
        choose(np.array(broken, np.float32), temperature=temperature)
