"""Llama 1 to 3, Mistral without a sliding window, SmolLM and their kin, as llama.cpp's converter writes them.

The rows of q and k are permuted by the converter, so that rotary pairs are interleaved. Key names:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm.
"""

import math

import numpy as np

from dairllm.model_files.architectures import Architecture
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.gguf_file import GgufFile
from dairllm.model_files.reader import FileSource
from dairllm.model_files.spec import ModelSpec

EMBEDDING, OUTPUT_NORM, OUTPUT, ROPE_FREQS = "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"

LAYER_TENSORS = {
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "attention_output": "attn_output.weight",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}
OPTIONAL_LAYER_TENSORS = {
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "attention_output_bias": "attn_output.bias",
}

# Keys that change the arithmetic. A value other than the neutral one is refused rather than ignored.
NEUTRAL_VALUES = {
    "expert_count": 0,
    "attention.sliding_window": 0,
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
}


def read_spec(gguf: GgufFile) -> ModelSpec:
    """The spec of a llama file; CorruptModelFile or UnsupportedModel, naming the key, if it cannot be made."""
    _refuse_variants(gguf)
    hidden_size = gguf.integer("llama.embedding_length")
    num_heads = gguf.integer("llama.attention.head_count")
    head_dim = _head_dim(gguf, hidden_size, num_heads)
    rope_dim = gguf.integer("llama.rope.dimension_count", head_dim)
    return ModelSpec(
        architecture="llama",
        name=gguf.text("general.name", gguf.path.stem) or gguf.path.stem,
        num_layers=gguf.integer("llama.block_count"),
        hidden_size=hidden_size,
        intermediate_size=gguf.integer("llama.feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=gguf.integer("llama.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        vocab_size=_vocab_size(gguf),
        context_length=gguf.integer("llama.context_length"),
        rms_norm_eps=gguf.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=gguf.number("llama.rope.freq_base", 10_000.0),
        rope_dim=rope_dim,
        rope_interleaved=True,
        rope_freq_factors=_rope_freq_factors(gguf, rope_dim),
        attention_scale=gguf.number("llama.attention.scale", 1 / math.sqrt(head_dim)),
    )


def _refuse_variants(gguf: GgufFile) -> None:
    for suffix, neutral in NEUTRAL_VALUES.items():
        value = gguf.metadata.get(f"llama.{suffix}", neutral)
        if isinstance(value, (list, np.ndarray)) or value != neutral:
            raise UnsupportedModel(f"{gguf.path} sets llama.{suffix} to {value!r}, which is not supported; expected {neutral} or none")


def _head_dim(gguf: GgufFile, hidden_size: int, num_heads: int) -> int:
    if num_heads < 1:
        raise CorruptModelFile(f"{gguf.path} has llama.attention.head_count {num_heads}; expected at least 1")
    key_length = gguf.integer("llama.attention.key_length", hidden_size // num_heads)
    value_length = gguf.integer("llama.attention.value_length", key_length)
    if key_length < 1 or value_length != key_length:
        raise UnsupportedModel(f"{gguf.path} has heads of {key_length} keys and {value_length} values; expected equal positive numbers")
    return key_length


def _vocab_size(gguf: GgufFile) -> int:
    embedding = gguf.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.dimensions) != 2:
        raise CorruptModelFile(f"{gguf.path} lacks the matrix {EMBEDDING}")
    rows = embedding.dimensions[1]
    stated = gguf.integer("llama.vocab_size", rows)
    if stated != rows:
        raise CorruptModelFile(f"{gguf.path} has llama.vocab_size {stated}, but {EMBEDDING} has {rows} rows")
    return rows


def _rope_freq_factors(gguf: GgufFile, rope_dim: int) -> tuple[float, ...] | None:
    """Factors of linear scaling times those of `rope_freqs.weight` (Llama 3.1's scaling, precomputed by the converter)."""
    linear = _linear_scaling_factor(gguf)
    stored = _stored_freq_factors(gguf)
    if stored is None:
        return None if linear == 1.0 else (linear,) * (max(rope_dim, 0) // 2)
    return tuple(linear * factor for factor in stored)


def _linear_scaling_factor(gguf: GgufFile) -> float:
    kind = gguf.text("llama.rope.scaling.type", "linear")
    if kind not in {"none", "linear"}:
        raise UnsupportedModel(f"{gguf.path} has rope scaling of type {kind!r}, which is not supported; expected 'none' or 'linear'")
    factor = gguf.number("llama.rope.scaling.factor", gguf.number("llama.rope.scale_linear", 1.0))
    return 1.0 if kind == "none" or factor == 0.0 else factor


def _stored_freq_factors(gguf: GgufFile) -> list[float] | None:
    tensor = gguf.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.block_format.name != "F32" or len(tensor.dimensions) != 1:
        raise UnsupportedModel(f"{ROPE_FREQS} is {tensor.block_format.name} of shape {tensor.dimensions}; expected a vector of F32")
    if tensor.size_bytes > 4096:
        raise CorruptModelFile(f"{ROPE_FREQS} has {tensor.dimensions[0]} values; expected half of the rotated dimensions")
    with FileSource(gguf.path) as source:
        factors: list[float] = np.frombuffer(source.read(tensor.offset, tensor.size_bytes), "<f4").astype(float).tolist()
    return factors


def tensor_names(gguf: GgufFile, spec: ModelSpec) -> list[dict[str, str]]:
    """Tensors of each unit by role. A model without `output.weight` is tied: its output is the embedding itself."""
    output = OUTPUT if OUTPUT in gguf.tensors else EMBEDDING
    layers = [_layer_tensor_names(gguf, index) for index in range(spec.num_layers)]
    units = [{"token_embedding": EMBEDDING}, *layers, {"output_norm": OUTPUT_NORM, "output": output}]
    _refuse_others(gguf, units)
    return units


def _layer_tensor_names(gguf: GgufFile, index: int) -> dict[str, str]:
    required = {role: f"blk.{index}.{name}" for role, name in LAYER_TENSORS.items()}
    optional = {role: f"blk.{index}.{name}" for role, name in OPTIONAL_LAYER_TENSORS.items()}
    return required | {role: name for role, name in optional.items() if name in gguf.tensors}


def _refuse_others(gguf: GgufFile, units: list[dict[str, str]]) -> None:
    expected = {name for unit in units for name in unit.values()}
    missing = sorted(expected - gguf.tensors.keys())
    if missing:
        raise CorruptModelFile(f"{gguf.path} lacks the tensor {missing[0]!r} ({len(missing)} of {len(expected)} are missing)")
    others = sorted(gguf.tensors.keys() - expected - {ROPE_FREQS})
    if others:
        raise UnsupportedModel(f"{gguf.path} has the tensor {others[0]!r}, which a llama model with {len(units) - 2} layers does not use")


ARCHITECTURE = Architecture("llama", read_spec, tensor_names)
