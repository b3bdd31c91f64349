"""What most architectures call their tensors: in GGUF, and in the checkpoints of transformers.

GGUF's names are those of `gguf.constants.TENSOR_NAMES` (https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py).
"""

from collections.abc import Callable, Mapping, Sequence

from dairllm.model_files.attention import LatentAttention
from dairllm.model_files.checkpoints.stored import Rows, Stored
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.spec import LayerSpec


def stored(**names: str) -> dict[str, Sequence[Stored]]:
    """One place for each role."""
    return {role: (Stored(name),) for role, name in names.items()}


def _latent_rows(first: bool) -> Callable[[LayerSpec], Rows]:
    """Of the matrix that makes, head by head, keys and values from the latent."""

    def rows(layer: LayerSpec) -> Rows:
        assert isinstance(layer.attention, LatentAttention)
        keys, both = layer.attention.key_dim, layer.attention.key_dim + layer.attention.value_dim
        return Rows(both, 0, keys) if first else Rows(both, keys, both)

    return rows


def _expert_half(first: bool) -> Callable[[LayerSpec], Rows]:
    """Of a stack whose matrices have the gate above the up projection."""

    def rows(layer: LayerSpec) -> Rows:
        assert isinstance(layer.feed_forward, ExpertFeedForward)
        size = layer.feed_forward.intermediate_size
        return Rows(2 * size, 0, size) if first else Rows(2 * size, size, 2 * size)

    return rows


def _gguf(name: str) -> str:
    return f"blk.{{layer}}.{name}"


GGUF_NAMES: Mapping[str, Sequence[Stored]] = {
    **stored(token_embedding="token_embd.weight", output_norm="output_norm.weight"),
    "output": (Stored("output.weight"), Stored("token_embd.weight")),
    **stored(
        **{
            role: _gguf(name)
            for role, name in {
                "attention_norm": "attn_norm.weight",
                "q": "attn_q.weight",
                "k": "attn_k.weight",
                "v": "attn_v.weight",
                "attention_output": "attn_output.weight",
                "q_bias": "attn_q.bias",
                "k_bias": "attn_k.bias",
                "v_bias": "attn_v.bias",
                "attention_output_bias": "attn_output.bias",
                "q_norm": "attn_q_norm.weight",
                "k_norm": "attn_k_norm.weight",
                "attention_sinks": "attn_sinks.weight",
                "attention_post_norm": "post_attention_norm.weight",
                "ffn_norm": "ffn_norm.weight",
                "gate": "ffn_gate.weight",
                "up": "ffn_up.weight",
                "down": "ffn_down.weight",
                "gate_bias": "ffn_gate.bias",
                "up_bias": "ffn_up.bias",
                "down_bias": "ffn_down.bias",
                "ffn_post_norm": "post_ffw_norm.weight",
                "q_a": "attn_q_a.weight",
                "q_a_norm": "attn_q_a_norm.weight",
                "q_b": "attn_q_b.weight",
                "kv_a": "attn_kv_a_mqa.weight",
                "kv_a_norm": "attn_kv_a_norm.weight",
                "router": "ffn_gate_inp.weight",
                "router_bias": "ffn_gate_inp.bias",
                "router_selection_bias": "exp_probs_b.bias",
                "expert_down": "ffn_down_exps.weight",
                "expert_gate_bias": "ffn_gate_exps.bias",
                "expert_up_bias": "ffn_up_exps.bias",
                "expert_down_bias": "ffn_down_exps.bias",
                "shared_gate": "ffn_gate_shexp.weight",
                "shared_up": "ffn_up_shexp.weight",
                "shared_down": "ffn_down_shexp.weight",
                "shared_router": "ffn_gate_inp_shexp.weight",
            }.items()
        }
    ),
    "k_b": (Stored(_gguf("attn_k_b.weight")), Stored(_gguf("attn_kv_b.weight"), ("transpose",), _latent_rows(first=True))),
    "v_b": (Stored(_gguf("attn_v_b.weight")), Stored(_gguf("attn_kv_b.weight"), (), _latent_rows(first=False))),
    "expert_gate": (Stored(_gguf("ffn_gate_exps.weight")), Stored(_gguf("ffn_gate_up_exps.weight"), (), _expert_half(first=True))),
    "expert_up": (Stored(_gguf("ffn_up_exps.weight")), Stored(_gguf("ffn_gate_up_exps.weight"), (), _expert_half(first=False))),
}


