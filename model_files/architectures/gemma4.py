"""Gemma 4, its text: layers that have a window or wider heads, the last ones of which look at keys and values of a layer before them, and
numbers that each token has for each layer. Scores are not scaled, since queries and keys are normed; so are values, without factors.
"""

import math
from typing import Any

from dairllm.model_files.architectures.gemma2 import NORM_NAMES, root_of_width, sandwich_layer
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.config import FULL, SLIDING
from dairllm.model_files.checkpoints.parts import GELU_TANH, activation_of, decoder, dense, each_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Stored
from dairllm.model_files.checkpoints.tensor_names import stored
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec, PerLayerEmbedding, PerLayerInput


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, activation = rms(checkpoint), activation_of(checkpoint, GELU_TANH, "hidden_activation")
    types = _layer_types(checkpoint)
    width = checkpoint.integer("hidden_size_per_layer_input", 0)
    added = PerLayerInput(width=width, activation=activation, post_norm=norm) if width else None
    first_shared = len(types) - checkpoint.integer("num_kv_shared_layers", 0)
    if not 0 <= first_shared <= len(types):
        raise CorruptModelFile(f"{checkpoint.container.path} shares keys of {len(types) - first_shared} layers; expected 0 to {len(types)}")
    ropes = {SLIDING: rotation(checkpoint, layer_type=SLIDING), FULL: rotation(checkpoint, layer_type=FULL, default_theta=1e6)}
    window = checkpoint.window()
    checkpoint.boolean("attention_k_eq_v", False)  # told by the tensors
    widens = checkpoint.boolean("use_double_wide_mlp", False)

    def layer(index: int) -> LayerSpec:
        keys_of = _source_of_keys(checkpoint, types, index, first_shared) if index >= first_shared > 0 else None
        attention = _attention(
            checkpoint, index, types[index], norm, ropes[types[index]](_head_dim(checkpoint, index, types[index])), window, keys_of
        )
        size = checkpoint.integer("intermediate_size", layer=index) * (2 if widens and keys_of is not None else 1)
        feed_forward = dense(checkpoint, index, activation=activation, intermediate_size=size)
        has_scale = checkpoint.has_tensor("layer_scale", index)
        return sandwich_layer(norm, attention, feed_forward, per_layer_input=added, output_scale=has_scale)

    layers = each_layer(checkpoint, layer)
    return decoder(
        checkpoint,
        layers,
        embedding_scale=root_of_width(checkpoint),
        logit_softcap=checkpoint.positive("final_logit_softcapping"),
        per_layer_embedding=_per_layer_embedding(checkpoint, width, norm) if width else None,
    )


def _layer_types(checkpoint: Checkpoint) -> list[str]:
    """The last one never has a window."""
    found = checkpoint.layer_types(lambda index: SLIDING if (index + 1) % 6 else FULL)
    return found if checkpoint.is_gguf else [*found[:-1], FULL]


def _head_dim(checkpoint: Checkpoint, index: int, kind: str) -> int:
    if checkpoint.is_gguf:
        return checkpoint.integer("sliding_head_dim" if kind == SLIDING else "head_dim")
    plain = checkpoint.integer("head_dim") if kind == SLIDING else checkpoint.integer("global_head_dim", 512)
    if not checkpoint.has("per_layer_config"):
        return plain
    return checkpoint.of_layer("per_layer_config", index).integer("head_dim", checkpoint.integer("head_dim"))


def _num_kv_heads(checkpoint: Checkpoint, index: int, kind: str) -> int:
    plain = checkpoint.integer("num_key_value_heads", layer=index)
    if checkpoint.is_gguf:
        return plain
    if checkpoint.has("per_layer_config"):
        return checkpoint.of_layer("per_layer_config", index).integer("num_key_value_heads", plain)
    is_other = kind == FULL and checkpoint.boolean("attention_k_eq_v", False)
    return checkpoint.integer("num_global_key_value_heads", plain) if is_other else plain


def _attention(
    checkpoint: Checkpoint, index: int, kind: str, norm: Norm, rope: Rope, window: int | None, keys_of: int | None
) -> SelfAttention:
    own: dict[str, Any] = {"k_norm": norm, "v_norm": Norm(kind="rms", eps=norm.eps, weighted=False)} if keys_of is None else {}
    return self_attention(
        checkpoint,
        index,
        rope=lambda head_dim: rope,
        head_dim=_head_dim(checkpoint, index, kind),
        num_kv_heads=_num_kv_heads(checkpoint, index, kind),
        scale=1.0,
        window=window if kind == SLIDING else None,
        q_norm=norm,
        keys_of=keys_of,
        **own,
    )


def _source_of_keys(checkpoint: Checkpoint, types: list[str], index: int, first_shared: int) -> int:
    """The last layer of the same type that has keys of its own."""
    before = [layer for layer in range(first_shared) if types[layer] == types[index]]
    if not before:
        raise CorruptModelFile(
            f"{checkpoint.container.path} has no {types[index]} layer before {first_shared} whose keys layer {index} could share"
        )
    return before[-1]


def _per_layer_embedding(checkpoint: Checkpoint, width: int, norm: Norm) -> PerLayerEmbedding:
    """The projection is divided by the root of the width before its norm, which is as if eps were multiplied by the width."""
    checkpoint.require("vocab_size_per_layer_input", checkpoint.rows_of("token_embedding"))
    spread = Norm(kind="rms", eps=min(1.0, norm.eps * checkpoint.integer("hidden_size")))
    return PerLayerEmbedding(width=width, norm=spread, embedding_scale=math.sqrt(width), scale=1 / math.sqrt(2))


_LAYER = "model.layers.{layer}"

ARCHITECTURE = Architecture(
    name="gemma4",
    model_types=("gemma4_text", "gemma4"),
    describe=describe,
    gguf={
        "v": (Stored("blk.{layer}.attn_v.weight"), Stored("blk.{layer}.attn_k.weight")),
        **stored(
            layer_scale="blk.{layer}.layer_output_scale.weight",
            per_layer_embedding="per_layer_token_embd.weight",
            per_layer_projection="per_layer_model_proj.weight",
            per_layer_norm="per_layer_proj_norm.weight",
            per_layer_gate="blk.{layer}.inp_gate.weight",
            per_layer_output="blk.{layer}.proj.weight",
            per_layer_post_norm="blk.{layer}.post_norm.weight",
        ),
    },
    transformers={
        **NORM_NAMES,
        "v": (Stored(f"{_LAYER}.self_attn.v_proj.weight"), Stored(f"{_LAYER}.self_attn.k_proj.weight")),
        **stored(
            layer_scale=f"{_LAYER}.layer_scalar",
            per_layer_embedding="model.embed_tokens_per_layer.weight",
            per_layer_projection="model.per_layer_model_projection.weight",
            per_layer_norm="model.per_layer_projection_norm.weight",
            per_layer_gate=f"{_LAYER}.per_layer_input_gate.weight",
            per_layer_output=f"{_LAYER}.per_layer_projection.weight",
            per_layer_post_norm=f"{_LAYER}.post_per_layer_input_norm.weight",
        ),
    },
    unused=(
        *(f"{_LAYER}.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")),
        *(f"blk.{{layer}}.attn_{name}.weight" for name in ("k", "v", "k_norm")),
    ),
    defaults={
        **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_size": 2304, "intermediate_size": 9216},
        **{"num_hidden_layers": 30, "rms_norm_eps": 1e-6, "max_position_embeddings": 131_072, "sliding_window": 512},
        **{"hidden_size_per_layer_input": 256},
    },
)
