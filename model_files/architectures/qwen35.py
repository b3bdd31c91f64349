"""Qwen 3.5, its text: three layers of four have linear attention, the others a gate behind their heads.

Checkpoints of transformers have the norms' factors less one, but for the norm of linear attention; llama.cpp's converter adds it, and
orders value heads so that those with one key are not neighbours.
"""

from dairllm.model_files.attention import LinearAttention
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint, with_transforms
from dairllm.model_files.checkpoints.config import FULL, LINEAR
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Names, Stored
from dairllm.model_files.checkpoints.tensor_names import TRANSFORMERS_NAMES, stored
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.feed_forward import FeedForward
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    return describe_with(checkpoint, [dense(checkpoint, index) for index in range(checkpoint.num_layers())])


def describe_with(checkpoint: Checkpoint, feed_forwards: list[FeedForward]) -> ModelSpec:
    """Of a model whose layers have these feed-forward blocks."""
    norm, rope = rms(checkpoint), rotation(checkpoint)
    interval = checkpoint.integer("full_attention_interval", 4)
    if interval < 1:
        raise CorruptModelFile(f"{checkpoint.container.path} has full_attention_interval {interval}; expected a positive number")
    types = checkpoint.layer_types(lambda index: LINEAR if (index + 1) % interval else FULL, (FULL, LINEAR))
    checkpoint.require("attn_output_gate", True)

    def layer(index: int) -> LayerSpec:
        if types[index] == LINEAR:
            return pre_norm_layer(norm, _linear_attention(checkpoint), feed_forwards[index])
        attention = self_attention(checkpoint, index, rope=rope, q_norm=norm, k_norm=norm, output_gate=True)
        return pre_norm_layer(norm, attention, feed_forwards[index])

    return decoder(checkpoint, each_layer(checkpoint, layer))


def _linear_attention(checkpoint: Checkpoint) -> LinearAttention:
    return LinearAttention(
        num_key_heads=checkpoint.integer("linear_num_key_heads"),
        num_value_heads=checkpoint.integer("linear_num_value_heads"),
        key_dim=checkpoint.integer("linear_key_head_dim"),
        value_dim=checkpoint.integer("linear_value_head_dim"),
        conv_width=checkpoint.integer("linear_conv_kernel_dim"),
        output_norm=rms(checkpoint),
        tiled=checkpoint.is_gguf,
    )


_LINEAR = "model.layers.{layer}.linear_attn"

GGUF: Names = {
    "ffn_norm": (Stored("blk.{layer}.post_attention_norm.weight"), Stored("blk.{layer}.ffn_norm.weight")),
    "attention_output": (Stored("blk.{layer}.attn_output.weight"), Stored("blk.{layer}.ssm_out.weight")),
    "decay": (Stored("blk.{layer}.ssm_a"), Stored("blk.{layer}.ssm_a.weight")),
    **stored(
        qkv="blk.{layer}.attn_qkv.weight",
        output_gate="blk.{layer}.attn_gate.weight",
        alpha="blk.{layer}.ssm_alpha.weight",
        beta="blk.{layer}.ssm_beta.weight",
        conv="blk.{layer}.ssm_conv1d.weight",
        time_step_bias="blk.{layer}.ssm_dt.bias",
        linear_norm="blk.{layer}.ssm_norm.weight",
    ),
}
TRANSFORMERS: Names = {
    **with_transforms(TRANSFORMERS_NAMES, ("output_norm", "attention_norm", "ffn_norm", "q_norm", "k_norm"), "plus_one"),
    "attention_output": (Stored("model.layers.{layer}.self_attn.o_proj.weight"), Stored(f"{_LINEAR}.out_proj.weight")),
    "decay": (Stored(f"{_LINEAR}.A_log", ("negative_exp",)),),
    **stored(
        qkv=f"{_LINEAR}.in_proj_qkv.weight",
        output_gate=f"{_LINEAR}.in_proj_z.weight",
        alpha=f"{_LINEAR}.in_proj_a.weight",
        beta=f"{_LINEAR}.in_proj_b.weight",
        conv=f"{_LINEAR}.conv1d.weight",
        time_step_bias=f"{_LINEAR}.dt_bias",
        linear_norm=f"{_LINEAR}.norm.weight",
    ),
}
ARCHITECTURE = Architecture(name="qwen35", model_types=("qwen3_5_text", "qwen3_5"), describe=describe, gguf=GGUF, transformers=TRANSFORMERS)
