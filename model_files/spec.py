"""What a forward pass must know of a model: a list of layers, which may differ from each other, and what stands around them.

A description can say more than the kernels compute. `needed_features` names what it asks for; `require_features` is the one place that
refuses what is not offered. A field at its default asks for nothing, so that a field which comes later changes no model that lacks it.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from dairllm.model_files.attention import MAX_CONTEXT, MAX_WIDTH, Attention, SelfAttention
from dairllm.model_files.bounds import check_fields, text, within
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.feed_forward import FeedForward
from dairllm.model_files.norm import Norm

MAX_LAYERS = 1024
MAX_VOCABULARY = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """x + residual_scale * attention(x), then the same with the feed-forward block.

    …_norm: of what goes into the block; …_post_norm: of what comes out of it, before it is added. None: there is none.
    """

    attention_norm: Norm | None = None
    attention: Attention
    attention_post_norm: Norm | None = None
    feed_forward_norm: Norm | None = None
    feed_forward: FeedForward
    feed_forward_post_norm: Norm | None = None
    residual_scale: float = within(1e-6, 1e6, default=1.0)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def norms(self) -> tuple[Norm | None, ...]:
        return self.attention_norm, self.attention_post_norm, self.feed_forward_norm, self.feed_forward_post_norm

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

    @property
    def without_biases(self) -> "LayerSpec":
        """What must be equal in layers of one shape."""
        return replace(self, attention=self.attention.without_biases) if isinstance(self.attention, SelfAttention) else self


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

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise CorruptModelFile(f"the model has {len(self.layers)} layers; expected 1 to {MAX_LAYERS}")
        if self.padding_rows >= self.vocab_size:
            raise CorruptModelFile(f"padding_rows is {self.padding_rows}; expected less than vocab_size, {self.vocab_size}")

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

    def unit_name(self, index: int) -> str:
        """'embedding', 'layer 3' or 'head'."""
        if index == 0:
            return "embedding"
        return "head" if index == self.head_index else f"layer {index - 1}"

    def layer_of(self, index: int) -> LayerSpec | None:
        """The layer that a unit is; None of embedding and head."""
        return self.layers[index - 1] if 0 < index < self.head_index else None

    def state_bytes_per_token(self, index: int, element_bytes: int) -> int:
        """What unit `index` keeps for each token of a sequence; element_bytes: of one number in the cache of keys and values."""
        layer = self.layer_of(index)
        return 0 if layer is None else layer.attention.state_bytes_per_token(element_bytes)

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
        used = {
            "layers:unequal": len({layer.without_biases for layer in self.layers}) > 1,
            "norm:unequal": len(self._norms()) > 1,
            "scale:embedding": self.embedding_scale != 1.0,
            "scale:logits": self.logit_scale != 1.0,
            "softcap:logits": self.logit_softcap is not None,
        }
        yield from (name for name, is_used in used.items() if is_used)


def require_features(spec: ModelSpec, offered: Collection[str]) -> None:
    """Raise UnsupportedModel, by their names, for features of the model that are not offered."""
    missing = sorted(spec.needed_features() - frozenset(offered))
    if missing:
        raise UnsupportedModel(f"{spec.name} ({spec.architecture}) needs {', '.join(missing)}, which is not supported here")
