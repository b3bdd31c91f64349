"""How many guesses a frame takes along, and whether one is sent before its time. Pure.

A frame takes along guesses as long as the tokens that it is expected to bring grow faster than the time that it takes. One is sent ahead
of the token that it goes on from if the wait that it saves, where its guess is right, is more than what it costs the others.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

LEAST_GAIN = 0.03
"""So much faster it has to be, or nothing is guessed: times and chances are known no better."""
LEAST_CHANCE_AHEAD = 0.25
"""A frame that is sent ahead is computed whole, most often in vain if the chance is less, on machines that may have other things to do."""


def best_count(chances: Sequence[float], num_tokens: float, time_with: Callable[[int], float]) -> int:
    """How many of the guesses. chances: of each, that it and all before it in its sequence are right, the best first. num_tokens: that the
    frame brings without any. time_with: seconds that it takes with so many of them."""
    gains = list(accumulate(chances, initial=num_tokens))
    least = num_tokens / time_with(0) * (1 + LEAST_GAIN)
    rates = [gain / time_with(count) for count, gain in enumerate(gains)]
    best = max(range(len(rates)), key=lambda count: rates[count])
    return best if rates[best] >= least else 0


def pays_ahead(chance: float, alone_s: float, beside_s: float, stage_s: float) -> bool:
    """Whether to send a frame before the token that it goes on from is known. chance: that it goes on from the right one. alone_s: once
    around the ring while nothing else is on it; beside_s: while something is; stage_s: at the slowest stage."""
    return chance >= LEAST_CHANCE_AHEAD and chance * stage_s + (1 - chance) * beside_s < alone_s / (1 + LEAST_GAIN)
