"""Write a folder as the hub has them, config.json and model.safetensors, of random BF16 numbers in the shape of a known llama: to measure
speed and memory with. There is no tokenizer: the model is served for token ids.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from command import run
from synthetic_model import CONTEXT_LENGTH, NORM_EPS, ROPE_THETA, SEED, SHAPES, VOCABULARY, WEIGHT_SIZE, Shape, spec_of

from dairllm.model_files.checkpoints.tensor_names import TRANSFORMERS_NAMES
from dairllm.model_files.roles import unit_shapes

NUMBER_BYTES = 2
DENSE_SHAPES = [name for name, shape in SHAPES.items() if not shape.experts]


def config_of(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_LENGTH,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def tensors_of(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, in the order in which they are written."""
    spec = spec_of(shape)
    for unit in range(spec.num_units):
        for role, dimensions in unit_shapes(spec, unit).items():
            if role != "output":
                yield TRANSFORMERS_NAMES[role][0].name_in(unit - 1), dimensions


def random_numbers(numbers: np.random.Generator, dimensions: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """The upper halves of floats; norms are ones."""
    one_dimension = len(dimensions) == 1
    values = np.ones(dimensions, np.float32) if one_dimension else WEIGHT_SIZE * numbers.standard_normal(dimensions, np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def write(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(DENSE_SHAPES)}.")] = "1b",
) -> None:
    """Write a model of random weights; its head is tied to its embedding."""
    if shape not in DENSE_SHAPES:
        raise typer.BadParameter(f"expected a shape of {', '.join(DENSE_SHAPES)}")
    header, end, numbers = dict[str, Any](), 0, np.random.default_rng(SEED)
    for name, dimensions in tensors_of(SHAPES[shape]):
        begin, end = end, end + NUMBER_BYTES * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [begin, end]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config_of(SHAPES[shape])))
    text = json.dumps(header).encode()
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dimensions in tensors_of(SHAPES[shape]):
            file.write(random_numbers(numbers, dimensions).tobytes())


if __name__ == "__main__":
    run(write)
