"""gpt-oss: experts in every layer with clamped activations, sinks, biases, and a window in every other layer.

In transformers' checkpoints the experts' matrices are inputs x outputs, gate and up by turns; llama.cpp's converter takes them apart. As
the model was published they are outputs x inputs in MXFP4, blocks and exponents in two tensors.
"""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.config import FULL, SLIDING
from dairllm.model_files.checkpoints.parts import decoder, each_layer, experts, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Stored
from dairllm.model_files.checkpoints.tensor_names import stored
from dairllm.model_files.feed_forward import Activation, Router
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope, window = rms(checkpoint), rotation(checkpoint, truncates=False), checkpoint.window()
    types = checkpoint.layer_types(lambda index: FULL if index % 2 else SLIDING)
    size = checkpoint.integer("moe_intermediate_size" if checkpoint.is_gguf else "intermediate_size")
    alpha, limit = checkpoint.number("swiglu_alpha", 1.702), checkpoint.number("swiglu_limit", 7.0)
    feed_forward = experts(
        checkpoint,
        count="num_local_experts",
        router=Router(kind="softmax_of_chosen", bias=True),
        intermediate_size=size,
        activation=Activation(kind="silu_clamped", alpha=alpha, limit=limit),
        bias=True,
    )

    def layer(index: int) -> LayerSpec:
        one_window = window if types[index] == SLIDING else None
        attention = self_attention(checkpoint, index, rope=rope, window=one_window, sinks=True)
        return pre_norm_layer(norm, attention, feed_forward)

    checkpoint.require("hidden_act", "silu")
    method = checkpoint.section("quantization_config").text("quant_method", "mxfp4")
    if method != "mxfp4":
        raise checkpoint.unsupported("quantization_config", method, "'mxfp4'")
    return decoder(checkpoint, each_layer(checkpoint, layer))


_EXPERTS = "model.layers.{layer}.mlp.experts"


def _mxfp4(name: str, *transforms: str) -> Stored:
    return Stored(f"{_EXPERTS}.{name}_blocks", ("mxfp4_blocks", *transforms), exponents=f"{_EXPERTS}.{name}_scales")


ARCHITECTURE = Architecture(
    name="gpt-oss",
    model_types=("gpt_oss",),
    describe=describe,
    gguf={
        "ffn_norm": (Stored("blk.{layer}.post_attention_norm.weight"), Stored("blk.{layer}.ffn_norm.weight")),
        "attention_sinks": (Stored("blk.{layer}.attn_sinks.weight"), Stored("blk.{layer}.attn_sinks")),
    },
    transformers={
        **stored(router="model.layers.{layer}.mlp.router.weight", router_bias="model.layers.{layer}.mlp.router.bias"),
        "expert_gate": (Stored(f"{_EXPERTS}.gate_up_proj", ("transpose", "even_rows")), _mxfp4("gate_up_proj", "even_rows")),
        "expert_up": (Stored(f"{_EXPERTS}.gate_up_proj", ("transpose", "odd_rows")), _mxfp4("gate_up_proj", "odd_rows")),
        "expert_down": (Stored(f"{_EXPERTS}.down_proj", ("transpose",)), _mxfp4("down_proj")),
        "expert_gate_bias": (Stored(f"{_EXPERTS}.gate_up_proj_bias", ("even_rows",)),),
        "expert_up_bias": (Stored(f"{_EXPERTS}.gate_up_proj_bias", ("odd_rows",)),),
        "expert_down_bias": (Stored(f"{_EXPERTS}.down_proj_bias"),),
    },
)
