"""What a forward pass must know of a model: a list of layers, which may differ from each other, and what stands around them.

A description can say more than the kernels compute. `needed_features` names what it asks for; `require_features` is the one place that
refuses what is not offered. A field at its default asks for nothing, so that a field which comes later changes no model that lacks it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from dairllm.model_files.attention import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Attention, LatentAttention, Rope, SelfAttention
from dairllm.model_files.bounds import check_fields, text, within
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.feed_forward import Activation, FeedForward
from dairllm.model_files.norm import Norm

MAX_VOCABULARY = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerEmbedding:
    """Each token has, beside its row of the embedding x, `width` numbers for each layer, which that layer adds as its PerLayerInput says.

    They are scale * (norm(P x) + embedding_scale * E[token]), with matrices P and E of num_layers * width rows and columns. norm: of the
    numbers of one layer, so that a factor of P x can be left out if eps is divided by its square. x: after the model's embedding_scale.
    """

    width: int = within(1, MAX_WIDTH)
    norm: Norm
    embedding_scale: float = within(1e-6, 1e6, default=1.0)
    scale: float = within(1e-6, 1e6, default=1.0)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerInput:
    """x + post_norm(O (activation(G x) * e)): e are the token's numbers for this layer, of which there are `width`."""

    width: int = within(1, MAX_WIDTH)
    activation: Activation
    post_norm: Norm

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """x + residual_scale * attention(x), then the same with the feed-forward block, then the per-layer input.

    …_norm: of what goes into the block; …_post_norm: of what comes out of it, before it is added. None: there is none. output_scale: what
    comes out of the layer is multiplied by a stored number.
    """

    attention_norm: Norm | None = None
    attention: Attention
    attention_post_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    feed_forward: FeedForward
    feed_forward_post_norm: Norm | None = None
    residual_scale: float = within(1e-6, 1e6, default=1.0)
    per_layer_input: PerLayerInput | None = None
    output_scale: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def norms(self) -> tuple[Norm | None, ...]:
        added = None if self.per_layer_input is None else self.per_layer_input.post_norm
        return self.attention_norm, self.attention_post_norm, self.feed_forward_norm, self.feed_forward_post_norm, added

    @property
    def features(self) -> Iterator[str]:
        yield from self.attention.features
        yield from self.feed_forward.features
        for norm in self.norms:
            yield from norm.features if norm is not None else ()
        if None in (self.attention_norm, self.feed_forward_norm):
            yield "norm:none_before"
        if (self.attention_post_norm, self.feed_forward_post_norm) != (None, None):
            yield "norm:after"
        if self.residual_scale != 1.0:
            yield "scale:residual"
        if self.per_layer_input is not None:
            yield "per_layer_input"
            yield from self.per_layer_input.activation.features
        if self.output_scale:
            yield "scale:layer"

    @property
    def without_biases(self) -> "LayerSpec":
        """What must be equal in layers of one shape."""
        return replace(self, attention=self.attention.without_biases) if isinstance(self.attention, SelfAttention) else self

    def for_context(self, context_length: int) -> "LayerSpec":
        """As `Rope.for_context`."""
        attention = self.attention
        if isinstance(attention, (SelfAttention, LatentAttention)) and isinstance(attention.rope, Rope):
            return replace(self, attention=replace(attention, rope=attention.rope.for_context(context_length)))
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer; CorruptModelFile if its parts contradict each other.

    architecture: how the file's format calls it, for people. embedding_scale: of the rows of the embedding. Logits are multiplied by
    logit_scale and bounded by logit_softcap, which they approach by tanh. vocab_size: rows of embedding and output, of which the last
    padding_rows belong to no token and have no logits.
    """

    architecture: str = text()
    name: str = text()
    hidden_size: int = within(1, MAX_WIDTH)
    vocab_size: int = within(1, MAX_VOCABULARY)
    context_length: int = within(1, MAX_CONTEXT)
    layers: tuple[LayerSpec, ...]
    output_norm: Norm
    embedding_scale: float = within(1e-6, 1e6, default=1.0)
    logit_scale: float = within(1e-6, 1e6, default=1.0)
    logit_softcap: float | None = within(1e-3, 1e6, default=None)
    padding_rows: int = within(0, MAX_VOCABULARY, default=0)
    per_layer_embedding: PerLayerEmbedding | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise CorruptModelFile(f"the model has {len(self.layers)} layers; expected 1 to {MAX_LAYERS}")
        if self.padding_rows >= self.vocab_size:
            raise CorruptModelFile(f"padding_rows is {self.padding_rows}; expected less than vocab_size, {self.vocab_size}")
        self._check_per_layer_inputs()
        for index, layer in enumerate(self.layers):
            self._check_keys(index, layer)

    def _check_per_layer_inputs(self) -> None:
        expected = None if self.per_layer_embedding is None else self.per_layer_embedding.width
        for index, layer in enumerate(self.layers):
            width = None if layer.per_layer_input is None else layer.per_layer_input.width
            if width != expected:
                raise CorruptModelFile(
                    f"the per-layer input of layer {index} has the width {width}; expected that of the embedding, {expected}"
                )

    def _check_keys(self, index: int, layer: LayerSpec) -> None:
        """Keys and values of another layer are there already, and are what this layer's heads look at."""
        attention = layer.attention
        if not isinstance(attention, SelfAttention) or attention.keys_of is None:
            return
        source = self.layers[attention.keys_of].attention if attention.keys_of < index else None
        if not isinstance(source, SelfAttention) or source.keys_of is not None or _cached(source) != _cached(attention):
            raise CorruptModelFile(
                f"layer {index} has the keys of layer {attention.keys_of}; expected a layer before it with heads like its own"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of the vocabulary: their ids are 0 to num_tokens - 1."""
        return self.vocab_size - self.padding_rows

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_units(self) -> int:
        """Units of assignment: the embedding, every layer, the head."""
        return self.num_layers + 2

    @property
    def head_index(self) -> int:
        return self.num_layers + 1

    @property
    def carried_width(self) -> int:
        """How many numbers rows carry along beside the residual stream: per-layer inputs of all layers, then keys and values of each layer
        that others look at. They are rounded once, where they are made, so that every machine reads the same ones."""
        return self._per_layer_width + sum(self._width_of_keys(source) for source in self._key_sources)

    @property
    def row_width(self) -> int:
        """Numbers that go from unit to unit for each token."""
        return self.hidden_size + self.carried_width

    def carried_keys(self, layer: int) -> int | None:
        """Where, among the carried numbers, the keys and values lie that a layer makes for others, or has from another one."""
        attention = self.layers[layer].attention
        source = layer if not isinstance(attention, SelfAttention) or attention.keys_of is None else attention.keys_of
        if source not in self._key_sources:
            return None
        return self._per_layer_width + sum(self._width_of_keys(other) for other in self._key_sources if other < source)

    @property
    def _per_layer_width(self) -> int:
        return 0 if self.per_layer_embedding is None else self.num_layers * self.per_layer_embedding.width

    @property
    def _key_sources(self) -> list[int]:
        attentions = (layer.attention for layer in self.layers)
        keys_of = {attention.keys_of for attention in attentions if isinstance(attention, SelfAttention)}
        return sorted(layer for layer in keys_of if layer is not None)

    def _width_of_keys(self, layer: int) -> int:
        attention = self.layers[layer].attention
        assert isinstance(attention, SelfAttention)
        return attention.k_width + attention.v_width

    def unit_name(self, index: int) -> str:
        """'embedding', 'layer 3' or 'head'."""
        if index == 0:
            return "embedding"
        return "head" if index == self.head_index else f"layer {index - 1}"

    def layer_of(self, index: int) -> LayerSpec | None:
        """The layer that a unit is; None of embedding and head."""
        return self.layers[index - 1] if 0 < index < self.head_index else None

    @property
    def usual_context(self) -> int:
        """The longest context for which nothing is stretched."""
        ropes = (layer.attention.rope for layer in self.layers if isinstance(layer.attention, (SelfAttention, LatentAttention)))
        return min(
            [self.context_length, *(rope.original_context for rope in ropes if rope is not None and rope.original_context is not None)]
        )

    def for_context(self, context_length: int) -> "ModelSpec":
        """The model where no sequence has more than so many tokens: what depends on the length is decided, so that nothing does any
        more.
        """
        return replace(self, layers=tuple(layer.for_context(context_length) for layer in self.layers))

    def state_bytes_per_token(self, index: int, element_type: str) -> int:
        """What unit `index` keeps for each token of a sequence; element_type: of the cache of keys and values."""
        layer = self.layer_of(index)
        return 0 if layer is None else layer.attention.state_bytes_per_token(element_type)

    def state_bytes_per_sequence(self, index: int) -> int:
        """What unit `index` keeps for each sequence, whatever its length."""
        layer = self.layer_of(index)
        return 0 if layer is None else layer.attention.state_bytes_per_sequence

    def needed_features(self) -> frozenset[str]:
        """Names of all that kernels must be able to do for this model."""
        return frozenset(self._features())

    def _norms(self) -> set[Norm]:
        """Of the residual stream."""
        norms = {norm for layer in self.layers for norm in layer.norms if norm is not None}
        return norms | {self.output_norm}

    def _features(self) -> Iterator[str]:
        for layer in set(self.layers):
            yield from layer.features
        yield from self.output_norm.features
        if self.per_layer_embedding is not None:
            yield from self.per_layer_embedding.norm.features
        used = {
            "layers:unequal": len({layer.without_biases for layer in self.layers}) > 1,
            "norm:unequal": len(self._norms()) > 1,
            "scale:embedding": self.embedding_scale != 1.0,
            "scale:logits": self.logit_scale != 1.0,
            "softcap:logits": self.logit_softcap is not None,
        }
        yield from (name for name, is_used in used.items() if is_used)


def _cached(attention: SelfAttention) -> tuple[int, int, int, int | None]:
    """What decides how keys and values lie, and how many of them are kept."""
    return attention.num_kv_heads, attention.key_dim, attention.value_dim, attention.window


def require_features(spec: ModelSpec, offered: Collection[str]) -> None:
    """Raise UnsupportedModel, by their names, for features of the model that are not offered."""
    missing = sorted(spec.needed_features() - frozenset(offered))
    if missing:
        raise UnsupportedModel(f"{spec.name} ({spec.architecture}) needs {', '.join(missing)}, which is not supported here")
