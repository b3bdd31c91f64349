"""From a model's description to what the kernels' stages compute by."""

from functools import singledispatch

from dairllm.kernels_pyx import (
    DenseBlock,
    ExpertBlock,
    LatentAttentionBlock,
    LayerBlock,
    LinearAttentionBlock,
    SelfAttentionBlock,
    StageActivation,
    StageLayer,
    StageNorm,
    StagePerLayerEmbedding,
    StagePerLayerInput,
    StageRope,
    StageRouter,
    StageSpec,
)
from dairllm.model_files.attention import LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, Router
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import ModelSpec, PerLayerEmbedding, PerLayerInput


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
        carried_width=model.carried_width,
        per_layer_embedding=_per_layer_embedding(model.per_layer_embedding),
    )


def stage_layer(model: ModelSpec, index: int) -> StageLayer:
    """The model needs no more than STAGE_FEATURES. Raises ValueError for sizes that the kernels can't do."""
    layer = model.layers[index]
    return StageLayer(
        attention_norm=_norm_or_none(layer.attention_norm),
        attention=_attention(layer.attention, model.carried_keys(index)),
        attention_post_norm=_norm_or_none(layer.attention_post_norm),
        feed_forward_norm=_norm_or_none(layer.feed_forward_norm),
        feed_forward=_feed_forward(layer.feed_forward),
        feed_forward_post_norm=_norm_or_none(layer.feed_forward_post_norm),
        residual_scale=layer.residual_scale,
        per_layer_input=_per_layer_input(layer.per_layer_input, index),
        output_scale=layer.output_scale,
    )


@singledispatch
def _attention(part: object, carried_keys: int | None) -> LayerBlock:
    """Of a kind that the kernels have; a further kind is registered here. carried_keys: see ModelSpec."""
    raise AssertionError(f"the features of the model were checked when it was assigned, and yet it has a {type(part).__name__}")


@_attention.register
def _self_attention(attention: SelfAttention, carried_keys: int | None) -> LayerBlock:
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
        carried_keys=carried_keys,
        has_keys=attention.keys_of is None,
    )


@_attention.register
def _latent_attention(attention: LatentAttention, _carried_keys: int | None) -> LayerBlock:
    return LatentAttentionBlock(
        num_heads=attention.num_heads,
        query_rank=attention.query_rank,
        kv_rank=attention.kv_rank,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        scale=attention.scale,
        rope=_rope(attention.rope),
        latent_norm=_norm(attention.latent_norm),
    )


@_attention.register
def _linear_attention(attention: LinearAttention, _carried_keys: int | None) -> LayerBlock:
    return LinearAttentionBlock(
        num_key_heads=attention.num_key_heads,
        num_value_heads=attention.num_value_heads,
        key_dim=attention.key_dim,
        value_dim=attention.value_dim,
        conv_width=attention.conv_width,
        output_norm=_norm(attention.output_norm),
        tiled=attention.tiled,
    )


@singledispatch
def _feed_forward(part: object) -> LayerBlock:
    """As _attention."""
    raise AssertionError(f"the features of the model were checked when it was assigned, and yet it has a {type(part).__name__}")


@_feed_forward.register
def _dense(feed_forward: DenseFeedForward) -> LayerBlock:
    return DenseBlock(intermediate_size=feed_forward.intermediate_size, activation=_activation(feed_forward.activation))


@_feed_forward.register
def _experts(feed_forward: ExpertFeedForward) -> LayerBlock:
    return ExpertBlock(
        num_experts=feed_forward.num_experts,
        num_experts_used=feed_forward.num_experts_used,
        intermediate_size=feed_forward.intermediate_size,
        router=_router(feed_forward.router),
        activation=_activation(feed_forward.activation),
        shared_intermediate_size=feed_forward.shared_intermediate_size,
        shared_gate=feed_forward.shared_gate,
    )


def _per_layer_embedding(embedding: PerLayerEmbedding | None) -> StagePerLayerEmbedding | None:
    if embedding is None:
        return None
    return StagePerLayerEmbedding(embedding.width, _norm(embedding.norm), embedding.embedding_scale, embedding.scale)


def _per_layer_input(added: PerLayerInput | None, index: int) -> StagePerLayerInput | None:
    if added is None:
        return None
    return StagePerLayerInput(added.width, index * added.width, _activation(added.activation), _norm(added.post_norm))


def _router(router: Router) -> StageRouter:
    return StageRouter(router.kind, router.normalised, router.scale, router.num_groups, router.num_groups_used, router.group_best)


def _activation(activation: Activation) -> StageActivation:
    return StageActivation(activation.kind, activation.alpha, activation.limit)


def _rope(rope: Rope) -> StageRope:
    return StageRope(rope.theta, rope.dim, rope.interleaved, rope.freq_factors, rope.magnitude)


def _norm(norm: Norm) -> StageNorm:
    return StageNorm(norm.kind, norm.eps, norm.offset_by_one, norm.weighted)


def _norm_or_none(norm: Norm | None) -> StageNorm | None:
    return None if norm is None else _norm(norm)
