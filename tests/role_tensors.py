"""The tensors of a container by role, as a shard gets them: pieces put together, transforms applied, element types made floats."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import dequantize
from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.manifest import TensorInfo
from dairllm.model_files.reader import FileRange, ModelSource
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.transforms import transformed

FloatArray = npt.NDArray[np.float32]


def read_model(path: Path) -> tuple[ModelSpec, list[dict[str, FloatArray]]]:
    """Description of a file or folder, and of each unit the tensors by role."""
    container = open_container(path)
    architecture = architecture_of(container)
    spec = architecture.read_spec(container)
    return spec, read_units(container, architecture.unit_tensors(container, spec))


def read_units(container: Container, units: list[tuple[TensorInfo, ...]]) -> list[dict[str, FloatArray]]:
    with ModelSource(container.paths) as source:
        return [{tensor.role: values_of(source, tensor) for tensor in tensors} for tensors in units]


def values_of(source: ModelSource, tensor: TensorInfo) -> FloatArray:
    pieces = (source.read(FileRange(piece.file_index, piece.offset_bytes, piece.size_bytes)) for piece in tensor.pieces)
    shape = tensor.stored_shape
    stored = dequantize(tensor.block_format, b"".join(pieces), math.prod(shape)).reshape(shape)
    values: FloatArray = transformed(stored, tensor.transforms, numbers=tensor.is_numbers)
    assert values.shape == tensor.shape
    return values
