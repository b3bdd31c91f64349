"""Makes GGUF files of plain decoders small enough to be written by every test that needs one.

`write_tiny_llama` has random weights, `write_safetensors_model` those of a Hugging Face folder (config.json, model.safetensors in F32).
Both give float weights that decode back to what is in the file, so that any float reference can be compared with.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt

from dairllm.model_files.attention import Rope
from dairllm.model_files.checkpoints.tensor_names import gguf_tensor_name
from dairllm.model_files.dense_decoder import dense_decoder, dense_layer
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import ModelSpec
from tests.block_data import random_blocks

FloatArray = npt.NDArray[np.float32]
OUTPUT = gguf_tensor_name("output")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "Ġ the", "i n", "a n", "an d")
TOKENIZER_VOCAB_SIZE = 288


class TinyLlama(NamedTuple):
    """Shape of a tiny model. `tied`: the output is the embedding. `rope_freq_factors`: head_dim/2 values for `rope_freqs.weight`.
    `architecture`: as GGUF and `model_type` call it. `padding_rows`: the vocabulary's last, without a token."""

    num_layers: int = 3
    hidden_size: int = 64
    intermediate_size: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    vocab_size: int = 256
    context_length: int = 256
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tied: bool = False
    rope_freq_factors: Sequence[float] | None = None
    architecture: str = "llama"
    padding_rows: int = 0

    @property
    def spec(self) -> ModelSpec:
        """With what decides the tensors' shapes."""
        rope = Rope(theta=self.rope_theta, dim=self.head_dim, interleaved=True)
        shape = {name: getattr(self, name) for name in ("intermediate_size", "num_heads", "num_kv_heads", "head_dim", "rms_norm_eps")}
        outer = {name: getattr(self, name) for name in ("architecture", "hidden_size", "vocab_size", "context_length")}
        return dense_decoder((dense_layer(**shape, rope=rope),) * self.num_layers, name="tiny", **outer)


def write_tiny_llama(
    path: Path, *, block_format: str | Sequence[str] = "F32", with_tokenizer: bool = False, seed: int = 0, **shape: Any
) -> Path:
    """Write a llama of random weights and return `path`. `shape` are fields of TinyLlama; norms are always F32, matrices of several formats
    take turns.

    `with_tokenizer` adds a byte-level vocabulary of at least 288 tokens and a ChatML template.
    """
    model = TinyLlama(**shape)
    if with_tokenizer:
        model = model._replace(vocab_size=max(model.vocab_size, TOKENIZER_VOCAB_SIZE))
    return write_llama(path, model, random_weights(model, seed), block_format=block_format, with_tokenizer=with_tokenizer)


def write_safetensors_model(path: Path, folder: Path, *, block_format: str = "F32", with_tokenizer: bool = False) -> Path:
    """Convert a folder of a plain decoder, with llama3 rope scaling or none, and return `path`."""
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    model = TinyLlama(
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        context_length=config["max_position_embeddings"],
        rope_theta=rope["rope_theta"],
        rms_norm_eps=config["rms_norm_eps"],
        tied=config["tie_word_embeddings"],
        rope_freq_factors=llama3_freq_factors(head_dim, rope) if rope["rope_type"] == "llama3" else None,
        architecture=config["model_type"],
    )
    weights = _gguf_names(read_safetensors(folder / "model.safetensors"), model)
    return write_llama(path, model, weights, block_format=block_format, with_tokenizer=with_tokenizer)


