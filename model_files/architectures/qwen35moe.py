"""Qwen 3.5 with experts, and one beside them that every token passes, weighed by a gate of its own."""

from dairllm.model_files.architectures.qwen35 import GGUF, TRANSFORMERS, describe_with
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import experts
from dairllm.model_files.checkpoints.tensor_names import stored
from dairllm.model_files.feed_forward import Router
from dairllm.model_files.spec import ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    feed_forward = experts(
        checkpoint,
        count="num_experts",
        router=Router(kind="softmax", normalised=True),
        intermediate_size=checkpoint.integer("moe_intermediate_size"),
        shared_intermediate_size=checkpoint.integer("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return describe_with(checkpoint, [feed_forward] * checkpoint.num_layers())


_SHARED = "model.layers.{layer}.mlp.shared_expert"

ARCHITECTURE = Architecture(
    name="qwen35moe",
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    describe=describe,
    gguf=GGUF,
    transformers={
        **TRANSFORMERS,
        **stored(
            shared_gate=f"{_SHARED}.gate_proj.weight",
            shared_up=f"{_SHARED}.up_proj.weight",
            shared_down=f"{_SHARED}.down_proj.weight",
            shared_router=f"{_SHARED}_gate.weight",
        ),
    },
)
