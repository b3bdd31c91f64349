"""Which element type each tensor gets where the matrices of a whole model are quantised to one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import QUANTIZED_FORMATS, quantize_rows
from dairllm.model_files.block_formats import BLOCK_FORMATS, VALUE_FORMATS
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.manifest import Manifest, TensorInfo, compute_model_digest

_WIDE_ROLES = frozenset({"token_embedding", "output", "per_layer_embedding"})
"""Of which more depends than of others: they are not made smaller than Q8_0, as files that are called Q4 do it."""
_KEPT_ROLES = frozenset({"router", "shared_router", "alpha", "beta"})
"""Small matrices that decide for a whole row."""


def quantized_format(asked: str, role: str, shape: Sequence[int], stored: str, *, numbers: bool) -> str:
    """What a tensor that is stored in one format becomes where `asked` is the format of the matrices.

    Numbers, small matrices, and what is quantised already stay as they are. Rows that are no whole blocks become Q8_0, or stay.
    """
    if numbers or role in _KEPT_ROLES or stored not in VALUE_FORMATS:
        return stored
    candidates = ("Q8_0",) if role in _WIDE_ROLES else (asked, "Q8_0")
    return next((one for one in candidates if shape[-1] % BLOCK_FORMATS[one].block_size == 0), stored)


def quantize_stored_rows(block_format: str, rows: npt.NDArray[np.float32]) -> bytes:
    """Rows of whole blocks in one of QUANTIZED_FORMATS; CorruptModelFile for numbers that the format cannot stand for."""
    try:
        return quantize_rows(block_format, rows)
    except ValueError as error:
        raise CorruptModelFile(f"weights cannot be quantised: {error}") from error


def quantized_manifest(manifest: Manifest, asked: str) -> Manifest:
    """The same model with its matrices quantised while they are loaded. Digests of units are those of what is stored; the model's says what
    is computed. UnsupportedModel for another format than QUANTIZED_FORMATS, and for a model that is quantised already."""
    if asked not in QUANTIZED_FORMATS:
        raise UnsupportedModel(f"matrices cannot be quantised to {asked[:40]!r}; expected one of {', '.join(QUANTIZED_FORMATS)}")
    units = tuple(replace(unit, tensors=tuple(_quantized(tensor, asked) for tensor in unit.tensors)) for unit in manifest.units)
    if units == manifest.units:
        raise UnsupportedModel(f"{manifest.spec.name} has no matrices that can be quantised; expected some in {', '.join(VALUE_FORMATS)}")
    return replace(manifest, units=units, model_digest=compute_model_digest(manifest.spec, units))


def _quantized(tensor: TensorInfo, asked: str) -> TensorInfo:
    block_format = quantized_format(asked, tensor.role, tensor.shape, tensor.block_format, numbers=tensor.is_numbers)
    return tensor if block_format == tensor.block_format else replace(tensor, quantized_to=block_format)
