"""Llama 1 to 3, SmolLM and their kin. In GGUF also Mistral and Mixtral, which are told by their window and their experts.

llama.cpp's converter permutes the rows of q and k, so that rotary pairs are interleaved. Old files have each expert in a tensor of its own.
"""

from typing import Any

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, experts, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Stored
from dairllm.model_files.feed_forward import FeedForward, Router
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope = rms(checkpoint), rotation(checkpoint, interleaved=True)
    window = checkpoint.window()
    scale: dict[str, Any] = {"scale": checkpoint.number("attention_multiplier")} if checkpoint.has("attention_multiplier") else {}

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope, window=window, **scale)
        return pre_norm_layer(norm, attention, _feed_forward(checkpoint, index))

    return decoder(checkpoint, each_layer(checkpoint, layer))


def _feed_forward(checkpoint: Checkpoint, index: int) -> FeedForward:
    if not checkpoint.integer("num_local_experts", 0):
        return dense(checkpoint, index)
    size = checkpoint.integer("intermediate_size")
    return experts(checkpoint, count="num_local_experts", router=Router(kind="softmax_of_chosen"), intermediate_size=size)


ARCHITECTURE = Architecture(
    name="llama",
    model_types=("llama",),
    describe=describe,
    gguf={
        f"expert_{role}": (Stored(f"blk.{{layer}}.ffn_{role}_exps.weight"), Stored(f"blk.{{layer}}.ffn_{role}.{{expert}}.weight"))
        for role in ("gate", "up", "down")
    },
)
