"""What GGUF says of a model: the keys that llama.cpp reads, from the description and, for rotary scaling, from config.json.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm and `gguf.constants.Keys` of the package gguf. What a key cannot say is
found out by reading the file back (`writing`), not here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dairllm.model_files.attention import Attention, LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.containers import Container, Metadata
from dairllm.model_files.feed_forward import DenseFeedForward, ExpertFeedForward
from dairllm.model_files.spec import ModelSpec

Value = int | float | bool | str | list[int] | list[bool] | list[str] | list[float]
Keys = dict[str, Value]
Kind = TypeVar("Kind", bound=Attention)

_GATING_FUNCTIONS = {"softmax": 1, "sigmoid": 2, "softmax_of_chosen": 3}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_FACTORS_ARE_STORED = ("llama3", "proportional")


def gguf_metadata(spec: ModelSpec, container: Container, name: str) -> Keys:
    """Keys behind the name of the architecture in GGUF, by which they are to be written."""
    keys: Keys = {
        "context_length": spec.context_length,
        "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers,
        "vocab_size": spec.vocab_size,
        "attention.layer_norm_rms_epsilon": spec.output_norm.eps,
        **_feed_forwards(spec, name),
        **_attention(spec),
        **_scales(spec, name),
        **_rope_scaling(container),
    }
    if spec.per_layer_embedding is not None:
        keys["embedding_length_per_layer_input"] = spec.per_layer_embedding.width
    return keys


def details(spec: ModelSpec) -> Iterator[Keys]:
    """Keys that say in full what llama.cpp takes for granted of an architecture: each is added only if a file would be read otherwise
    without it."""
    attentions = _of_kind(spec, SelfAttention)
    if not attentions:
        return
    yield {"attention.sliding_window_pattern": [attention.window is not None for attention in attentions]}
    yield {"no_rope_layers": [int(attention.rope is not None) for attention in attentions]}


def rope_tensors(spec: ModelSpec, container: Container) -> Mapping[str, npt.NDArray[np.float32]]:
    """Divisors of rotary frequencies that no key can say."""
    rope = _rope_of(attention for attention in _of_kind(spec, SelfAttention) if attention.window is None)
    if rope is None or not rope.freq_factors:
        return {}
    if rope.long_freq_factors:
        factors = dict(zip(ROPE_TENSORS[1:], (rope.freq_factors, rope.long_freq_factors), strict=True))
        return {name: np.array(values, np.float32) for name, values in factors.items()}
    if _scaling_of(container).text("rope_type", "") in _FACTORS_ARE_STORED:
        return {ROPE_TENSORS[0]: np.array(rope.freq_factors, np.float32)}
    return {}


def _feed_forwards(spec: ModelSpec, name: str) -> Keys:
    blocks = [layer.feed_forward for layer in spec.layers]
    dense = [block.intermediate_size for block in blocks if isinstance(block, DenseFeedForward)]
    experts = next((block for block in blocks if isinstance(block, ExpertFeedForward)), None)
    keys: Keys = {"feed_forward_length": _one_or_all(dense) if dense else experts.intermediate_size if experts else 0}
    if experts is None:
        return keys
    router, shared = experts.router, experts.shared_intermediate_size
    keys |= {"expert_count": experts.num_experts, "expert_used_count": experts.num_experts_used}
    if name == "llama":
        return keys
    keys |= {"expert_feed_forward_length": experts.intermediate_size, "expert_gating_func": _GATING_FUNCTIONS[router.kind]}
    keys |= {"expert_weights_norm": router.normalised}
    if router.scale != 1.0 or router.kind == "sigmoid":
        keys["expert_weights_scale"] = router.scale
    if router.num_groups > 1:
        keys |= {"expert_group_count": router.num_groups, "expert_group_used_count": router.num_groups_used}
    if shared and experts.shared_gate:
        keys["expert_shared_feed_forward_length"] = shared
    elif shared:
        keys["expert_shared_count"] = max(1, shared // experts.intermediate_size)
    first = next(index for index, block in enumerate(blocks) if isinstance(block, ExpertFeedForward))
    return keys | {"leading_dense_block_count": first} if dense or (shared and not experts.shared_gate) else keys


def _attention(spec: ModelSpec) -> Keys:
    keys: Keys = {}
    heads, latent, linear = _of_kind(spec, SelfAttention), _of_kind(spec, LatentAttention), _of_kind(spec, LinearAttention)
    if heads:
        keys |= _self_attention(heads)
    if latent:
        keys |= _latent_attention(latent[0])
    if linear:
        keys |= _linear_attention(linear[0])
        interval = next((index + 1 for index, layer in enumerate(spec.layers) if layer.attention in heads), spec.num_layers)
        keys["full_attention_interval"] = interval
    return keys


def _self_attention(attentions: Sequence[SelfAttention]) -> Keys:
    full = [attention for attention in attentions if attention.window is None]
    local = [attention for attention in attentions if attention.window is not None]
    main, rope = (full or local)[0], _rope_of(full or local)
    keys: Keys = {
        "attention.head_count": _one_or_all([attention.num_heads for attention in attentions]),
        "attention.head_count_kv": _one_or_all([attention.num_kv_heads for attention in attentions]),
        "attention.key_length": main.key_dim,
        "attention.value_length": main.value_dim,
    }
    if rope is not None:
        keys |= {"rope.dimension_count": rope.dim, "rope.freq_base": rope.theta}
    if main.softcap is not None:
        keys["attn_logit_softcapping"] = main.softcap
    shared = sum(attention.keys_of is not None for attention in attentions)
    if shared:
        keys["attention.shared_kv_layers"] = shared
    return keys | (_local_attention(main, local) if local else {})


def _local_attention(main: SelfAttention, local: Sequence[SelfAttention]) -> Keys:
    """Of layers with a window, and what they have otherwise than those without."""
    one, rope = local[0], _rope_of(local)
    keys: Keys = {"attention.sliding_window": one.window or 0}
    if one.key_dim != main.key_dim:
        keys |= {"attention.key_length_swa": one.key_dim, "attention.value_length_swa": one.value_dim}
    if rope is not None and main.rope is not None and (rope.theta, rope.dim) != (main.rope.theta, main.rope.dim):
        keys |= {"rope.freq_base_swa": rope.theta, "rope.dimension_count_swa": rope.dim}
    return keys


def _latent_attention(attention: LatentAttention) -> Keys:
    rotated = attention.rope.dim
    keys: Keys = {
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": attention.kv_rank,
        "attention.key_length": attention.kv_rank + rotated,
        "attention.value_length": attention.kv_rank,
        "attention.key_length_mla": attention.key_dim + rotated,
        "attention.value_length_mla": attention.value_dim,
        "rope.dimension_count": rotated,
        "rope.freq_base": attention.rope.theta,
    }
    return keys if attention.query_rank is None else keys | {"attention.q_lora_rank": attention.query_rank}


def _linear_attention(attention: LinearAttention) -> Keys:
    return {
        "ssm.conv_kernel": attention.conv_width,
        "ssm.group_count": attention.num_key_heads,
        "ssm.time_step_rank": attention.num_value_heads,
        "ssm.state_size": attention.key_dim,
        "ssm.inner_size": attention.value_dim * attention.num_value_heads,
    }


def _scales(spec: ModelSpec, name: str) -> Keys:
    """Only granite's are said; elsewhere they follow from the architecture."""
    keys: Keys = {}
    if spec.logit_softcap is not None:
        keys["final_logit_softcapping"] = spec.logit_softcap
    if name == "granite":
        keys |= {
            "embedding_scale": spec.embedding_scale,
            "residual_scale": spec.layers[0].residual_scale,
            "logit_scale": 1 / spec.logit_scale,
        }
        keys["attention.scale"] = _of_kind(spec, SelfAttention)[0].scale
    return keys


