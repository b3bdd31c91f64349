"""Gemma 2: norms before and after both blocks, a window in every other layer, bounded scores and logits.

Checkpoints of transformers have the norms' factors less one; llama.cpp's converter adds it.
"""

import math

from dairllm.model_files.attention import SelfAttention
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint, with_transforms
from dairllm.model_files.checkpoints.config import FULL, SLIDING
from dairllm.model_files.checkpoints.parts import (
    GELU_TANH,
    activation_of,
    decoder,
    dense,
    each_layer,
    head_dim_of,
    rms,
    rotation,
    self_attention,
)
from dairllm.model_files.checkpoints.stored import Names
from dairllm.model_files.checkpoints.tensor_names import TRANSFORMERS_NAMES, stored
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec

NORM_NAMES: Names = stored(
    attention_post_norm="model.layers.{layer}.post_attention_layernorm.weight",
    ffn_norm="model.layers.{layer}.pre_feedforward_layernorm.weight",
    ffn_post_norm="model.layers.{layer}.post_feedforward_layernorm.weight",
)
LESS_ONE: Names = with_transforms(
    {**TRANSFORMERS_NAMES, **NORM_NAMES},
    ("output_norm", "attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "q_norm", "k_norm"),
    "plus_one",
)
_LAYERS_OF_27B = 46


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, activation = rms(checkpoint), activation_of(checkpoint, GELU_TANH, "hidden_activation")
    window, softcap = checkpoint.window(), checkpoint.positive("attn_logit_softcapping")
    types = checkpoint.layer_types(lambda index: FULL if index % 2 else SLIDING)
    scale = score_scale(checkpoint, _LAYERS_OF_27B)
    rope = rotation(checkpoint)

    def layer(index: int) -> LayerSpec:
        one_window = window if types[index] == SLIDING else None
        attention = self_attention(checkpoint, index, rope=rope, scale=scale, window=one_window, softcap=softcap)
        return sandwich_layer(norm, attention, dense(checkpoint, index, activation=activation))

    layers = each_layer(checkpoint, layer)
    return decoder(
        checkpoint, layers, embedding_scale=root_of_width(checkpoint), logit_softcap=checkpoint.positive("final_logit_softcapping")
    )


def sandwich_layer(norm: Norm, attention: SelfAttention, feed_forward: object, **others: object) -> LayerSpec:
    """Norms before and after both blocks."""
    norms = {"attention_norm": norm, "attention_post_norm": norm, "feed_forward_norm": norm, "feed_forward_post_norm": norm}
    parts: dict[str, object] = {"attention": attention, "feed_forward": feed_forward, **norms, **others}
    return LayerSpec(**parts)  # type: ignore[arg-type]


def root_of_width(checkpoint: Checkpoint) -> float:
    """The factor of the embedding's rows."""
    return math.sqrt(max(1, checkpoint.integer("hidden_size")))


def score_scale(checkpoint: Checkpoint, layers_of_27b: int) -> float:
    """GGUF says nothing: it is that of the head's size but for the largest model, whose heads are smaller than their share of the width."""
    head_dim = head_dim_of(checkpoint)
    if checkpoint.is_gguf and checkpoint.num_layers() == layers_of_27b:
        head_dim = checkpoint.integer("hidden_size") // max(1, checkpoint.integer("num_attention_heads", layer=0))
    return 1 / math.sqrt(max(1e-3, checkpoint.number("query_pre_attn_scalar", head_dim)))


ARCHITECTURE = Architecture(name="gemma2", model_types=("gemma2",), describe=describe, transformers={**NORM_NAMES, **LESS_ONE})
