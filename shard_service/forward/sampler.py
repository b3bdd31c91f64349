"""Choosing the next token from a row of logits.

The order is that of vLLM: logit bias, penalties (repetition, then frequency and presence), temperature, min-p, top-k, top-p, draw.
Log-probabilities are of the model's own distribution, before all of these.

The same logits, parameters and history give the same token on any machine (docs/kernels.md, 'Sampling'):
exponentials come from the kernels' own routine, everything else is single IEEE operations and sums in one fixed order
(`cumsum` adds strictly one after the other; `sum` does not). Candidates are ordered by falling logit, equal ones by id, and a
number in [0, 1) that is a function of (seed, position) is looked up in their cumulated weights.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import exp_f32, log_softmax_rows
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.ring.frames import TokenLogprob, TokenScore
from dairllm.mesh.sampling import SamplingParams
from dairllm.shard_service.forward.philox import uniform

Row = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Ids = npt.NDArray[np.intp]

_FIRST_CANDIDATES = 128
_GROWTH = 16


class TokenHistory:
    """Which tokens a sequence holds, as far as its penalties look at them. Tokens before `prompt_length` are the prompt."""

    def __init__(self, sampling: SamplingParams, prompt_length: int) -> None:
        self._sampling = sampling
        self._prompt_length = prompt_length
        self._wanted = has_penalties(sampling)
        self._token_ids: list[int] = []
        self.all_ids: set[int] = set()
        self.answer_counts: Counter[int] = Counter()

    def extend(self, first_position: int, token_ids: Sequence[int]) -> None:
        """first_position: at most where the tokens end; those from there on are replaced."""
        if not self._wanted:
            return
        if first_position < len(self._token_ids):
            kept, self._token_ids = self._token_ids[:first_position], []
            self.all_ids, self.answer_counts = set(), Counter()
            self._append(kept)
        self._append(list(token_ids))

    def until(self, position: int) -> "TokenHistory":
        """Without the tokens from this position on."""
        if position >= len(self._token_ids):
            return self
        history = TokenHistory(self._sampling, self._prompt_length)
        history.extend(0, self._token_ids[:position])
        return history

    def _append(self, token_ids: list[int]) -> None:
        answer_start = max(0, self._prompt_length - len(self._token_ids))
        self._token_ids += token_ids
        self.all_ids.update(token_ids)
        self.answer_counts.update(token_ids[answer_start:])


def has_penalties(sampling: SamplingParams) -> bool:
    return bool(sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty)


def sample(logits: Row, sampling: SamplingParams, history: TokenHistory, position: int) -> TokenScore:
    """The token at `position`, given the logits [vocab] after the row before it.

    Raises DairllmError when the logits hold a NaN or no finite value: the weights or the activations are broken.
    """
    require_numbers(logits)
    token_id = _choose(logits, sampling, history, position)
    if not sampling.logprobs:
        return TokenScore(token_id, float("nan"))
    return score(logits, token_id, sampling.top_logprobs)


def score(logits: Row, token_id: int, top_logprobs: int) -> TokenScore:
    """Log-probability of one token after a row of logits, with those of the `top_logprobs` most probable ones."""
    require_numbers(logits)
    logprobs = log_softmax_rows(logits[None, :])[0]
    top = tuple(TokenLogprob(int(index), float(logprobs[index])) for index in best_ids(logits, top_logprobs))
    return TokenScore(token_id, float(logprobs[token_id]), top)


def require_numbers(logits: Row) -> None:
    highest = float(logits.max())  # NaN if there is one
    if not np.isfinite(highest):
        raise DairllmError(f"the highest logit is {highest}; expected a finite number: weights or activations are broken")


def best_ids(values: Row, count: int) -> Ids:
    """Ids of the `count` largest values, largest first, equal ones by rising id. Every NaN-free row has one answer."""
    count = min(count, len(values))
    if count == 0:
        return np.empty(0, np.intp)
    if count < len(values):
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(values >= threshold)
    else:
        candidates = np.arange(len(values))
    order = np.argsort(-values[candidates], kind="stable")
    return candidates[order[:count]]


def _choose(logits: Row, sampling: SamplingParams, history: TokenHistory, position: int) -> int:
    values = _with_penalties(_with_bias(logits, sampling), sampling, history)
    if sampling.temperature == 0.0:
        return int(values.argmax())
    return _draw(_scaled(values, sampling.temperature), sampling, uniform(sampling.seed, position))


def _with_bias(logits: Row, sampling: SamplingParams) -> Row:
    if not sampling.logit_bias:
        return logits
    biased = logits.copy()
    ids = np.fromiter(sampling.logit_bias.keys(), np.intp)
    biased[ids] += np.fromiter(sampling.logit_bias.values(), np.float32)
    return biased


def _with_penalties(logits: Row, sampling: SamplingParams, history: TokenHistory) -> Row:
    if not has_penalties(sampling):
        return logits
    values = logits.copy()
    if history.all_ids and sampling.repetition_penalty != 1.0:
        ids = np.fromiter(history.all_ids, np.intp)
        penalty = np.float32(sampling.repetition_penalty)
        values[ids] = np.where(values[ids] > 0, values[ids] / penalty, values[ids] * penalty)
    if history.answer_counts:
        ids = np.fromiter(history.answer_counts.keys(), np.intp)
        counts = np.fromiter(history.answer_counts.values(), np.float32)
        values[ids] -= np.float32(sampling.frequency_penalty) * counts
        values[ids] -= np.float32(sampling.presence_penalty)
    return values


def _scaled(values: Row, temperature: float) -> Row:
    """(values - highest) / temperature, so that the best candidate has weight exp(0) = 1 and nothing overflows upwards."""
    distances = values.astype(np.float64) - float(values.max())
    with np.errstate(over="ignore"):  # a tiny temperature
        return np.maximum(distances / temperature, -1e30).astype(np.float32)


def _draw(scaled: Row, sampling: SamplingParams, drawn: float) -> int:
    weights = np.asarray(exp_f32(scaled)).astype(np.float64)
    if sampling.min_p:
        weights[weights < sampling.min_p] = 0.0
    if 0 < sampling.top_k < len(scaled):
        ids = best_ids(scaled, sampling.top_k)
        return _draw_from(ids, weights[ids], float(np.cumsum(weights[ids])[-1]), sampling.top_p, drawn)
    total = float(np.cumsum(weights)[-1])
    return _draw_from_best(scaled, weights, total, sampling.top_p, drawn)


def _draw_from_best(scaled: Row, weights: Weights, total: float, top_p: float, drawn: float) -> int:
    """As `_draw_from` over all candidates in order, but sorts no more of them than the draw needs (a vocabulary takes 10 ms to sort)."""
    count = _FIRST_CANDIDATES
    needed = total * (top_p if top_p < 1.0 else drawn)
    while True:
        ids = best_ids(scaled, count)
        if len(ids) == len(scaled) or float(np.cumsum(weights[ids])[-1]) > needed:
            return _draw_from(ids, weights[ids], total, top_p, drawn)
        count *= _GROWTH


def _draw_from(ids: Ids, weights: Weights, total: float, top_p: float, drawn: float) -> int:
    """ids, weights: candidates in order. The nucleus is the shortest beginning whose weights sum up to `top_p` of `total`."""
    cumulated = np.cumsum(weights)
    if top_p < 1.0:
        end = min(int(np.searchsorted(cumulated, top_p * total, side="left")), len(ids) - 1)
        cumulated = cumulated[: end + 1]
        total = float(cumulated[-1])
    index = int(np.searchsorted(cumulated, drawn * total, side="right"))
    last_possible = int(np.flatnonzero(weights[: len(cumulated)])[-1])  # rounding may put drawn * total at the very end
    return int(ids[min(index, last_possible)])
