"""DeepSeek V2, V3 and R1: latent attention, dense layers first, then experts in groups beside one that every token passes.

Rotary pairs are interleaved everywhere. GGUF has the matrix that makes keys and values from the latent in two stacks, one matrix for each
head, the keys' transposed; older files and transformers' checkpoints have it as one.
"""

import math
from dataclasses import replace

from dairllm.model_files.architectures.glm4moe import shared_experts
from dairllm.model_files.attention import LatentAttention
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms
from dairllm.model_files.checkpoints.rotation import rope_of, score_magnitude
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.spec import LayerSpec, ModelSpec

_SCORINGS = {"softmax": "softmax", "sigmoid": "sigmoid"}
_BEST_OF_A_GROUP = {"greedy": 0, "group_limited_greedy": 1, "noaux_tc": 2}
_GATING_FUNCTIONS = {0: "softmax", 1: "softmax", 2: "sigmoid"}


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, attention = rms(checkpoint), _attention(checkpoint)
    first, feed_forward = checkpoint.integer("first_k_dense_replace", 0), _experts(checkpoint)
    checkpoint.require("moe_layer_freq", 1)

    def layer(index: int) -> LayerSpec:
        return pre_norm_layer(norm, attention, dense(checkpoint, index) if index < first else feed_forward)

    return decoder(checkpoint, each_layer(checkpoint, layer))


def _attention(checkpoint: Checkpoint) -> LatentAttention:
    key_dim, rotated = checkpoint.integer("qk_nope_head_dim"), checkpoint.integer("qk_rope_head_dim")
    return LatentAttention(
        num_heads=checkpoint.integer("num_attention_heads"),
        query_rank=checkpoint.integer("q_lora_rank", 0) or None,
        kv_rank=checkpoint.integer("kv_lora_rank"),
        key_dim=key_dim,
        value_dim=checkpoint.integer("v_head_dim"),
        scale=score_magnitude(checkpoint) / math.sqrt(max(1, key_dim + rotated)),
        rope=rope_of(checkpoint, rotated, interleaved=True, transformers_interleaved=True),
        latent_norm=rms(checkpoint),
        bias=checkpoint.boolean("attention_bias", False),
    )


def _experts(checkpoint: Checkpoint) -> ExpertFeedForward:
    """V2 chooses by softmax and by the best expert of a group, V3 by sigmoid with a bias and by the best two."""
    has_bias = checkpoint.has_tensor("router_selection_bias", checkpoint.integer("first_k_dense_replace", 0))
    if checkpoint.is_gguf:
        scoring = _GATING_FUNCTIONS.get(checkpoint.integer("expert_gating_func", 1))
        if scoring is None:
            raise checkpoint.unsupported("expert_gating_func", checkpoint.integer("expert_gating_func"), "1 or 2")
        return shared_experts(checkpoint, scoring, selection_bias=has_bias, group_best=2 if has_bias else 1)
    is_v2 = checkpoint.container.text("model_type", "") == "deepseek_v2"
    scoring = checkpoint.choice("scoring_func", _SCORINGS, "softmax" if is_v2 else "sigmoid")
    method = checkpoint.text("topk_method", "greedy" if is_v2 else "noaux_tc")
    if method not in _BEST_OF_A_GROUP:
        raise checkpoint.unsupported("topk_method", method, ", ".join(_BEST_OF_A_GROUP))
    found = shared_experts(checkpoint, scoring, selection_bias=has_bias, group_best=max(1, _BEST_OF_A_GROUP[method]))
    return found if _BEST_OF_A_GROUP[method] else replace(found, router=replace(found.router, num_groups=1, num_groups_used=1))


ARCHITECTURE = Architecture(name="deepseek2", model_types=("deepseek_v3", "deepseek_v2"), describe=describe)
