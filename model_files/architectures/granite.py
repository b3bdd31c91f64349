"""Granite 3, dense ones: Llama with factors of the embedding, the blocks, the scores and the logits."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope = rms(checkpoint), rotation(checkpoint, interleaved=True)
    scale, residual_scale = checkpoint.number("attention_multiplier", 1.0), checkpoint.number("residual_multiplier", 1.0)
    divisor = checkpoint.number("logits_scaling", 1.0)
    if divisor <= 0:
        raise CorruptModelFile(
            f"{checkpoint.container.path} has {checkpoint.shown('logits_scaling')} {divisor:g}; expected a positive number"
        )

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope, scale=scale)
        return pre_norm_layer(norm, attention, dense(checkpoint, index), residual_scale=residual_scale)

    layers = each_layer(checkpoint, layer)
    return decoder(checkpoint, layers, embedding_scale=checkpoint.number("embedding_multiplier", 1.0), logit_scale=1 / divisor)


ARCHITECTURE = Architecture(name="granite", model_types=("granite",), describe=describe)