def _rope_scaling(container: Container) -> Keys:
    scaling = _scaling_of(container)
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    keys: Keys = {}
    sections = scaling.array("mrope_section")
    if sections is not None:
        keys["rope.dimension_sections"] = [*(int(one) for one in sections), 0, 0, 0, 0][:4]
    if kind not in ("linear", "yarn", "longrope", "su"):
        return keys
    keys["rope.scaling.type"] = {"su": "longrope"}.get(kind, kind)
    if "factor" in scaling.metadata:
        keys["rope.scaling.factor"] = scaling.number("factor")
    original = scaling.integer("original_max_position_embeddings", _text_of(container).integer("original_max_position_embeddings", 0))
    if original and kind != "linear":
        keys["rope.scaling.original_context_length"] = original
    if "attention_factor" in scaling.metadata:
        keys["rope.scaling.attn_factor"] = scaling.number("attention_factor")
    if kind == "yarn":
        given = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}
        keys |= {gguf: scaling.number(key) for key, gguf in given.items() if key in scaling.metadata}
        if scaling.number("mscale_all_dim", 0.0):
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * scaling.number("mscale_all_dim")
    return keys


def _scaling_of(container: Container) -> Metadata:
    """Of layers without a window."""
    text = _text_of(container)
    parameters = text.section("rope_parameters")
    if isinstance(parameters.metadata.get("full_attention"), Mapping):
        parameters = parameters.section("full_attention")
    return parameters if parameters.metadata else text.section("rope_scaling")


def _text_of(container: Container) -> Metadata:
    return container.section("text_config") if "text_config" in container.metadata else container


def _rope_of(attentions: Iterable[SelfAttention]) -> Rope | None:
    """Of the first one that has positions."""
    return next((attention.rope for attention in attentions if attention.rope is not None), None)


def _of_kind(spec: ModelSpec, kind: type[Kind]) -> list[Kind]:
    return [layer.attention for layer in spec.layers if isinstance(layer.attention, kind)]


def _one_or_all(values: Sequence[Any]) -> Any:
    return values[0] if len(set(values)) == 1 else list(values)
