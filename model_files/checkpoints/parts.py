"""Parts of descriptions that many architectures have in common. What is passed by name is what an architecture has otherwise."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.checkpoints.architecture import Checkpoint
from dairllm.model_files.checkpoints.rotation import rope_of
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, Router
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec

SILU, GELU_TANH = Activation(kind="silu"), Activation(kind="gelu_tanh")
ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_BIAS_ROLES = {"q_bias": "q_bias", "k_bias": "k_bias", "v_bias": "v_bias", "output_bias": "attention_output_bias"}


def rms(checkpoint: Checkpoint) -> Norm:
    return Norm(kind="rms", eps=checkpoint.number("rms_norm_eps"))


def activation_of(checkpoint: Checkpoint, expected: Activation = SILU, key: str = "hidden_act") -> Activation:
    """As config.json says; GGUF leaves it to the architecture, which expects this one."""
    return Activation(kind=checkpoint.choice(key, ACTIVATIONS, "silu" if expected == SILU else "gelu_pytorch_tanh"))


def heads_of(checkpoint: Checkpoint, layer: int) -> tuple[int, int]:
    """Of queries, and of keys and values."""
    heads = checkpoint.integer("num_attention_heads", layer=layer)
    return heads, checkpoint.integer("num_key_value_heads", heads, layer=layer)


def head_dim_of(checkpoint: Checkpoint) -> int:
    heads, _ = heads_of(checkpoint, 0)
    return checkpoint.integer("head_dim", checkpoint.integer("hidden_size") // max(1, heads))


def self_attention(
    checkpoint: Checkpoint,
    layer: int,
    *,
    rope: Callable[[int], Rope | None],
    head_dim: int | None = None,
    biases: Sequence[str] = (),
    **others: Any,
) -> SelfAttention:
    """rope: by the numbers of a head. biases: fields of SelfAttention that are always so; others are as they are stored, as are those of
    `attention_bias`."""
    heads, kv_heads = heads_of(checkpoint, layer)
    key_dim = head_dim_of(checkpoint) if head_dim is None else head_dim
    needed = {"q_bias", "k_bias", "v_bias"} if checkpoint.boolean("attention_bias", False) else set()
    stored = {field for field, role in _BIAS_ROLES.items() if checkpoint.has_tensor(role, layer)}
    parts: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "key_dim": key_dim,
        "value_dim": checkpoint.integer("value_head_dim", key_dim) if head_dim is None else head_dim,
        "scale": 1 / math.sqrt(max(1, key_dim)),
        "rope": rope(key_dim),
        **dict.fromkeys({*needed, *stored, *biases}, True),
    }
    return SelfAttention(**{**parts, **others})


def dense(
    checkpoint: Checkpoint, layer: int, *, activation: Activation | None = None, intermediate_size: int | None = None
) -> DenseFeedForward:
    size = checkpoint.integer("intermediate_size", layer=layer) if intermediate_size is None else intermediate_size
    bias = checkpoint.boolean("mlp_bias", False) or checkpoint.has_tensor("up_bias", layer)
    return DenseFeedForward(intermediate_size=size, activation=activation or activation_of(checkpoint), bias=bias)


def experts(
    checkpoint: Checkpoint,
    *,
    count: str,
    router: Router,
    intermediate_size: int,
    activation: Activation | None = None,
    shared_intermediate_size: int = 0,
    **others: Any,
) -> ExpertFeedForward:
    """count: the key of the number of experts."""
    return ExpertFeedForward(
        num_experts=checkpoint.integer(count),
        num_experts_used=checkpoint.integer("num_experts_per_tok"),
        intermediate_size=intermediate_size,
        activation=activation or activation_of(checkpoint),
        router=router,
        shared_intermediate_size=shared_intermediate_size,
        **others,
    )


def pre_norm_layer(norm: Norm, attention: Any, feed_forward: Any, **others: Any) -> LayerSpec:
    """Norms before both blocks and none after them."""
    return LayerSpec(attention_norm=norm, attention=attention, feed_forward_norm=norm, feed_forward=feed_forward, **others)


def decoder(checkpoint: Checkpoint, layers: Sequence[LayerSpec], **others: Any) -> ModelSpec:
    """What stands around the layers."""
    vocab_size = checkpoint.rows_of("token_embedding")
    stated = checkpoint.integer("vocab_size", vocab_size)
    if stated != vocab_size:
        name = checkpoint.names["token_embedding"][0].name
        raise CorruptModelFile(
            f"{checkpoint.container.path} has {checkpoint.shown('vocab_size')} {stated}, but {name} has {vocab_size} rows"
        )
    parts: dict[str, Any] = {
        "architecture": checkpoint.architecture.name,
        "name": _name_of(checkpoint),
        "hidden_size": checkpoint.integer("hidden_size"),
        "vocab_size": vocab_size,
        "context_length": checkpoint.integer("max_position_embeddings"),
        "layers": tuple(layers),
        "output_norm": rms(checkpoint),
        "padding_rows": _padding_rows(checkpoint, vocab_size),
    }
    return ModelSpec(**{**parts, **others})


def each_layer(checkpoint: Checkpoint, make: Callable[[int], LayerSpec]) -> list[LayerSpec]:
    return [make(index) for index in range(checkpoint.num_layers())]


def rotation(checkpoint: Checkpoint, *, interleaved: bool = False, layer_type: str = "", **others: Any) -> Callable[[int], Rope]:
    """interleaved: in GGUF. Made once for each size of head."""
    made: dict[int, Rope] = {}

    def rope(head_dim: int) -> Rope:
        if head_dim not in made:
            made[head_dim] = rope_of(checkpoint, head_dim, interleaved=interleaved, layer_type=layer_type, **others)
        return made[head_dim]

    return rope


def _name_of(checkpoint: Checkpoint) -> str:
    name = checkpoint.container.name
    return checkpoint.container.text("general.name", name) or name


def _padding_rows(checkpoint: Checkpoint, vocab_size: int) -> int:
    """Converters round the matrices up: rows behind the file's last token. Without a list of tokens every row is one."""
    num_tokens = len(checkpoint.container.texts("tokenizer.ggml.tokens", []))
    return max(0, vocab_size - num_tokens) if num_tokens else 0
