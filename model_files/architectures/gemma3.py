"""Gemma 3, its text: five layers with a window and a rotary base of their own to each without; norms of queries and keys, too."""

from typing import Any

from dairllm.model_files.architectures.gemma2 import LESS_ONE, root_of_width, sandwich_layer, score_scale
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.config import FULL, SLIDING
from dairllm.model_files.checkpoints.parts import GELU_TANH, activation_of, decoder, dense, each_layer, rms, rotation, self_attention
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.spec import LayerSpec, ModelSpec

_LAYERS_OF_27B = 62


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, activation = rms(checkpoint), activation_of(checkpoint, GELU_TANH, "hidden_activation")
    window, softcap = checkpoint.window(), checkpoint.positive("attn_logit_softcapping")
    scale, types = score_scale(checkpoint, _LAYERS_OF_27B), layer_types(checkpoint)
    ropes = {SLIDING: rotation(checkpoint, layer_type=SLIDING), FULL: rotation(checkpoint, layer_type=FULL, default_theta=1e6)}

    def layer(index: int) -> LayerSpec:
        kind = types[index]
        others: dict[str, Any] = {"window": window if kind == SLIDING else None, "softcap": softcap, "q_norm": norm, "k_norm": norm}
        attention = self_attention(checkpoint, index, rope=ropes[kind], scale=scale, **others)
        return sandwich_layer(norm, attention, dense(checkpoint, index, activation=activation))

    layers = each_layer(checkpoint, layer)
    return decoder(
        checkpoint, layers, embedding_scale=root_of_width(checkpoint), logit_softcap=checkpoint.positive("final_logit_softcapping")
    )


def layer_types(checkpoint: Checkpoint) -> list[str]:
    interval = (
        checkpoint.integer("sliding_window_pattern", checkpoint.integer("_sliding_window_pattern", 6)) if not checkpoint.is_gguf else 6
    )
    if interval < 1:
        raise CorruptModelFile(f"{checkpoint.container.path} has sliding_window_pattern {interval}; expected a positive number")
    return checkpoint.layer_types(lambda index: SLIDING if (index + 1) % interval else FULL)


DEFAULTS = {
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_size": 2304, "intermediate_size": 9216},
    **{
        "num_hidden_layers": 26,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
    **{"rope_theta": 1e6, "rope_local_base_freq": 1e4},
}

ARCHITECTURE = Architecture(
    name="gemma3", model_types=("gemma3_text", "gemma3"), describe=describe, transformers=LESS_ONE, defaults=DEFAULTS
)
