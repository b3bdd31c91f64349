"""Qwen 2 and 2.5, dense ones: rotary pairs are (i, i + dim/2), and q, k and v always have biases. Some have a window in their last
layers.
"""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope, windows = rms(checkpoint), rotation(checkpoint), checkpoint.windows_of_last_layers()

    def layer(index: int) -> LayerSpec:
        biases = ("q_bias", "k_bias", "v_bias")
        attention = self_attention(checkpoint, index, rope=rope, window=windows[index], biases=biases)
        return pre_norm_layer(norm, attention, dense(checkpoint, index))

    return decoder(checkpoint, each_layer(checkpoint, layer))


ARCHITECTURE = Architecture(name="qwen2", model_types=("qwen2",), describe=describe)
