"""GLM 4.5 and its kin: dense layers first, then experts that a sigmoid chooses, beside one that every token passes."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, experts, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Stored
from dairllm.model_files.feed_forward import ExpertFeedForward, Router
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope = rms(checkpoint), rotation(checkpoint)
    checkpoint.boolean("use_qk_norm", False)
    first, feed_forward = checkpoint.integer("first_k_dense_replace", 0), shared_experts(checkpoint, "sigmoid")

    def layer(index: int) -> LayerSpec:
        normed = norm if checkpoint.has_tensor("q_norm", index) else None
        attention = self_attention(checkpoint, index, rope=rope, q_norm=normed, k_norm=normed)
        return pre_norm_layer(norm, attention, dense(checkpoint, index) if index < first else feed_forward)

    return decoder(checkpoint, each_layer(checkpoint, layer))


def shared_experts(checkpoint: Checkpoint, kind: str, *, selection_bias: bool = True, group_best: int = 2) -> ExpertFeedForward:
    """Experts in groups, beside n_shared_experts in one."""
    size = checkpoint.integer("moe_intermediate_size")
    router = Router(
        kind=kind,
        normalised=checkpoint.boolean("norm_topk_prob", False),
        scale=checkpoint.number("routed_scaling_factor", 1.0) or 1.0,
        selection_bias=selection_bias,
        num_groups=checkpoint.integer("n_group", 1) or 1,
        num_groups_used=checkpoint.integer("topk_group", 1) or 1,
        group_best=group_best,
    )
    shared = checkpoint.integer("n_shared_experts", 0) * size
    return experts(checkpoint, count="n_routed_experts", router=router, intermediate_size=size, shared_intermediate_size=shared)


ARCHITECTURE = Architecture(
    name="glm4moe",
    model_types=("glm4_moe",),
    describe=describe,
    gguf={"ffn_norm": (Stored("blk.{layer}.post_attention_norm.weight"), Stored("blk.{layer}.ffn_norm.weight"))},
)