def gguf_tensor_name(role: str, layer: int = 0) -> str:
    """Of most architectures."""
    return GGUF_NAMES[role][0].name_in(layer)


GGUF_UNUSED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Read with the description, or of no use."""


def _layer(name: str) -> str:
    return f"model.layers.{{layer}}.{name}"


TRANSFORMERS_NAMES: Mapping[str, Sequence[Stored]] = {
    **stored(token_embedding="model.embed_tokens.weight", output_norm="model.norm.weight"),
    "output": (Stored("lm_head.weight"), Stored("model.embed_tokens.weight")),
    **stored(
        **{
            role: _layer(name)
            for role, name in {
                "attention_norm": "input_layernorm.weight",
                "q": "self_attn.q_proj.weight",
                "k": "self_attn.k_proj.weight",
                "v": "self_attn.v_proj.weight",
                "attention_output": "self_attn.o_proj.weight",
                "q_bias": "self_attn.q_proj.bias",
                "k_bias": "self_attn.k_proj.bias",
                "v_bias": "self_attn.v_proj.bias",
                "attention_output_bias": "self_attn.o_proj.bias",
                "q_norm": "self_attn.q_norm.weight",
                "k_norm": "self_attn.k_norm.weight",
                "attention_sinks": "self_attn.sinks",
                "ffn_norm": "post_attention_layernorm.weight",
                "gate": "mlp.gate_proj.weight",
                "up": "mlp.up_proj.weight",
                "down": "mlp.down_proj.weight",
                "gate_bias": "mlp.gate_proj.bias",
                "up_bias": "mlp.up_proj.bias",
                "down_bias": "mlp.down_proj.bias",
                "q_a": "self_attn.q_a_proj.weight",
                "q_a_bias": "self_attn.q_a_proj.bias",
                "q_a_norm": "self_attn.q_a_layernorm.weight",
                "q_b": "self_attn.q_b_proj.weight",
                "kv_a": "self_attn.kv_a_proj_with_mqa.weight",
                "kv_a_bias": "self_attn.kv_a_proj_with_mqa.bias",
                "kv_a_norm": "self_attn.kv_a_layernorm.weight",
                "router": "mlp.gate.weight",
                "router_selection_bias": "mlp.gate.e_score_correction_bias",
                "shared_gate": "mlp.shared_experts.gate_proj.weight",
                "shared_up": "mlp.shared_experts.up_proj.weight",
                "shared_down": "mlp.shared_experts.down_proj.weight",
            }.items()
        }
    ),
    "k_b": (Stored(_layer("self_attn.kv_b_proj.weight"), ("transpose",), _latent_rows(first=True)),),
    "v_b": (Stored(_layer("self_attn.kv_b_proj.weight"), (), _latent_rows(first=False)),),
    "expert_gate": (
        Stored(_layer("mlp.experts.{expert}.gate_proj.weight")),
        Stored(_layer("mlp.experts.gate_up_proj"), (), _expert_half(first=True)),
    ),
    "expert_up": (
        Stored(_layer("mlp.experts.{expert}.up_proj.weight")),
        Stored(_layer("mlp.experts.gate_up_proj"), (), _expert_half(first=False)),
    ),
    "expert_down": (Stored(_layer("mlp.experts.{expert}.down_proj.weight")), Stored(_layer("mlp.experts.down_proj"))),
}
TRANSFORMERS_UNUSED = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq",)
