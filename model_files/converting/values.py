"""The values of a role's tensor, read from wherever they are stored."""

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import dequantize
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.quantizing import quantize_stored_rows
from dairllm.model_files.reader import FileRange, ModelSource
from dairllm.model_files.transforms import transformed

FloatArray = npt.NDArray[np.float32]


def stored_bytes(source: ModelSource, tensor: TensorInfo) -> bytes:
    """As they lie in the files. CorruptModelFile if they cannot be read."""
    pieces = tensor.pieces
    return b"".join(source.read(FileRange(piece.file_index, piece.offset_bytes, piece.size_bytes)) for piece in pieces)


def values_of(source: ModelSource, tensor: TensorInfo) -> FloatArray:
    """Of the role's shape, in float32."""
    data, shape = stored_bytes(source, tensor), tensor.stored_shape
    values = dequantize(tensor.block_format, data, int(np.prod(shape))).reshape(shape)
    return transformed(values, tensor.transforms, numbers=tensor.is_numbers).astype(np.float32, copy=False)


def rows_of(source: ModelSource, tensor: TensorInfo) -> npt.NDArray[np.uint8]:
    """[rows, bytes of a row], of a tensor without transforms."""
    return np.frombuffer(stored_bytes(source, tensor), np.uint8).reshape(-1, tensor.row_bytes)


def encoded(values: FloatArray, block_format: str) -> bytes:
    """Rows of whole blocks in one of the formats that values can be written in."""
    if block_format == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2").tobytes()
    if block_format in ("F32", "F16"):
        return values.astype({"F32": "<f4", "F16": "<f2"}[block_format]).tobytes()
    return quantize_stored_rows(block_format, values.reshape(-1, values.shape[-1]))
