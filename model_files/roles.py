"""The table of roles: which tensors a unit has, what each is for, and its shape.

A role says what a tensor is for, whatever the file's format calls it. A tensor has one dimension (a vector), two (a matrix of
outputs x inputs) or three (a stack of such matrices, one for each expert). The table's order is the order of a unit's digest.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from dairllm.model_files.attention import SelfAttention
from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.feed_forward import DenseFeedForward, ExpertFeedForward
from dairllm.model_files.spec import LayerSpec, ModelSpec

Shape = tuple[int, ...]
Part = TypeVar("Part")


def _always(part: object) -> bool:
    return True


class TensorRole(NamedTuple, Generic[Part]):
    """shape: by the part of the description that the tensor belongs to and the width of the residual stream. when: it is there at all."""

    name: str
    shape: Callable[[Part, int], Shape]
    when: Callable[[Part], bool] = _always


EMBEDDING: tuple[TensorRole[ModelSpec], ...] = (TensorRole("token_embedding", lambda m, hidden: (m.vocab_size, hidden)),)

HEAD: tuple[TensorRole[ModelSpec], ...] = (
    TensorRole("output_norm", lambda m, hidden: (hidden,)),
    TensorRole("output", lambda m, hidden: (m.vocab_size, hidden)),
)

ATTENTION_NORM: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("attention_norm", lambda layer, hidden: (hidden,), lambda layer: layer.attention_norm is not None),
)

SELF_ATTENTION: tuple[TensorRole[SelfAttention], ...] = (
    TensorRole("q", lambda a, hidden: (a.q_width * (2 if a.output_gate else 1), hidden)),
    TensorRole("k", lambda a, hidden: (a.k_width, hidden)),
    TensorRole("v", lambda a, hidden: (a.v_width, hidden)),
    TensorRole("attention_output", lambda a, hidden: (hidden, a.output_width)),
    TensorRole("q_bias", lambda a, hidden: (a.q_width * (2 if a.output_gate else 1),), lambda a: a.q_bias),
    TensorRole("k_bias", lambda a, hidden: (a.k_width,), lambda a: a.k_bias),
    TensorRole("v_bias", lambda a, hidden: (a.v_width,), lambda a: a.v_bias),
    TensorRole("attention_output_bias", lambda a, hidden: (hidden,), lambda a: a.output_bias),
    TensorRole("q_norm", lambda a, hidden: (a.key_dim,), lambda a: a.q_norm is not None),
    TensorRole("k_norm", lambda a, hidden: (a.key_dim,), lambda a: a.k_norm is not None),
    TensorRole("attention_sinks", lambda a, hidden: (a.num_heads,), lambda a: a.sinks),
)

BETWEEN: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("attention_post_norm", lambda layer, hidden: (hidden,), lambda layer: layer.attention_post_norm is not None),
    TensorRole("ffn_norm", lambda layer, hidden: (hidden,), lambda layer: layer.feed_forward_norm is not None),
)

DENSE: tuple[TensorRole[DenseFeedForward], ...] = (
    TensorRole("gate", lambda f, hidden: (f.intermediate_size, hidden)),
    TensorRole("up", lambda f, hidden: (f.intermediate_size, hidden)),
    TensorRole("down", lambda f, hidden: (hidden, f.intermediate_size)),
)

EXPERTS: tuple[TensorRole[ExpertFeedForward], ...] = (
    TensorRole("router", lambda f, hidden: (f.num_experts, hidden)),
    TensorRole("router_bias", lambda f, hidden: (f.num_experts,), lambda f: f.router.bias),
    TensorRole("router_selection_bias", lambda f, hidden: (f.num_experts,), lambda f: f.router.selection_bias),
    TensorRole("expert_gate", lambda f, hidden: (f.num_experts, f.intermediate_size, hidden)),
    TensorRole("expert_up", lambda f, hidden: (f.num_experts, f.intermediate_size, hidden)),
    TensorRole("expert_down", lambda f, hidden: (f.num_experts, hidden, f.intermediate_size)),
    TensorRole("expert_gate_bias", lambda f, hidden: (f.num_experts, f.intermediate_size), lambda f: f.bias),
    TensorRole("expert_up_bias", lambda f, hidden: (f.num_experts, f.intermediate_size), lambda f: f.bias),
    TensorRole("expert_down_bias", lambda f, hidden: (f.num_experts, hidden), lambda f: f.bias),
    TensorRole("shared_gate", lambda f, hidden: (f.shared_intermediate_size, hidden), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_up", lambda f, hidden: (f.shared_intermediate_size, hidden), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_down", lambda f, hidden: (hidden, f.shared_intermediate_size), lambda f: f.shared_intermediate_size > 0),
    TensorRole("shared_router", lambda f, hidden: (1, hidden), lambda f: f.shared_gate),
)

FEED_FORWARD_POST_NORM: tuple[TensorRole[LayerSpec], ...] = (
    TensorRole("ffn_post_norm", lambda layer, hidden: (hidden,), lambda layer: layer.feed_forward_post_norm is not None),
)


def unit_shapes(spec: ModelSpec, index: int) -> Mapping[str, Shape]:
    """Shape of the tensor of each role that a unit has, in order. UnsupportedModel, by name, for a kind that has no tensors here."""
    return dict(_shapes(spec, index))


def _shapes(spec: ModelSpec, index: int) -> Iterator[tuple[str, Shape]]:
    hidden, layer = spec.hidden_size, spec.layer_of(index)
    if layer is None:
        yield from _of(EMBEDDING if index == 0 else HEAD, spec, hidden)
        return
    attention, feed_forward = layer.attention, layer.feed_forward
    yield from _of(ATTENTION_NORM, layer, hidden)
    if not isinstance(attention, SelfAttention):
        raise UnsupportedModel(f"layer {index - 1} needs {next(attention.features)}, which has no tensors that are known here")
    yield from _of(SELF_ATTENTION, attention, hidden)
    yield from _of(BETWEEN, layer, hidden)
    if isinstance(feed_forward, DenseFeedForward):
        yield from _of(DENSE, feed_forward, hidden)
    else:
        yield from _of(EXPERTS, feed_forward, hidden)
    yield from _of(FEED_FORWARD_POST_NORM, layer, hidden)


def _of(roles: tuple[TensorRole[Part], ...], part: Part, hidden: int) -> Iterator[tuple[str, Shape]]:
    return ((role.name, role.shape(part, hidden)) for role in roles if role.when(part))
