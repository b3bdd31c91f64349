"""Qwen 3 with experts in every layer."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, each_layer, experts, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.feed_forward import Router
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    checkpoint.require("decoder_sparse_step", 1)
    norm, rope, windows = rms(checkpoint), rotation(checkpoint), checkpoint.windows_of_last_layers()
    router = Router(kind="softmax", normalised=checkpoint.boolean("norm_topk_prob", checkpoint.is_gguf))
    count = "num_experts" if checkpoint.has("num_experts") else "num_local_experts"
    feed_forward = experts(checkpoint, count=count, router=router, intermediate_size=checkpoint.integer("moe_intermediate_size"))

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope, window=windows[index], q_norm=norm, k_norm=norm)
        return pre_norm_layer(norm, attention, feed_forward)

    return decoder(checkpoint, each_layer(checkpoint, layer))


ARCHITECTURE = Architecture(name="qwen3moe", model_types=("qwen3_moe",), describe=describe)
