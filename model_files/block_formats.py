"""How tensor elements are stored: the GGUF block formats that the kernels compute with, and the names of the others.

Numbers and sizes are those of `enum ggml_type` in the GGUF specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from collections.abc import Mapping
from typing import NamedTuple

from dairllm.model_files.errors import UnsupportedModel


class BlockFormat(NamedTuple):
    """`block_size` consecutive elements of a row take `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    name: BlockFormat(name, block_size, block_bytes)
    for name, block_size, block_bytes in (
        ("F32", 1, 4),
        ("F16", 1, 2),
        ("BF16", 1, 2),
        ("Q4_0", 32, 18),
        ("Q4_1", 32, 20),
        ("Q5_0", 32, 22),
        ("Q5_1", 32, 24),
        ("Q8_0", 32, 34),
        ("Q2_K", 256, 84),
        ("Q3_K", 256, 110),
        ("Q4_K", 256, 144),
        ("Q5_K", 256, 176),
        ("Q6_K", 256, 210),
        ("IQ4_NL", 32, 18),
        ("IQ4_XS", 256, 136),
        ("MXFP4", 32, 17),
        ("TQ2_0", 256, 66),
    )
}

VALUE_FORMATS = ("F32", "F16", "BF16")
"""Those of single values."""
VECTOR_FORMATS = VALUE_FORMATS

_GGML_TYPE_NAMES = (
    *("F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S"),
    *("IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M"),
    *("BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4"),
)


def block_format_of_ggml_type(number: int, tensor_name: str) -> BlockFormat:
    """Block format of a ggml type number; UnsupportedModel, by the type's name, if there are no kernels for it."""
    name = _GGML_TYPE_NAMES[number] if number < len(_GGML_TYPE_NAMES) else f"type {number}"
    block_format = BLOCK_FORMATS.get(name)
    if block_format is None:
        supported = ", ".join(BLOCK_FORMATS)
        raise UnsupportedModel(f"tensor {tensor_name!r} is stored as {name}, which is not supported; expected one of {supported}")
    return block_format
