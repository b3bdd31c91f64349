"""Arithmetic of the model: quantised matrices, attention, stages; the same bits on every machine (docs/architecture.md, Kernels)."""

from dairllm.kernels_pyx._kernels import (
    BLOCK_FORMATS,
    WIRE_ENCODINGS,
    BlockFormat,
    PackedMatrix,
    decode_rows,
    dequantize,
    encode_rows,
    encoded_row_bytes,
    optimization_info,
    quantize_q4_0,
    quantize_q8_0,
)

__all__ = [
    "BLOCK_FORMATS",
    "WIRE_ENCODINGS",
    "BlockFormat",
    "PackedMatrix",
    "decode_rows",
    "dequantize",
    "encode_rows",
    "encoded_row_bytes",
    "optimization_info",
    "quantize_q4_0",
    "quantize_q8_0",
]
