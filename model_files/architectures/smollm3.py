"""SmolLM 3: every fourth layer has no positions. As llama.cpp's converter writes it, rotary pairs are interleaved."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope, windows = rms(checkpoint), rotation(checkpoint, interleaved=True, default_theta=2e6), checkpoint.windows_of_last_layers()
    rotated = _rotated(checkpoint)

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope if rotated[index] else lambda head_dim: None, window=windows[index])
        return pre_norm_layer(norm, attention, dense(checkpoint, index))

    return decoder(checkpoint, each_layer(checkpoint, layer))


def _rotated(checkpoint: Checkpoint) -> list[bool]:
    """Which layers have positions: as listed, else all but each one that ends an interval."""
    count, listed = checkpoint.num_layers(), checkpoint.flags("no_rope_layers")
    if listed is None:
        interval = checkpoint.integer("no_rope_layer_interval", 4)
        if interval < 1:
            raise CorruptModelFile(f"{checkpoint.container.path} has no_rope_layer_interval {interval}; expected a positive number")
        return [(index + 1) % interval != 0 for index in range(count)]
    if len(listed) < count:
        raise CorruptModelFile(f"{checkpoint.container.path} has no_rope_layers of {len(listed)} layers; expected {count}")
    return listed


ARCHITECTURE = Architecture(name="smollm3", model_types=("smollm3",), describe=describe)
