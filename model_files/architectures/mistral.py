"""Mistral: Llama, in some versions with a window. GGUF calls it llama."""

from dairllm.model_files.architectures import llama
from dairllm.model_files.checkpoints.architecture import Architecture

ARCHITECTURE = Architecture(name="mistral", model_types=("mistral",), describe=llama.describe)
