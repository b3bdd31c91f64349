"""Write a GGUF file of random weights in the shape of a known llama, to measure speed and memory with: what it says is noise.

All matrices have the chosen format; their blocks are random bytes with small scales, so that activations stay finite. There is no
tokenizer: the model is served for token ids.
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import typer
from command import run

SEED = 1
VOCABULARY = 49_152
CONTEXT_LENGTH = 8192


class Shape(NamedTuple):
    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = {
    "1b": Shape(2048, 16, 8192, 32, 8, 64),
    "3b": Shape(3072, 28, 8192, 24, 8, 128),
    "8b": Shape(4096, 32, 14_336, 32, 8, 128),
}


class Format(NamedTuple):
    """block_bytes: of 32 values, a half-precision scale first. scale: gives weights of about 0.02."""

    block_bytes: int
    scale: float


FORMATS = {"Q4_0": Format(18, 0.02 / 4.6), "Q8_0": Format(34, 0.02 / 74)}


def random_matrix(numbers: np.random.Generator, outputs: int, inputs: int, block: Format) -> npt.NDArray[np.uint8]:
    blocks = numbers.integers(0, 256, (outputs, inputs // 32, block.block_bytes), np.uint8)
    scales = (block.scale * numbers.uniform(0.7, 1.3, blocks.shape[:2])).astype("<f2")
    blocks[:, :, :2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(outputs, -1)


def matrices_of(shape: Shape) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the matrices of one layer."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }


def write(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "1b",
    block_format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "Q4_0",
) -> None:
    """Write a model of random weights; its head is tied to its embedding."""
    if shape not in SHAPES or block_format not in FORMATS:
        raise typer.BadParameter(f"expected a shape of {', '.join(SHAPES)} and a format of {', '.join(FORMATS)}")
    facts, block = SHAPES[shape], FORMATS[block_format]
    raw_type = gguf.GGMLQuantizationType[block_format]
    numbers = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(out, "llama", use_temp_file=True)
    _write_metadata(writer, f"synthetic-{shape}-{block_format}", facts)

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(facts.hidden_size, np.float32))

    writer.add_tensor("token_embd.weight", random_matrix(numbers, VOCABULARY, facts.hidden_size, block), raw_dtype=raw_type)
    for layer in range(facts.num_layers):
        add_norm(f"blk.{layer}.attn_norm.weight")
        add_norm(f"blk.{layer}.ffn_norm.weight")
        for name, (outputs, inputs) in matrices_of(facts).items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", random_matrix(numbers, outputs, inputs, block), raw_dtype=raw_type)
    add_norm("output_norm.weight")
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
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(VOCABULARY)


if __name__ == "__main__":
    run(write)
