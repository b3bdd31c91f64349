"""What is done with stored values when a unit is loaded, so that they are what their role says.

A transform has a name, which travels in the manifest. Several are applied in order. They are applied to numbers as a whole, and to each
matrix of a stack by itself. Those that move rows work on any block format, those that move single values on element types of whole bytes,
those that change values on numbers only.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import exp_f32

Shape = tuple[int, ...]
Array = npt.NDArray[Any]


class Kind(Enum):
    """What a transform does with values."""

    MOVES_ROWS = "rows"
    MOVES_VALUES = "values"
    CHANGES_VALUES = "changes"


class Transform(NamedTuple):
    """stored_shape: what must be stored for a result of this shape. outputs: the axis that counts outputs. block_format: the only one that
    it is for. Where rows are moved and values are not single ones, `apply` gets the bytes of each row."""

    kind: Kind
    stored_shape: Callable[[Shape, int], Shape]
    apply: Callable[[Array, int], Array]
    block_format: str | None = None


def _same(shape: Shape, outputs: int) -> Shape:
    return shape


def _swapped(shape: Shape, outputs: int) -> Shape:
    return *shape[:-2], shape[-1], shape[-2]


def _twice(shape: Shape, outputs: int) -> Shape:
    return tuple(2 * length if axis - len(shape) == outputs else length for axis, length in enumerate(shape))


def _every_second(first: int) -> Callable[[Array, int], Array]:
    return lambda values, outputs: values[..., first::2] if outputs == NUMBERS_OUTPUTS else values[..., first::2, :]


def _mxfp4_blocks(rows: Array, outputs: int) -> Array:
    """From all blocks of 16 bytes, in which values lie by pairs, and all exponents behind them, to GGUF's blocks: an exponent, and bytes
    that hold a value of the first half and one of the second (https://huggingface.co/docs/transformers/main/en/quantization/mxfp4)."""
    count = rows.size // _MXFP4_BYTES
    pairs = rows.reshape(-1)[: count * (_MXFP4_BYTES - 1)].reshape(count, _MXFP4_BYTES - 1)
    values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(count, 2, _MXFP4_BYTES - 1)
    exponents = rows.reshape(-1)[count * (_MXFP4_BYTES - 1) :]
    return np.column_stack([exponents, values[:, 0] | values[:, 1] << 4]).reshape(rows.shape)


def _negative_exp(values: Array, outputs: int) -> Array:
    """By the kernels' exponential: numpy's has other bits on another machine."""
    return -exp_f32(values.astype(np.float32).reshape(-1)).reshape(values.shape)


_MXFP4_BYTES = 17
NUMBERS_OUTPUTS, MATRIX_OUTPUTS = -1, -2

TRANSFORMS: Mapping[str, Transform] = {
    "transpose": Transform(Kind.MOVES_VALUES, _swapped, lambda values, outputs: values.swapaxes(-1, -2)),
    "even_rows": Transform(Kind.MOVES_ROWS, _twice, _every_second(0)),
    "odd_rows": Transform(Kind.MOVES_ROWS, _twice, _every_second(1)),
    "mxfp4_blocks": Transform(Kind.MOVES_ROWS, _same, _mxfp4_blocks, "MXFP4"),
    "plus_one": Transform(Kind.CHANGES_VALUES, _same, lambda values, outputs: 1 + values),
    "negative_exp": Transform(Kind.CHANGES_VALUES, _same, _negative_exp),
}


def stored_shape(shape: Shape, transforms: Iterable[str], *, numbers: bool) -> Shape:
    """Of what is stored, if the transforms make this shape of it."""
    for name in reversed(tuple(transforms)):
        shape = TRANSFORMS[name].stored_shape(shape, NUMBERS_OUTPUTS if numbers else MATRIX_OUTPUTS)
    return shape


def transformed(values: Array, transforms: Iterable[str], *, numbers: bool) -> Array:
    """The values as their role has them, in one piece."""
    for name in transforms:
        values = TRANSFORMS[name].apply(values, NUMBERS_OUTPUTS if numbers else MATRIX_OUTPUTS)
    return np.ascontiguousarray(values)
