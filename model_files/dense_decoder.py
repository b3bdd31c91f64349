"""The plain decoder, layers all alike: full attention, norms by the mean square before each block, a dense gated block."""

import math
from typing import NamedTuple

from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.feed_forward import Activation, DenseFeedForward
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec


class Biases(NamedTuple):
    """Which products of the attention have one."""

    q: bool = False
    k: bool = False
    v: bool = False
    output: bool = False


NO_BIASES = Biases()


def dense_layer(
    *,
    intermediate_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rms_norm_eps: float,
    rope: Rope,
    scale: float | None = None,
    biases: Biases = NO_BIASES,
) -> LayerSpec:
    """scale: of the scores; 1/sqrt(head_dim) unless given. CorruptModelFile for what is out of range."""
    norm = Norm(kind="rms", eps=rms_norm_eps)
    attention = SelfAttention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        key_dim=head_dim,
        value_dim=head_dim,
        scale=1 / math.sqrt(max(head_dim, 1)) if scale is None else scale,
        rope=rope,
        q_bias=biases.q,
        k_bias=biases.k,
        v_bias=biases.v,
        output_bias=biases.output,
    )
    feed_forward = DenseFeedForward(intermediate_size=intermediate_size, activation=Activation(kind="silu"))
    return LayerSpec(attention_norm=norm, attention=attention, feed_forward_norm=norm, feed_forward=feed_forward)


def dense_decoder(
    layers: tuple[LayerSpec, ...],
    *,
    architecture: str,
    name: str,
    hidden_size: int,
    vocab_size: int,
    context_length: int,
    padding_rows: int = 0,
) -> ModelSpec:
    """The norm before the head is that before the last feed-forward block."""
    return ModelSpec(
        architecture=architecture,
        name=name,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        context_length=context_length,
        layers=layers,
        output_norm=_last_norm(layers),
        padding_rows=padding_rows,
    )


def _last_norm(layers: tuple[LayerSpec, ...]) -> Norm:
    norm = layers[-1].feed_forward_norm if layers else None
    return norm or Norm(kind="rms", eps=1e-6)
