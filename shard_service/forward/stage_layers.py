"""From a model's description to what the kernels' stages compute by."""

from functools import singledispatch

from dairllm.kernels_pyx import (
    DenseBlock,
    LayerBlock,
    SelfAttentionBlock,
    StageActivation,
    StageLayer,
    StageNorm,
    StageRope,
    StageSpec,
)
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.feed_forward import DenseFeedForward
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import ModelSpec


def stage_spec(model: ModelSpec, wire: str) -> StageSpec:
    """All but the layers. Raises ValueError for sizes that the kernels can't do."""
    return StageSpec(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        output_norm=_norm(model.output_norm),
        embedding_scale=model.embedding_scale,
        logit_scale=model.logit_scale,
        logit_softcap=model.logit_softcap,
        boundary_encoding=wire,
    )


def stage_layer(model: ModelSpec, index: int) -> StageLayer:
    """The model needs no more than STAGE_FEATURES. Raises ValueError for sizes that the kernels can't do."""
    layer = model.layers[index]
    return StageLayer(
        attention_norm=_norm_or_none(layer.attention_norm),
        attention=_block(layer.attention),
        attention_post_norm=_norm_or_none(layer.attention_post_norm),
        feed_forward_norm=_norm_or_none(layer.feed_forward_norm),
        feed_forward=_block(layer.feed_forward),
        feed_forward_post_norm=_norm_or_none(layer.feed_forward_post_norm),
        residual_scale=layer.residual_scale,
    )


@singledispatch
def _block(part: object) -> LayerBlock:
    """Of a kind that the kernels have; a further kind is registered here."""
    raise AssertionError(f"the features of the model were checked when it was assigned, and yet it has a {type(part).__name__}")


@_block.register
def _self_attention(attention: SelfAttention) -> LayerBlock:
    return SelfAttentionBlock(
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        scale=attention.scale,
        rope=None if attention.rope is None else _rope(attention.rope),
        window=attention.window,
        q_norm=_norm_or_none(attention.q_norm),
        k_norm=_norm_or_none(attention.k_norm),
        v_norm=_norm_or_none(attention.v_norm),
        norm_spans_heads=attention.norm_spans_heads,
        softcap=attention.softcap,
        output_gate=attention.output_gate,
    )


@_block.register
def _dense(feed_forward: DenseFeedForward) -> LayerBlock:
    activation = feed_forward.activation
    return DenseBlock(
        intermediate_size=feed_forward.intermediate_size, activation=StageActivation(activation.kind, activation.alpha, activation.limit)
    )


def _rope(rope: Rope) -> StageRope:
    return StageRope(rope.theta, rope.dim, rope.interleaved, rope.freq_factors, rope.magnitude)


def _norm(norm: Norm) -> StageNorm:
    return StageNorm(norm.kind, norm.eps, norm.offset_by_one, norm.weighted)


def _norm_or_none(norm: Norm | None) -> StageNorm | None:
    return None if norm is None else _norm(norm)
