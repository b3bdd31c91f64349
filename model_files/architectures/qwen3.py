"""Qwen 3, dense ones: queries and keys of each head are normed."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope, windows = rms(checkpoint), rotation(checkpoint), checkpoint.windows_of_last_layers()

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope, window=windows[index], q_norm=norm, k_norm=norm)
        return pre_norm_layer(norm, attention, dense(checkpoint, index))

    return decoder(checkpoint, each_layer(checkpoint, layer))


ARCHITECTURE = Architecture(name="qwen3", model_types=("qwen3",), describe=describe)
