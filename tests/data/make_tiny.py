"""Makes the tiny models of this folder, with the logits that transformers gives for them (float32, eager attention, CPU).

    python tests/data/make_tiny.py FOLDER [NAME …]

in an environment with torch and transformers (5.24), which the tests do not need. Weights are random: nobody's model, under this project's
licence. They are numbers of BF16, and are stored as such: what is computed in float32 is exact. Each FOLDER/NAME gets config.json,
model.safetensors and golden.npz: input_ids [rows], logits [rows, vocabulary], greedy [tokens after them].
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

PLAIN: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    **{"tie_word_embeddings": False, "dtype": "float32"},
}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
NUM_ROWS, NUM_GREEDY = 40, 8
YARN = {**ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 1.4, 2.5, 5.0], "rope_type": "longrope", "rope_theta": 10_000.0}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {
    **{"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 32, "qk_nope_head_dim": 16},
    **{"qk_rope_head_dim": 8, "v_head_dim": 32, "num_key_value_heads": 4, "topk_group": 1, "n_group": 2, **MIXTURE},
}
GLM = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "head_dim": 16, "n_group": 1, "topk_group": 1, **MIXTURE}
LINEAR = {
    **{"linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2},
    **{"linear_num_value_heads": 4, "head_dim": 16, "num_hidden_layers": 4},
}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96}
GEMMA4 = {
    **{"num_hidden_layers": 6, "num_kv_shared_layers": 2, "head_dim": 16, "global_head_dim": 32, "sliding_window": 8},
    **{"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2},
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-odd-heads": ("Llama", {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "tie_word_embeddings": True}),
    "llama-mlp-bias": ("Llama", {"mlp_bias": True}),
    "llama-linear": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral-window": ("Mistral", {"sliding_window": 7, "head_dim": 16}),
    "mistral-full": ("Mistral", {"sliding_window": None, "num_key_value_heads": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "mixtral-top3": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 9}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3-untied": ("Qwen3", {"head_dim": 16, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen3-moe": ("Qwen3Moe", {"num_experts": 8, "head_dim": 16, "norm_topk_prob": True, **MIXTURE}),
    "qwen3-moe-unnormalised": (
        "Qwen3Moe",
        {"num_experts": 6, "head_dim": 16, "norm_topk_prob": False, **MIXTURE, "num_experts_per_tok": 3},
    ),
    "smollm3-other-layers": ("SmolLM3", {"num_hidden_layers": 3, "no_rope_layers": [0, 1, 0]}),
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8, "num_hidden_layers": 3}),
    "gemma2-uncapped": ("Gemma2", {"head_dim": 16, "attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": 64}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8, "num_hidden_layers": 7}),
    "gemma3-scaled": (
        "Gemma3Text",
        {
            **{"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 3},
            **{"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": ROPE,
            },
        },
    ),
    "gemma4": ("Gemma4Text", {**GEMMA4, **PER_LAYER}),
    "gemma4-plain": ("Gemma4Text", {**GEMMA4, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    "gemma4-keys-as-values": (
        "Gemma4Text",
        {**GEMMA4, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "gemma4-wide": ("Gemma4Text", {**GEMMA4, **PER_LAYER, "use_double_wide_mlp": True, "final_logit_softcapping": 20.0}),
    "phi3-short": ("Phi3", {"rope_parameters": {**LONG, "original_max_position_embeddings": 64}, "original_max_position_embeddings": 64}),
    "phi3-long": ("Phi3", {"rope_parameters": {**LONG, "original_max_position_embeddings": 16}, "original_max_position_embeddings": 16}),
    "phi3-partial": ("Phi3", {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}, "sliding_window": 9, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8}),
    "gpt-oss-top3": (
        "GptOss",
        {
            **{
                "num_local_experts": 5,
                "num_experts_per_tok": 3,
                "head_dim": 16,
                "sliding_window": 8,
                "num_attention_heads": 6,
                "hidden_size": 48,
            },
            **{"layer_types": ["full_attention", "sliding_attention"], "rope_parameters": ROPE},
        },
    ),
    "glm4-moe": ("Glm4Moe", {**GLM, "attention_bias": True, "norm_topk_prob": True}),
    "glm4-moe-norms": (
        "Glm4Moe",
        {
            **GLM,
            **{
                "use_qk_norm": True,
                "attention_bias": False,
                "n_group": 4,
                "topk_group": 2,
                "n_shared_experts": 2,
                "routed_scaling_factor": 1.7,
            },
            "norm_topk_prob": False,
        },
    ),
    "deepseek-v3": ("DeepseekV3", {**DEEPSEEK, "q_lora_rank": 24}),
    "deepseek-v3-plain-queries": (
        "DeepseekV3",
        {**DEEPSEEK, "q_lora_rank": None, "n_group": 1, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.8}},
    ),
    "deepseek-v2": ("DeepseekV2", {**DEEPSEEK, "q_lora_rank": 24, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0}),
    "qwen3_5": ("Qwen3_5Text", {**LINEAR, "tie_word_embeddings": True}),
    "qwen3_5-other-heads": (
        "Qwen3_5Text",
        {**LINEAR, "linear_num_value_heads": 6, "linear_conv_kernel_dim": 3, "linear_value_head_dim": 8},
    ),
    "qwen3_5-moe": (
        "Qwen3_5MoeText",
        {**LINEAR, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    ),
}
_CLASSES = {
    "Gemma3Text": "Gemma3ForCausalLM",
    "Gemma4Text": "Gemma4ForCausalLM",
    "Qwen3_5Text": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeText": "Qwen3_5MoeForCausalLM",
}


def make(folder: Path, family: str, changes: dict[str, Any], seed: int) -> None:
    config = getattr(transformers, f"{family}Config")(**{**PLAIN, **changes}, attn_implementation="eager")
    torch.manual_seed(seed)
    model = getattr(transformers, _CLASSES.get(family, f"{family}ForCausalLM"))(config).float().eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            randomise(name, values)
        for name, values in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                values.copy_((0.1 * torch.rand_like(values)).bfloat16())
        ids = torch.randint(3, config.vocab_size, (1, NUM_ROWS))
        found = model(ids).logits[0].numpy()
        greedy = model.generate(ids, max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY, do_sample=False)[0, NUM_ROWS:].numpy()
    model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(folder / "golden.npz", input_ids=ids[0].numpy(), logits=found, greedy=greedy)


def randomise(name: str, values: torch.Tensor) -> None:
    """Vectors near one, or near nothing where they are biases or such as are stored less one; matrices that keep the size of rows."""
    if values.ndim == 1:
        is_factor = ("norm" in name and values.mean() > 0.5) or name.endswith(("layer_scalar",))
        values.copy_((0.2 * torch.randn_like(values) + (1.0 if is_factor else 0.0)).bfloat16())
    else:
        values.copy_((1.2 * torch.randn_like(values) / values.shape[-1] ** 0.5).bfloat16())


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(MODELS)
    for name in names:
        family, changes = MODELS[name]
        make(folder / name, family, changes, seed=list(MODELS).index(name))
        print(name, sum(file.stat().st_size for file in (folder / name).iterdir()), flush=True)


if __name__ == "__main__":
    main()
