"""GGUF's keys of what config.json says, behind the name of the architecture.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm and `gguf.constants.Keys` of the package gguf.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dairllm.model_files.containers import Metadata
from dairllm.model_files.errors import CorruptModelFile

GGUF_KEYS: Mapping[str, str] = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_nextn_predict_layers": "nextn_predict_layers",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "value_head_dim": "attention.value_length",
    "sliding_head_dim": "attention.key_length_swa",
    "sliding_window": "attention.sliding_window",
    "layer_types": "attention.sliding_window_pattern",
    "attention_multiplier": "attention.scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_kv_shared_layers": "attention.shared_kv_layers",
    "hidden_size_per_layer_input": "embedding_length_per_layer_input",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "q_lora_rank": "attention.q_lora_rank",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "v_head_dim": "attention.value_length_mla",
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), "expert_count"),
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "first_k_dense_replace": "leading_dense_block_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
    "routed_scaling_factor": "expert_weights_scale",
    "norm_topk_prob": "expert_weights_norm",
    "linear_conv_kernel_dim": "ssm.conv_kernel",
    "linear_num_key_heads": "ssm.group_count",
    "linear_num_value_heads": "ssm.time_step_rank",
    "linear_key_head_dim": "ssm.state_size",
}


class Derived(NamedTuple):
    """keys: that the value is made of."""

    keys: Sequence[str]
    value: Callable[[Metadata, str], "int | list[str] | None"]


def _num_layers(gguf: Metadata, prefix: str) -> int:
    """Blocks at the end that predict tokens further ahead are no layers."""
    return gguf.integer(f"{prefix}block_count") - gguf.integer(f"{prefix}nextn_predict_layers", 0)


def _layer_types(gguf: Metadata, prefix: str) -> list[str] | None:
    pattern, interval = (
        gguf.metadata.get(f"{prefix}attention.sliding_window_pattern"),
        gguf.metadata.get(f"{prefix}full_attention_interval"),
    )
    if isinstance(pattern, np.ndarray):
        return ["sliding_attention" if one else "full_attention" for one in pattern.tolist()]
    for every, other in ((pattern, "sliding_attention"), (interval, "linear_attention")):
        if every is not None:
            if type(every) is not int or every < 1:
                raise CorruptModelFile(f"{gguf.path} has {every!r} as interval of {prefix}full attention; expected a positive integer")
            return [other if (index + 1) % every else "full_attention" for index in range(max(0, min(_num_layers(gguf, prefix), 1 << 16)))]
    return None


def _latent_key_dim(gguf: Metadata, prefix: str) -> int:
    """Of a head, without the rotated numbers. Older files give the sizes of heads where newer ones give those of the latent."""
    whole = gguf.integer(f"{prefix}attention.key_length_mla", gguf.integer(f"{prefix}attention.key_length", 0))
    return whole - gguf.integer(f"{prefix}rope.dimension_count")


def _latent_value_dim(gguf: Metadata, prefix: str) -> int:
    return gguf.integer(f"{prefix}attention.value_length_mla", gguf.integer(f"{prefix}attention.value_length", 0))


def _linear_value_dim(gguf: Metadata, prefix: str) -> int:
    return gguf.integer(f"{prefix}ssm.inner_size") // max(1, gguf.integer(f"{prefix}ssm.time_step_rank"))


GGUF_DERIVED: Mapping[str, Derived] = {
    "num_hidden_layers": Derived(("block_count", "nextn_predict_layers"), _num_layers),
    "layer_types": Derived(("attention.sliding_window_pattern", "full_attention_interval"), _layer_types),
    "qk_nope_head_dim": Derived(("attention.key_length", "attention.key_length_mla"), _latent_key_dim),
    "v_head_dim": Derived(("attention.value_length", "attention.value_length_mla"), _latent_value_dim),
    "linear_value_head_dim": Derived(("ssm.inner_size",), _linear_value_dim),
}

GGUF_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("expert_count", "expert_shared_count", "attention.sliding_window", "attention.clamp_kqv"), ()),
    **dict.fromkeys(("attention.max_alibi_bias", "attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), ()),
    **dict.fromkeys(("attention.shared_kv_layers", "embedding_length_per_layer_input", "use_parallel_residual"), ()),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "attention.output_scale", "expert_group_scale"), (1,)),
    **dict.fromkeys(("attention.temperature_length", "attention.kv_lora_rank", "attention.indexer.top_k", "ssm.state_size"), ()),
    **dict.fromkeys(("altup.num_inputs", "activation_sparsity_scale", "interleave_moe_layer_step", "moe_latent_size"), ()),
    **{"attention.causal": (True,), "moe_every_n_layers": (1,), "rope.scaling.alpha": (1,)},
}
"""Keys that change the arithmetic, and values that ask for nothing, beside false, 0 and an empty list."""
