"""Blocks of every format for tests: random bits, with scales of ordinary size, as files have them."""

from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import BLOCK_FORMATS


class Scales(NamedTuple):
    """Where a block's f16 numbers stand, and by how much the other bits multiply them at most."""

    at: tuple[int, ...]
    factor: float


SCALES = {
    "Q4_0": Scales((0,), 8),
    "Q4_1": Scales((0, 2), 15),
    "Q5_0": Scales((0,), 16),
    "Q5_1": Scales((0, 2), 31),
    "Q8_0": Scales((0,), 128),
    "Q2_K": Scales((80, 82), 15 * 3),
    "Q3_K": Scales((108,), 32 * 4),
    "Q4_K": Scales((0, 2), 63 * 15),
    "Q5_K": Scales((0, 2), 63 * 31),
    "Q6_K": Scales((208,), 128 * 32),
    "IQ4_NL": Scales((0,), 127),
    "IQ4_XS": Scales((0,), 32 * 127),
    "TQ2_0": Scales((64,), 2),
}
"""MXFP4 has a byte for a scale instead."""
QUANTISED = (*SCALES, "MXFP4")
MXFP4_EXPONENTS = (120, 126)


def super_blocks(block_format: str, inputs: int) -> int:
    """As many inputs, times 8 where a format has blocks of 256."""
    return inputs * max(1, BLOCK_FORMATS[block_format].block_size // 32)


def random_blocks(block_format: str, num_blocks: int, generator: np.random.Generator, largest: float = 3.0) -> NDArray[np.uint8]:
    """Blocks [num_blocks, bytes] of a quantised format whose weights are mostly below `largest`."""
    blocks = generator.integers(0, 256, (num_blocks, BLOCK_FORMATS[block_format].block_bytes), dtype=np.uint8)
    if block_format == "MXFP4":
        blocks[:, 0] = generator.integers(*MXFP4_EXPONENTS, num_blocks)
        return blocks
    scales = SCALES[block_format]
    for at in scales.at:
        numbers = generator.normal(0, largest / 3 / scales.factor, num_blocks).astype(np.float16)
        blocks[:, at : at + 2] = numbers.view(np.uint8).reshape(num_blocks, 2)
    return blocks


def decode(block_format: str, data: bytes | NDArray[np.uint8]) -> NDArray[np.float32]:
    """What blocks stand for by the gguf package, flat."""
    kind = gguf.GGMLQuantizationType[block_format]
    array = np.frombuffer(bytes(data), np.uint8).reshape(-1, BLOCK_FORMATS[block_format].block_bytes)
    with np.errstate(all="ignore"):
        decoded: NDArray[np.float32] = gguf.quants.dequantize(array, kind).reshape(-1)
    return decoded
