"""What a model is said to be, read by the keys of transformers' config.json whatever the container is.

GGUF's keys are translated (`gguf_keys`). What is read is remembered: a key that would change the arithmetic, and that nobody asked for, is
refused by `refuse_unread`, never ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dairllm.model_files.attention import MAX_LAYERS
from dairllm.model_files.checkpoints.gguf_keys import GGUF_DERIVED, GGUF_KEYS, GGUF_NEUTRAL
from dairllm.model_files.containers import Container, Conventions, Metadata
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "qkv_bias", "use_qk_norm", "qk_layernorm", "alibi"), ()),
    **dict.fromkeys(("use_sliding_window", "sliding_window", "attention_chunk_size", "use_bidirectional_attention"), ()),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping", "clip_qkv"), ()),
    **dict.fromkeys(("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier", "attention_multiplier"), (1,)),
    **dict.fromkeys(("lm_head_multiplier", "scale_emb", "scale_depth", "dim_model_base", "partial_rotary_factor"), (1,)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "moe_layers"), ()),
    **dict.fromkeys(("enable_moe_block", "attention_k_eq_v", "use_double_wide_mlp", "num_kv_shared_layers"), ()),
    **dict.fromkeys(("hidden_size_per_layer_input", "altup_num_inputs", "laurel_rank", "activation_sparsity_pattern"), ()),
    **dict.fromkeys(("kv_lora_rank", "index_topk", "linear_num_key_heads", "mamba_d_state", "attn_temperature_tuning"), ()),
    **dict.fromkeys(("use_parallel_residual", "parallel_attn", "is_encoder_decoder", "add_cross_attention"), ()),
    **dict.fromkeys(("rope_scaling", "rope_local_base_freq", "quantization_config", "no_rope_layers", "per_layer_config"), ()),
    **dict.fromkeys(("mlp_only_layers", "swiglu_limit", "attn_output_gate"), ()),
    **{"decoder_sparse_step": (1,), "moe_layer_freq": (1,), "layer_types": (), "is_causal": (True,)},
}
"""Keys of config.json that change the arithmetic, and values that ask for nothing, beside null, false, 0 and an empty list."""


class Config:
    """Each method raises CorruptModelFile, naming the container's own key, if it is missing (and no default given) or of another type.

    name: of the architecture in GGUF. defaults: what config.json leaves out, since it is so in the class that reads it.
    """

    def __init__(self, container: Container, name: str, defaults: Mapping[str, float] | None = None) -> None:
        self.container = container
        self.is_gguf = container.conventions is Conventions.GGUF
        self._prefix = f"{name}."
        self._section: Metadata = container
        if not self.is_gguf:
            said = container.section("text_config") if "text_config" in container.metadata else container
            self._section = Metadata(said.path, {**(defaults or {}), **said.metadata}, inside=said.inside)
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        return self._source_key(key) in self._section.metadata

    def integer(self, key: str, default: int | None = None, *, layer: int | None = None) -> int:
        """layer: of a value that may be a list with one for each layer."""
        derived = self._derived(key)
        if isinstance(derived, int):
            return derived
        return self._of(key, layer).integer(self._note(key), default)

    def number(self, key: str, default: float | None = None) -> float:
        return self._section.number(self._note(key), default)

    def boolean(self, key: str, default: bool | None = None) -> bool:
        return self._section.boolean(self._note(key), default)

    def text(self, key: str, default: str | None = None) -> str:
        return self._section.text(self._note(key), default)

    def positive(self, key: str) -> float | None:
        """A number that is no default and not 0, which says that there is none."""
        return self.number(key, 0.0) or None

    def section(self, key: str) -> Metadata:
        return self._section.section(self._note(key))

    def window(self) -> int | None:
        """Of layers that have one: it is none if no sequence is longer."""
        window = self.integer("sliding_window", 0)
        return None if window == 0 or window >= self.integer("max_position_embeddings") else window

    def windows_of_last_layers(self) -> list[int | None]:
        """Of each layer, where config.json may give one to the layers from max_window_layers on, or to those that it lists. GGUF only lists
        them."""
        is_used = self.has("layer_types") if self.is_gguf else self.boolean("use_sliding_window", False)
        if not is_used:
            self._read.update(() if self.is_gguf else ("sliding_window", "layer_types"))
            return [None] * self.num_layers()
        first, window = self.integer("max_window_layers", 0), self.window()
        types = self.layer_types(lambda index: SLIDING if index >= first else FULL)
        return [window if kind == SLIDING else None for kind in types]

    def of_layer(self, key: str, layer: int) -> Metadata:
        """What a section says of one layer, by its number."""
        section = self.section(key)
        found = next((one for one in section.metadata if one.isdecimal() and int(one) == layer), None)
        return Metadata(section.path, {}, inside=section.inside) if found is None else section.section(found)

    def flags(self, key: str) -> list[bool] | None:
        """A list of zeros and ones, or None."""
        values = self._section.metadata.get(self._note(key))
        if values is None:
            return None
        numbers = values.tolist() if isinstance(values, np.ndarray) else values
        if not isinstance(numbers, list) or not all(one in (0, 1) for one in numbers):
            raise self._wrong(key, "a list of zeros and ones")
        return [bool(one) for one in numbers]

    def integers(self, key: str) -> list[int] | None:
        """A list of integers, or None."""
        values = self._section.metadata.get(self._note(key))
        if values is None:
            return None
        if not (isinstance(values, list) and not values) and not (isinstance(values, np.ndarray) and values.dtype.kind in "iu"):
            raise self._wrong(key, "a list of integers")
        return [int(one) for one in values]

    def choice(self, key: str, known: Mapping[str, str], default: str | None = None) -> str:
        """What `known` says of the value; UnsupportedModel for one that it does not have."""
        value = self.text(key, default)
        if value not in known:
            raise self.unsupported(key, value, " or ".join(repr(one) for one in known))
        return known[value]

    def require(self, key: str, expected: object) -> None:
        """UnsupportedModel unless the value, if there is one, is this."""
        value = self._section.metadata.get(self._note(key), expected)
        if isinstance(value, np.ndarray) or value != expected:
            raise self.unsupported(key, value, f"{expected!r} or none")

    def num_layers(self) -> int:
        count = self.integer("num_hidden_layers")
        if not 1 <= count <= MAX_LAYERS:
            raise CorruptModelFile(f"{self.container.path} has {self._source_key('num_hidden_layers')} {count}; expected 1 to {MAX_LAYERS}")
        return count

    def layer_types(self, default: Callable[[int], str], kinds: Sequence[str] = (FULL, SLIDING)) -> list[str]:
        """Of each layer one of the kinds of attention that the architecture has, as the container says, else by the layer's index."""
        count = self.num_layers()
        derived = self._derived("layer_types")
        found = derived if derived is not None else self._section.metadata.get(self._note("layer_types"))
        if found is None:
            return [default(index) for index in range(count)]
        if not isinstance(found, list) or len(found) < count:
            raise self._wrong("layer_types", f"a list of {count} kinds of attention")
        for kind in found:
            if kind not in kinds:
                raise self.unsupported("layer_types", kind, " or ".join(kinds))
        return list(found[:count])

    def unsupported(self, key: str, value: object, expected: str) -> UnsupportedModel:
        shown = f"a list of {len(value)}" if isinstance(value, np.ndarray) else repr(value)[:80]
        return UnsupportedModel(f"{self.container.path} sets {self.shown(key)} to {shown}, which is not supported; expected {expected}")

    def refuse_unread(self) -> None:
        """Raise UnsupportedModel for a key that changes the arithmetic and was not read, unless its value asks for nothing."""
        for key, neutral in self._neutral().items():
            value: Any = self._section.metadata.get(key)
            if key in self._read or value is None:
                continue
            asks = len(value) > 0 if isinstance(value, (list, Mapping, np.ndarray)) else value not in (False, 0, *neutral)
            if asks and not (isinstance(value, list) and _is_plain(key, value)):
                shown = repr(value)[:80]
                raise UnsupportedModel(
                    f"{self.container.path} sets {self._section.inside}{key} to {shown}, which is not supported; expected none"
                )

    def _neutral(self) -> Mapping[str, tuple[object, ...]]:
        return {f"{self._prefix}{key}": values for key, values in GGUF_NEUTRAL.items()} if self.is_gguf else NEUTRAL

    def _source_key(self, key: str) -> str:
        return f"{self._prefix}{GGUF_KEYS.get(key, key)}" if self.is_gguf else key

    def _note(self, key: str) -> str:
        source = self._source_key(key)
        self._read.add(source)
        return source

    def _derived(self, key: str) -> int | list[str] | None:
        """What GGUF says in another way."""
        if not self.is_gguf or key not in GGUF_DERIVED:
            return None
        keys, value = GGUF_DERIVED[key]
        self._read.update(f"{self._prefix}{one}" for one in keys)
        return value(self.container, self._prefix)

    def _of(self, key: str, layer: int | None) -> Metadata:
        """Where the value of this layer is a single one."""
        source = self._note(key)
        values = self._section.metadata.get(source)
        if layer is None or not isinstance(values, np.ndarray):
            return self._section
        if layer >= len(values) or values.dtype.kind not in "iu":
            raise self._wrong(key, "an integer for each layer")
        return Metadata(self._section.path, {source: int(values[layer])}, inside=self._section.inside)

    def _wrong(self, key: str, expected: str) -> CorruptModelFile:
        shown = repr(self._section.metadata.get(self._source_key(key)))[:80]
        return CorruptModelFile(f"{self.container.path} has {shown} as {self.shown(key)}; expected {expected}")

    def shown(self, key: str) -> str:
        return f"{self._section.inside}{self._source_key(key)}"


def _is_plain(key: str, value: Sequence[object]) -> bool:
    """Lists that say of each layer what is so without them."""
    plain = {"layer_types": FULL, "no_rope_layers": 1}
    return key in plain and all(one == plain[key] for one in value)
