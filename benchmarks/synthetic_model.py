"""Write a GGUF file of random weights in the shape of a known model, to measure speed and memory with: what it says is noise.

All matrices but routers have the chosen format, or those of a mixture; their blocks are random bytes with small scales, so that activations
stay finite. There is no tokenizer: the model is served for token ids.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import typer
from command import run

from dairllm.kernels_pyx import BLOCK_FORMATS, dequantize
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.checkpoints.tensor_names import gguf_tensor_name
from dairllm.model_files.dense_decoder import dense_decoder, dense_layer
from dairllm.model_files.feed_forward import Activation, ExpertFeedForward, Router
from dairllm.model_files.norm import Norm
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import LayerSpec, ModelSpec

SEED = 1
VOCABULARY = 49_152
CONTEXT_LENGTH = 8192
NORM_EPS = 1e-5
ROPE_THETA = 500_000.0


class Shape(NamedTuple):
    """experts, experts_used: 0 for none; intermediate_size is that of one of them."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    experts: int = 0
    experts_used: int = 0

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts else "llama"


SHAPES = {
    "1b": Shape(2048, 16, 8192, 32, 8, 64),
    "3b": Shape(3072, 28, 8192, 24, 8, 128),
    "8b": Shape(4096, 32, 14_336, 32, 8, 128),
    "30b-a3b-8-layers": Shape(2048, 8, 768, 32, 4, 128, 128, 8),
}


class Format(NamedTuple):
    """scale_at: of the half-precision scale in a block. minimum: by how much the one after it is larger, so that weights are zero on
    average."""

    scale_at: int
    minimum: float | None = None


FORMATS = {
    "Q4_0": Format(0),
    "Q8_0": Format(0),
    "Q4_K": Format(0, 7.5),
    "Q5_K": Format(0, 15.5),
    "Q6_K": Format(208),
    "IQ4_XS": Format(0),
}
MIXTURE = "Q4_K_M"
WEIGHT_SIZE = 0.02
EMBEDDING_SIZE_WITH_EXPERTS = 0.15
"""So that experts are chosen by tokens: much smaller, and what layers add to rows would be nearly the same for all of them."""


def random_blocks(numbers: np.random.Generator, block_format: str, count: int, scale: float) -> npt.NDArray[np.uint8]:
    """Any bits with scales of 0.7 to 1.3 times `scale`; without -8 in Q4_0, so that they are zero on average."""
    where = FORMATS[block_format]
    blocks = numbers.integers(0, 256, (count, BLOCK_FORMATS[block_format].block_bytes), np.uint8)
    scales = scale * numbers.uniform(0.7, 1.3, count)
    blocks[:, where.scale_at : where.scale_at + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
    if block_format == "Q4_0":
        quants = blocks[:, 2:]
        quants |= np.where(quants & 0x0F, 0, 0x08).astype(np.uint8) | np.where(quants & 0xF0, 0, 0x80).astype(np.uint8)
    if where.minimum is not None:
        blocks[:, where.scale_at + 2 : where.scale_at + 4] = (scales * where.minimum).astype("<f2").view(np.uint8).reshape(count, 2)
    return blocks


def random_matrix(
    numbers: np.random.Generator, outputs: int, inputs: int, block_format: str, size: float = WEIGHT_SIZE
) -> npt.NDArray[np.uint8]:
    block_size = BLOCK_FORMATS[block_format].block_size
    sample = random_blocks(np.random.default_rng(SEED), block_format, 64, 1.0)
    unit = float(dequantize(block_format, sample.tobytes(), 64 * block_size).std())
    return random_blocks(numbers, block_format, outputs * inputs // block_size, size / unit).reshape(outputs, -1)


def format_of(block_format: str, role: str, layer: int, num_layers: int) -> str:
    """The mixture as llama.cpp makes it for a llama with a tied head: some matrices, in half of the layers, have more bits."""
    if block_format != MIXTURE:
        return block_format
    eighth = num_layers // 8
    more = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
    return "Q6_K" if role == "token_embedding" or (role in {"v", "down"} and more) else "Q4_K"


def spec_of(shape: Shape) -> ModelSpec:
    """With what decides the tensors' shapes."""
    rope = Rope(theta=ROPE_THETA, dim=shape.head_dim, interleaved=not shape.experts)
    layer = dense_layer(
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=NORM_EPS,
        rope=rope,
    )
    if shape.experts:
        layer = _with_experts(layer, shape)
    outer = {"hidden_size": shape.hidden_size, "vocab_size": VOCABULARY, "context_length": CONTEXT_LENGTH}
    return dense_decoder((layer,) * shape.num_layers, architecture=shape.architecture, name="synthetic", **outer)


def _with_experts(layer: LayerSpec, shape: Shape) -> LayerSpec:
    """As Qwen 3 has them, with norms of heads."""
    experts = ExpertFeedForward(
        num_experts=shape.experts,
        num_experts_used=shape.experts_used,
        intermediate_size=shape.intermediate_size,
        activation=Activation(kind="silu"),
        router=Router(kind="softmax", normalised=True),
    )
    assert isinstance(layer.attention, SelfAttention)
    norm = Norm(kind="rms", eps=NORM_EPS)
    return replace(layer, attention=replace(layer.attention, q_norm=norm, k_norm=norm), feed_forward=experts)


def write(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "1b",
    block_format: Annotated[str, typer.Option("--format", help=f"{MIXTURE}, or one of {', '.join(FORMATS)}.")] = "Q4_0",
) -> None:
    """Write a model of random weights; its head is tied to its embedding."""
    if shape not in SHAPES or block_format not in {*FORMATS, MIXTURE}:
        raise typer.BadParameter(f"expected a shape of {', '.join(SHAPES)} and a format of {', '.join([*FORMATS, MIXTURE])}")
    facts = SHAPES[shape]
    numbers = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(out, facts.architecture, use_temp_file=True)
    _write_metadata(writer, f"synthetic-{shape}-{block_format}", facts)

    spec = spec_of(facts)
    for unit in range(spec.num_units):
        for role, dimensions in unit_shapes(spec, unit).items():
            if role == "output":
                continue
            name = gguf_tensor_name(role, unit - 1)
            if len(dimensions) == 1:
                writer.add_tensor(name, np.ones(dimensions, np.float32))
            elif role == "router":
                writer.add_tensor(name, 0.02 * numbers.standard_normal(dimensions, np.float32))
            else:
                stored = format_of(block_format, role, unit - 1, facts.num_layers)
                size = EMBEDDING_SIZE_WITH_EXPERTS if facts.experts and role == "token_embedding" else WEIGHT_SIZE
                rows = random_matrix(numbers, math.prod(dimensions[:-1]), dimensions[-1], stored, size)
                writer.add_tensor(name, rows.reshape(*dimensions[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[stored])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=True)
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    writer.add_name(name)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")  # llama.cpp asks for it
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_used)
        writer.add_expert_feed_forward_length(shape.intermediate_size)


if __name__ == "__main__":
    run(write)
