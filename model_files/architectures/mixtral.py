"""Mixtral: Mistral with experts. GGUF calls it llama."""

from dairllm.model_files.architectures import llama
from dairllm.model_files.checkpoints.architecture import Architecture
from dairllm.model_files.checkpoints.stored import Stored

_EXPERTS = "model.layers.{layer}.block_sparse_moe"

ARCHITECTURE = Architecture(
    name="mixtral",
    model_types=("mixtral",),
    describe=llama.describe,
    transformers={
        "router": (Stored(f"{_EXPERTS}.gate.weight"),),
        "expert_gate": (Stored(f"{_EXPERTS}.experts.{{expert}}.w1.weight"),),
        "expert_up": (Stored(f"{_EXPERTS}.experts.{{expert}}.w3.weight"),),
        "expert_down": (Stored(f"{_EXPERTS}.experts.{{expert}}.w2.weight"),),
    },
)
