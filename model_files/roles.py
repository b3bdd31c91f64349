"""The table of roles: which tensors a unit has, what each is for, and its shape.

A role says what a tensor is for, whatever the file's format calls it. It is *numbers*, which the kernels take as float32 of any shape, or a
*matrix* of outputs x inputs, or a stack of such matrices, one for each expert or head. The table's order is the order of a unit's digest.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from dairllm.model_files.attention import LatentAttention, LinearAttention, SelfAttention
from dairllm.model_files.feed_forward import DenseFeedForward, ExpertFeedForward
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec

Shape = tuple[int, ...]
Part = TypeVar("Part")


def _always(part: object) -> bool:
    return True


class TensorRole(NamedTuple, Generic[Part]):
    """shape: by the part of the description that the tensor belongs to and the width of the residual stream. when: it is there at all.

    numbers: they are few, and are kept as float32. Those of one dimension always are.
    """

    name: str
    shape: Callable[[Part, int], Shape]
    when: Callable[[Part], bool] = _always
    numbers: bool = False


def _is_weighted(norm: Norm | None) -> bool:
    return norm is not None and norm.weighted


def _has_keys(attention: SelfAttention) -> bool:
    return attention.keys_of is None


def _width_per_layer(model: ModelSpec) -> int:
    return 0 if model.per_layer_embedding is None else model.per_layer_embedding.width


def _added_width(layer: LayerSpec) -> int:
    return 0 if layer.per_layer_input is None else layer.per_layer_input.width


EMBEDDING: tuple[TensorRole[ModelSpec], ...] = (
    TensorRole("token_embedding", lambda m, hidden: (m.vocab_size, hidden)),
    TensorRole(
        "per_layer_embedding", lambda m, hidden: (m.vocab_size, m.num_layers * _width_per_layer(m)), lambda m: _width_per_layer(m) > 0
    ),
    TensorRole("per_layer_projection", lambda m, hidden: (m.num_layers * _width_per_layer(m), hidden), lambda m: _width_per_layer(m) > 0),
    TensorRole("per_layer_norm", lambda m, hidden: (_width_per_layer(m),), lambda m: _width_per_layer(m) > 0),
)

HEAD: tuple[TensorRole[ModelSpec], ...] = (
    TensorRole("output_norm", lambda m, hidden: (hidden,)),
    TensorRole("output", lambda m, hidden: (m.vocab_size, hidden)),
)

ATTENTION_NORM: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("attention_norm", lambda layer, hidden: (hidden,), lambda layer: _is_weighted(layer.attention_norm)),
)

SELF_ATTENTION: tuple[TensorRole[SelfAttention], ...] = (
    TensorRole("q", lambda a, hidden: (a.q_width * (2 if a.output_gate else 1), hidden)),
    TensorRole("k", lambda a, hidden: (a.k_width, hidden), _has_keys),
    TensorRole("v", lambda a, hidden: (a.v_width, hidden), _has_keys),
    TensorRole("attention_output", lambda a, hidden: (hidden, a.output_width)),
    TensorRole("q_bias", lambda a, hidden: (a.q_width * (2 if a.output_gate else 1),), lambda a: a.q_bias),
    TensorRole("k_bias", lambda a, hidden: (a.k_width,), lambda a: a.k_bias),
    TensorRole("v_bias", lambda a, hidden: (a.v_width,), lambda a: a.v_bias),
    TensorRole("attention_output_bias", lambda a, hidden: (hidden,), lambda a: a.output_bias),
    TensorRole("q_norm", lambda a, hidden: (a.q_width if a.norm_spans_heads else a.key_dim,), lambda a: _is_weighted(a.q_norm)),
    TensorRole("k_norm", lambda a, hidden: (a.k_width if a.norm_spans_heads else a.key_dim,), lambda a: _is_weighted(a.k_norm)),
    TensorRole("v_norm", lambda a, hidden: (a.value_dim,), lambda a: _is_weighted(a.v_norm)),
    TensorRole("attention_sinks", lambda a, hidden: (a.num_heads,), lambda a: a.sinks),
)

LATENT_ATTENTION: tuple[TensorRole[LatentAttention], ...] = (
    TensorRole("q", lambda a, hidden: (a.q_width, hidden), lambda a: a.query_rank is None),
    TensorRole("q_a", lambda a, hidden: (a.query_rank or 0, hidden), lambda a: a.query_rank is not None),
    TensorRole("q_a_bias", lambda a, hidden: (a.query_rank or 0,), lambda a: a.query_rank is not None and a.bias),
    TensorRole("q_a_norm", lambda a, hidden: (a.query_rank or 0,), lambda a: a.query_rank is not None),
    TensorRole("q_b", lambda a, hidden: (a.q_width, a.query_rank or 0), lambda a: a.query_rank is not None),
    TensorRole("kv_a", lambda a, hidden: (a.kv_rank + a.rope.dim, hidden)),
    TensorRole("kv_a_bias", lambda a, hidden: (a.kv_rank + a.rope.dim,), lambda a: a.bias),
    TensorRole("kv_a_norm", lambda a, hidden: (a.kv_rank,)),
    TensorRole("k_b", lambda a, hidden: (a.num_heads, a.kv_rank, a.key_dim)),
    TensorRole("v_b", lambda a, hidden: (a.num_heads, a.value_dim, a.kv_rank)),
    TensorRole("attention_output", lambda a, hidden: (hidden, a.output_width)),
    TensorRole("attention_output_bias", lambda a, hidden: (hidden,), lambda a: a.bias),
)

LINEAR_ATTENTION: tuple[TensorRole[LinearAttention], ...] = (
    TensorRole("qkv", lambda a, hidden: (a.qkv_width, hidden)),
    TensorRole("output_gate", lambda a, hidden: (a.value_width, hidden)),
    TensorRole("alpha", lambda a, hidden: (a.num_value_heads, hidden)),
    TensorRole("beta", lambda a, hidden: (a.num_value_heads, hidden)),
    TensorRole("conv", lambda a, hidden: (a.qkv_width, a.conv_width), numbers=True),
    TensorRole("time_step_bias", lambda a, hidden: (a.num_value_heads,)),
    TensorRole("decay", lambda a, hidden: (a.num_value_heads,)),
    TensorRole("linear_norm", lambda a, hidden: (a.value_dim,)),
    TensorRole("attention_output", lambda a, hidden: (hidden, a.value_width)),
)

BETWEEN: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("attention_post_norm", lambda layer, hidden: (hidden,), lambda layer: _is_weighted(layer.attention_post_norm)),
    TensorRole("ffn_norm", lambda layer, hidden: (hidden,), lambda layer: _is_weighted(layer.feed_forward_norm)),
)

DENSE: tuple[TensorRole[DenseFeedForward], ...] = (
    TensorRole("gate", lambda f, hidden: (f.intermediate_size, hidden)),
    TensorRole("up", lambda f, hidden: (f.intermediate_size, hidden)),
    TensorRole("down", lambda f, hidden: (hidden, f.intermediate_size)),
    TensorRole("gate_bias", lambda f, hidden: (f.intermediate_size,), lambda f: f.bias),
    TensorRole("up_bias", lambda f, hidden: (f.intermediate_size,), lambda f: f.bias),
    TensorRole("down_bias", lambda f, hidden: (hidden,), lambda f: f.bias),
)

EXPERTS: tuple[TensorRole[ExpertFeedForward], ...] = (
    TensorRole("router", lambda f, hidden: (f.num_experts, hidden)),
    TensorRole("router_bias", lambda f, hidden: (f.num_experts,), lambda f: f.router.bias),
    TensorRole("router_selection_bias", lambda f, hidden: (f.num_experts,), lambda f: f.router.selection_bias),
    TensorRole("expert_gate", lambda f, hidden: (f.num_experts, f.intermediate_size, hidden)),
    TensorRole("expert_up", lambda f, hidden: (f.num_experts, f.intermediate_size, hidden)),
    TensorRole("expert_down", lambda f, hidden: (f.num_experts, hidden, f.intermediate_size)),
    TensorRole("expert_gate_bias", lambda f, hidden: (f.num_experts, f.intermediate_size), lambda f: f.bias, numbers=True),
    TensorRole("expert_up_bias", lambda f, hidden: (f.num_experts, f.intermediate_size), lambda f: f.bias, numbers=True),
    TensorRole("expert_down_bias", lambda f, hidden: (f.num_experts, hidden), lambda f: f.bias, numbers=True),
    TensorRole("shared_gate", lambda f, hidden: (f.shared_intermediate_size, hidden), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_up", lambda f, hidden: (f.shared_intermediate_size, hidden), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_down", lambda f, hidden: (hidden, f.shared_intermediate_size), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_router", lambda f, hidden: (1, hidden), lambda f: f.shared_gate),
)

AFTER: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("ffn_post_norm", lambda layer, hidden: (hidden,), lambda layer: _is_weighted(layer.feed_forward_post_norm)),
    TensorRole("per_layer_gate", lambda layer, hidden: (_added_width(layer), hidden), lambda layer: _added_width(layer) > 0),
    TensorRole("per_layer_output", lambda layer, hidden: (hidden, _added_width(layer)), lambda layer: _added_width(layer) > 0),
    TensorRole("per_layer_post_norm", lambda layer, hidden: (hidden,), lambda layer: _added_width(layer) > 0),
    TensorRole("layer_scale", lambda layer, hidden: (1,), lambda layer: layer.output_scale),
)

_TABLES = (
    *(EMBEDDING, HEAD, ATTENTION_NORM, SELF_ATTENTION, LATENT_ATTENTION, LINEAR_ATTENTION),
    *(BETWEEN, DENSE, EXPERTS, AFTER),
)
_NUMBERS = frozenset(role.name for table in _TABLES for role in table if role.numbers)


def is_numbers(role: str, shape: Shape) -> bool:
    """Whether the tensor of this role is kept as float32, not as a matrix or a stack of them."""
    return len(shape) == 1 or role in _NUMBERS


def unit_shapes(spec: ModelSpec, index: int) -> Mapping[str, Shape]:
    """Shape of the tensor of each role that a unit has, in order."""
    return dict(_shapes(spec, index))


def _shapes(spec: ModelSpec, index: int) -> Iterator[tuple[str, Shape]]:
    hidden, layer = spec.hidden_size, spec.layer_of(index)
    if layer is None:
        yield from _of(EMBEDDING if index == 0 else HEAD, spec, hidden)
        return
    attention, feed_forward = layer.attention, layer.feed_forward
    yield from _of(ATTENTION_NORM, layer, hidden)
    if isinstance(attention, SelfAttention):
        yield from _of(SELF_ATTENTION, attention, hidden)
    elif isinstance(attention, LatentAttention):
        yield from _of(LATENT_ATTENTION, attention, hidden)
    else:
        yield from _of(LINEAR_ATTENTION, attention, hidden)
    yield from _of(BETWEEN, layer, hidden)
    if isinstance(feed_forward, DenseFeedForward):
        yield from _of(DENSE, feed_forward, hidden)
    else:
        yield from _of(EXPERTS, feed_forward, hidden)
    yield from _of(AFTER, layer, hidden)


def _of(roles: tuple[TensorRole[Part], ...], part: Part, hidden: int) -> Iterator[tuple[str, Shape]]:
    return ((role.name, role.shape(part, hidden)) for role in roles if role.when(part))
