"""Numbers for weights whose results are noted down."""

import numpy as np
from numpy.typing import NDArray


class FixedNumbers:
    """Numbers that no version of numpy changes: a linear congruential generator's high bits, between -1 and 1."""

    def standard_normal(self, shape: tuple[int, ...] | int) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):
            state = np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            state ^= state >> np.uint64(29)
            state *= np.uint64(0xBF58476D1CE4E5B9)
        return ((state >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0).reshape(shape)