def llama3_freq_factors(head_dim: int, rope: Mapping[str, float]) -> list[float]:
    """The divisors of the inverse frequencies by which Llama 3.1 stretches long wavelengths (arXiv:2407.21783, section 3.2)."""
    low, high, original = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for index in range(head_dim // 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (2 * index / head_dim)
        smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
        factors.append(float(1 / ((1 - smooth) / rope["factor"] + smooth)))
    return factors


def random_weights(model: TinyLlama, seed: int) -> dict[str, FloatArray]:
    """Weights by GGUF tensor name, matrices as [outputs, inputs]."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for unit in range(model.spec.num_units):
        for role, shape in unit_shapes(model.spec, unit).items():
            shapes[gguf_tensor_name(role, unit - 1)] = shape
    return {name: _random_tensor(random, shape) for name, shape in shapes.items() if name != OUTPUT or not model.tied}


def _random_tensor(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    values = random.standard_normal(shape, dtype=np.float32)
    scaled = 1 + values / 10 if len(shape) == 1 else values / np.sqrt(shape[1])
    return scaled.astype(np.float32)


def write_llama(
    path: Path,
    model: TinyLlama,
    weights: Mapping[str, FloatArray],
    *,
    block_format: str | Sequence[str] = "F32",
    with_tokenizer: bool = False,
) -> Path:
    """Write the weights, matrices in `block_format`, and return `path`."""
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name(f"tiny-{model.architecture}")
    _add_shape(writer, model)
    if with_tokenizer:
        add_tokenizer(writer, model.vocab_size - model.padding_rows)
    formats = itertools.cycle([block_format] if isinstance(block_format, str) else block_format)
    for name, values in weights.items():
        quantization = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType[next(formats)]
        writer.add_tensor(name, _encode(values.astype(np.float32), quantization), raw_dtype=quantization)
    if model.rope_freq_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(model.rope_freq_factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _encode(values: FloatArray, quantization: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
    """In a format that the gguf package cannot make: any weights of the same size, the same for equal shapes."""
    try:
        return gguf.quants.quantize(values, quantization)
    except NotImplementedError:
        block_size = gguf.GGML_QUANT_SIZES[quantization][0]
        blocks = random_blocks(quantization.name, values.size // block_size, np.random.default_rng(values.size), 3 / values.shape[1] ** 0.5)
        return blocks.reshape(values.shape[0], -1)


def _add_shape(writer: Any, model: TinyLlama) -> None:
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_theta)
    writer.add_layer_norm_rms_eps(model.rms_norm_eps)
    writer.add_vocab_size(model.vocab_size)


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def add_tokenizer(writer: Any, vocab_size: int) -> None:
    """A byte-level vocabulary: three control tokens, every byte, a few merges, and unused tokens up to `vocab_size`."""
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*CONTROL_TOKENS, *byte_characters(), *merged]
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS) + [gguf.TokenType.NORMAL] * (len(tokens) - len(CONTROL_TOKENS))
    unused = range(len(tokens), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *(f"[UNUSED{index}]" for index in unused)])
    writer.add_token_types([*kinds, *([gguf.TokenType.UNUSED] * len(unused))])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def read_safetensors(path: Path) -> dict[str, FloatArray]:
    """Tensors of an F32 file (https://github.com/huggingface/safetensors#format)."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors: dict[str, FloatArray] = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            tensors[name] = np.frombuffer(data[start + first : start + last], "<f4").reshape(entry["shape"])
    return tensors


HUGGING_FACE_NAMES = {
    "attention_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "attention_output": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "ffn_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
"""By role, in `model.layers.N`."""
INTERLEAVED = {"llama"}
"""Architectures whose rotary pairs llama.cpp's converter puts side by side."""


def _gguf_names(tensors: Mapping[str, FloatArray], model: TinyLlama) -> dict[str, FloatArray]:
    outer = {"token_embedding": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}
    weights = {gguf_tensor_name(role): tensors[name] for role, name in outer.items()}
    if not model.tied:
        weights[OUTPUT] = tensors["lm_head.weight"]
    heads = {"q": model.num_heads, "k": model.num_kv_heads} if model.architecture in INTERLEAVED else {}
    for layer in range(model.num_layers):
        for role, source in HUGGING_FACE_NAMES.items():
            values = tensors.get(f"model.layers.{layer}.{source}")
            if values is not None:
                weights[gguf_tensor_name(role, layer)] = _interleave(values, heads[role]) if role in heads else values
    return weights


def _interleave(rows: FloatArray, num_heads: int) -> FloatArray:
    """Rotary halves (i, i + d/2) of each head to pairs (2i, 2i+1)."""
    halves = rows.reshape(num_heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
