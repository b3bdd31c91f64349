"""Philox4x64-10, a counter-based generator: J. Salmon et al., 'Parallel random numbers: as easy as 1, 2, 3' (SC 2011).

Whole-number arithmetic only, so a draw depends on nothing but (seed, position): any shard can take over a sequence.
"""

_MASK = 2**64 - 1
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four 64-bit words that are a function of the four words of the counter and the two of the key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> 64) ^ c1 ^ k0, product1 & _MASK, (product0 >> 64) ^ c3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, counted by the sequence's seed and the position of the token that is drawn."""
    word = philox4x64((position, 0, 0, 0), (seed, 0))[0]
    return (word >> 11) * 2.0**-53
