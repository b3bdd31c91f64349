"""Arithmetic of the model: quantised matrices, attention, stages; the same bits on every machine (docs/kernels.md)."""

from dairllm.kernels_pyx._kernels import (
    BLOCK_FORMATS,
    KV_ELEMENT_TYPES,
    WIRE_ENCODINGS,
    BlockFormat,
    KvCache,
    PackedMatrix,
    Stage,
    StageSlice,
    StageSpec,
    decode_rows,
    dequantize,
    encode_rows,
    encoded_row_bytes,
    exp_f32,
    get_num_threads,
    log_softmax_rows,
    memory_read_bandwidth,
    optimization_info,
    quantize_q4_0,
    quantize_q8_0,
    round_rows,
    set_num_threads,
)

ARITHMETIC_VERSION = 2
"""Of the rules by which the kernels compute: another number where equal arguments may give other bits than before."""

STAGE_FEATURES = ("attention:full", "attention:bias", "rope", "norm:rms", "feed_forward:dense", "activation:silu")
"""What a Stage computes, in the words of model descriptions: a model that needs anything else can't be run."""

__all__ = [
    "ARITHMETIC_VERSION",
    "BLOCK_FORMATS",
    "KV_ELEMENT_TYPES",
    "STAGE_FEATURES",
    "WIRE_ENCODINGS",
    "BlockFormat",
    "KvCache",
    "PackedMatrix",
    "Stage",
    "StageSlice",
    "StageSpec",
    "decode_rows",
    "dequantize",
    "encode_rows",
    "encoded_row_bytes",
    "exp_f32",
    "get_num_threads",
    "log_softmax_rows",
    "memory_read_bandwidth",
    "optimization_info",
    "quantize_q4_0",
    "quantize_q8_0",
    "round_rows",
    "set_num_threads",
]
