"""What architectures of plain decoders share in GGUF: keys of the metadata, names of the tensors, values that they must not have.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm; an architecture's own ones begin with its name. A role that is
not here yet is added with the first architecture that has it.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dairllm.model_files.attention import Rope
from dairllm.model_files.containers import Container
from dairllm.model_files.dense_decoder import Biases, dense_decoder, dense_layer
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.reader import FileSource
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import MAX_LAYERS, LayerSpec, ModelSpec

EMBEDDING, OUTPUT_NORM, OUTPUT, ROPE_FREQS = "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"

LAYER_TENSORS: Mapping[str, str] = {
    "attention_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "attention_output": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "attention_output_bias": "attn_output.bias",
    "ffn_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
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


class PlainDecoder(NamedTuple):
    """An architecture by its name, what its converter does with rotary pairs, and the biases that it always has; others may be stored."""

    name: str
    rope_interleaved: bool
    biases: Biases = Biases()

    def read_spec(self, gguf: Container) -> ModelSpec:
        """CorruptModelFile or UnsupportedModel, naming the key, if it cannot be made."""
        self._refuse_variants(gguf)
        hidden_size = gguf.integer(f"{self.name}.embedding_length")
        num_layers = gguf.integer(f"{self.name}.block_count")
        if not 1 <= num_layers <= MAX_LAYERS:
            raise CorruptModelFile(f"{gguf.path} has {self.name}.block_count {num_layers}; expected 1 to {MAX_LAYERS}")
        rope = self._rope(gguf, self._head_dim(gguf, hidden_size))
        vocab_size = self._vocab_size(gguf)
        return dense_decoder(
            tuple(self._layer(gguf, index, hidden_size, rope) for index in range(num_layers)),
            architecture=self.name,
            name=gguf.text("general.name", gguf.name) or gguf.name,
            hidden_size=hidden_size,
            vocab_size=vocab_size,
            context_length=gguf.integer(f"{self.name}.context_length"),
            padding_rows=_padding_rows(gguf, vocab_size),
        )

    def tensor_names(self, gguf: Container, spec: ModelSpec) -> list[dict[str, str]]:
        """Tensors of each unit by role. A model without `output.weight` is tied: its output is the embedding itself."""
        outer = {"token_embedding": EMBEDDING, "output_norm": OUTPUT_NORM, "output": OUTPUT if OUTPUT in gguf.tensors else EMBEDDING}
        units = [
            {role: outer[role] if spec.layer_of(index) is None else layer_tensor_name(index - 1, role) for role in unit_shapes(spec, index)}
            for index in range(spec.num_units)
        ]
        self._refuse_others(gguf, units)
        return units

    def _layer(self, gguf: Container, index: int, hidden_size: int, rope: Rope) -> LayerSpec:
        num_heads, head_dim = self._num_heads(gguf), self._head_dim(gguf, hidden_size)
        return dense_layer(
            intermediate_size=gguf.integer(f"{self.name}.feed_forward_length"),
            num_heads=num_heads,
            num_kv_heads=gguf.integer(f"{self.name}.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            rms_norm_eps=gguf.number(f"{self.name}.attention.layer_norm_rms_epsilon"),
            rope=rope,
            scale=gguf.number(f"{self.name}.attention.scale", 1 / math.sqrt(head_dim)),
            biases=self._biases(gguf, index),
        )

    def _biases(self, gguf: Container, index: int) -> Biases:
        roles = ("q_bias", "k_bias", "v_bias", "attention_output_bias")
        stored = Biases(*(layer_tensor_name(index, role) in gguf.tensors for role in roles))
        return Biases(*(is_stored or is_needed for is_stored, is_needed in zip(stored, self.biases, strict=True)))

    def _refuse_variants(self, gguf: Container) -> None:
        for suffix, neutral in NEUTRAL_VALUES.items():
            value = gguf.metadata.get(f"{self.name}.{suffix}", neutral)
            if isinstance(value, (list, np.ndarray)) or value != neutral:
                key = f"{self.name}.{suffix}"
                raise UnsupportedModel(f"{gguf.path} sets {key} to {value!r}, which is not supported; expected {neutral} or none")

    def _num_heads(self, gguf: Container) -> int:
        num_heads = gguf.integer(f"{self.name}.attention.head_count")
        if num_heads < 1:
            raise CorruptModelFile(f"{gguf.path} has {self.name}.attention.head_count {num_heads}; expected at least 1")
        return num_heads

    def _head_dim(self, gguf: Container, hidden_size: int) -> int:
        key_length = gguf.integer(f"{self.name}.attention.key_length", hidden_size // self._num_heads(gguf))
        value_length = gguf.integer(f"{self.name}.attention.value_length", key_length)
        if key_length < 1 or value_length != key_length:
            found = f"heads of {key_length} keys and {value_length} values"
            raise UnsupportedModel(f"{gguf.path} has {found}; expected equal positive numbers")
        return key_length

    def _vocab_size(self, gguf: Container) -> int:
        embedding = gguf.tensors.get(EMBEDDING)
        if embedding is None or len(embedding.shape) != 2:
            raise CorruptModelFile(f"{gguf.path} lacks the matrix {EMBEDDING}")
        rows = embedding.shape[0]
        stated = gguf.integer(f"{self.name}.vocab_size", rows)
        if stated != rows:
            raise CorruptModelFile(f"{gguf.path} has {self.name}.vocab_size {stated}, but {EMBEDDING} has {rows} rows")
        return rows

    def _rope(self, gguf: Container, head_dim: int) -> Rope:
        dim = gguf.integer(f"{self.name}.rope.dimension_count", head_dim)
        theta = gguf.number(f"{self.name}.rope.freq_base", 10_000.0)
        return Rope(theta=theta, dim=dim, interleaved=self.rope_interleaved, freq_factors=self._freq_factors(gguf, dim))

    def _freq_factors(self, gguf: Container, rope_dim: int) -> tuple[float, ...]:
        """Factors of linear scaling times those of `rope_freqs.weight` (Llama 3.1's scaling, precomputed by the converter)."""
        linear = self._linear_scaling_factor(gguf)
        stored = _stored_freq_factors(gguf)
        if stored is None:
            return () if linear == 1.0 else (linear,) * (max(rope_dim, 0) // 2)
        return tuple(linear * factor for factor in stored)

    def _linear_scaling_factor(self, gguf: Container) -> float:
        kind = gguf.text(f"{self.name}.rope.scaling.type", "linear")
        if kind not in {"none", "linear"}:
            raise UnsupportedModel(f"{gguf.path} has rope scaling of type {kind!r}, which is not supported; expected 'none' or 'linear'")
        factor = gguf.number(f"{self.name}.rope.scaling.factor", gguf.number(f"{self.name}.rope.scale_linear", 1.0))
        return 1.0 if kind == "none" or factor == 0.0 else factor

    def _refuse_others(self, gguf: Container, units: list[dict[str, str]]) -> None:
        expected = {name for unit in units for name in unit.values()}
        missing = sorted(expected - gguf.tensors.keys())
        if missing:
            raise CorruptModelFile(f"{gguf.path} lacks the tensor {missing[0]!r} ({len(missing)} of {len(expected)} are missing)")
        others = sorted(gguf.tensors.keys() - expected - {ROPE_FREQS})
        if others:
            model = f"a {self.name} model with {len(units) - 2} layers"
            raise UnsupportedModel(f"{gguf.path} has the tensor {others[0]!r}, which {model} does not use")


def layer_tensor_name(layer: int, role: str) -> str:
    return f"blk.{layer}.{LAYER_TENSORS[role]}"


def _padding_rows(gguf: Container, vocab_size: int) -> int:
    """Converters round the matrices up: rows behind the file's last token. Without a list of tokens every row is one."""
    num_tokens = len(gguf.texts("tokenizer.ggml.tokens", []))
    return max(0, vocab_size - num_tokens) if num_tokens else 0


def _stored_freq_factors(gguf: Container) -> list[float] | None:
    tensor = gguf.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.block_format.name != "F32" or len(tensor.shape) != 1:
        raise UnsupportedModel(f"{ROPE_FREQS} is {tensor.block_format.name} of shape {tensor.shape}; expected a vector of F32")
    if tensor.size_bytes > 4096:
        raise CorruptModelFile(f"{ROPE_FREQS} has {tensor.shape[0]} values; expected half of the rotated dimensions")
    with FileSource(gguf.files[tensor.file_index].path) as source:
        factors: list[float] = np.frombuffer(source.read(tensor.offset_bytes, tensor.size_bytes), "<f4").astype(float).tolist()
    return factors
