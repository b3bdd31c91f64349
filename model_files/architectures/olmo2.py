"""OLMo 2: norms come after the blocks only, and queries and keys are normed over all heads together."""

from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.tensor_names import stored
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope = rms(checkpoint), rotation(checkpoint)

    def layer(index: int) -> LayerSpec:
        attention = self_attention(checkpoint, index, rope=rope, q_norm=norm, k_norm=norm, norm_spans_heads=True)
        return LayerSpec(attention=attention, attention_post_norm=norm, feed_forward=dense(checkpoint, index), feed_forward_post_norm=norm)

    return decoder(checkpoint, each_layer(checkpoint, layer))


ARCHITECTURE = Architecture(
    name="olmo2",
    model_types=("olmo2",),
    describe=describe,
    transformers=stored(
        attention_post_norm="model.layers.{layer}.post_attention_layernorm.weight",
        ffn_post_norm="model.layers.{layer}.post_feedforward_layernorm.weight",
    ),
)
