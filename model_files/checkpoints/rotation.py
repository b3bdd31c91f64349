"""Rotary positions as a container describes them: a base, a kind of scaling, or factors that are stored as tensors.

Every scaling becomes divisors of the frequencies (`Rope.freq_factors`) and a magnitude. Formulas: linear (arXiv:2306.15595), YaRN
(arXiv:2309.00071, section 3), LongRoPE (arXiv:2402.13753), Llama 3.1's (arXiv:2407.21783), and `proportional`, which leaves the last pairs
as they are (https://huggingface.co/docs/transformers/main/en/internal/rope_utils).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dairllm.model_files.attention import MAX_HEAD_DIM, NO_ROTATION, Rope
from dairllm.model_files.checkpoints.config import Config
from dairllm.model_files.containers import Container, Metadata
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.reader import FileSource

DEFAULT_THETA = 10_000.0
_SHORT_FACTORS, _LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
_GGUF_SCALING = (
    ("rope.scale_linear", "factor"),
    ("rope.scaling.factor", "factor"),
    ("rope.scaling.yarn_beta_fast", "beta_fast"),
    ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ("rope.scaling.attn_factor", "attention_factor"),
)


class Rotation(NamedTuple):
    """theta: its base. kind: of scaling. scaling: its parameters. fraction: of a head that is rotated. stored: name of a tensor with
    factors that come on top, if it is there. truncates: as in `rope_of`."""

    theta: float
    kind: str
    scaling: Metadata
    fraction: float = 1.0
    stored: str = ""
    truncates: bool = True


class Scaled(NamedTuple):
    """factors: divisors of the frequencies; none: all 1. long, original_context: as in Rope."""

    factors: Sequence[float] = ()
    magnitude: float = 1.0
    long: Sequence[float] = ()
    original_context: int | None = None


def rope_of(
    config: Config,
    head_dim: int,
    *,
    interleaved: bool,
    transformers_interleaved: bool = False,
    layer_type: str = "",
    default_theta: float = DEFAULT_THETA,
    truncates: bool = True,
) -> Rope:
    """Of layers of this type, where types differ. interleaved, transformers_interleaved: how rotary pairs lie in GGUF and elsewhere, where
    nothing else is said. truncates: YaRN rounds the numbers of the pairs between which it changes."""
    rotation = _gguf_rotation(config, layer_type, default_theta) if config.is_gguf else _rotation(config, layer_type, default_theta)
    dim = _rotated_dim(config, rotation, layer_type, head_dim)
    if not (0 < dim <= MAX_HEAD_DIM and dim % 2 == 0 and 1.0 <= rotation.theta <= 1e12):
        raise CorruptModelFile(
            f"{config.container.path} rotates {dim} numbers of a head of {head_dim} with the base {rotation.theta:g}; expected an "
            f"even number of at most {MAX_HEAD_DIM}, and 1 to 1e+12"
        )
    scaled = _scaled(config, rotation, dim, truncates)
    return Rope(
        theta=rotation.theta,
        dim=dim,
        interleaved=interleaved if config.is_gguf else config.boolean("rope_interleave", transformers_interleaved),
        freq_factors=tuple(map(float, scaled.factors)),
        magnitude=scaled.magnitude,
        long_freq_factors=tuple(map(float, scaled.long)),
        original_context=scaled.original_context,
    )


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """By how much YaRN makes scores larger to keep their entropy, squared once by queries and keys."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def score_magnitude(config: Config, layer_type: str = "") -> float:
    """What latent attention multiplies its scores by where YaRN says `mscale_all_dim`."""
    if config.is_gguf:
        factor, log_multiplier = config.number("rope.scaling.factor", 1.0), config.number("rope.scaling.yarn_log_multiplier", 0.0)
        return yarn_magnitude(factor, log_multiplier * 10) ** 2 if log_multiplier else 1.0
    rotation = _rotation(config, layer_type, DEFAULT_THETA)
    mscale = rotation.scaling.number("mscale_all_dim", 0.0) if rotation.kind == "yarn" else 0.0
    return yarn_magnitude(rotation.scaling.number("factor", 1.0), mscale) ** 2 if mscale else 1.0


def _rotation(config: Config, layer_type: str, default_theta: float) -> Rotation:
    """From rope_parameters, which may have a section for each type of layer, or from the older rope_theta and rope_scaling."""
    parameters = config.section("rope_parameters")
    older = config.section("rope_scaling")
    if layer_type and isinstance(parameters.metadata.get(layer_type), Mapping):
        parameters = parameters.section(layer_type)
    scaling = parameters if parameters.metadata else older
    is_local = layer_type == "sliding_attention" and config.has("rope_local_base_freq")
    theta = config.number("rope_local_base_freq") if is_local else config.number("rope_theta", default_theta)
    if is_local:
        scaling = Metadata(older.path, {}, inside=older.inside)
    return Rotation(
        theta=parameters.number("rope_theta", theta),
        kind=scaling.text("rope_type", scaling.text("type", "default")),
        scaling=scaling,
        fraction=scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0)),
    )


def _gguf_rotation(config: Config, layer_type: str, default_theta: float) -> Rotation:
    """Layers with a window have a base of their own, and no scaling."""
    path = config.container.path
    if layer_type == "sliding_attention":
        return Rotation(config.number("rope.freq_base_swa", default_theta), "default", Metadata(path, {}))
    kind, scaling = _gguf_kind(config), _gguf_scaling(config)
    if kind == "yarn":
        scaling["attention_factor"] = _gguf_yarn_attention(config, scaling)
    return Rotation(config.number("rope.freq_base", default_theta), kind, Metadata(path, scaling), stored="rope_freqs.weight")


def _gguf_kind(config: Config) -> str:
    """Factors of LongRoPE are told by their tensors only; a factor without a kind is a linear one."""
    if _LONG_FACTORS in config.container.tensors:
        return "longrope"
    factor = config.number("rope.scaling.factor", config.number("rope.scale_linear", 0.0))
    kind = config.text("rope.scaling.type", "linear" if factor else "none")
    return "default" if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)) else kind


def _gguf_scaling(config: Config) -> dict[str, float]:
    scaling = {theirs: config.number(ours) for ours, theirs in _GGUF_SCALING if config.has(ours)}
    if config.has("rope.scaling.original_context_length"):
        scaling["original_max_position_embeddings"] = config.integer("rope.scaling.original_context_length")
    return scaling


def _gguf_yarn_attention(config: Config, scaling: Mapping[str, float]) -> float:
    """llama.cpp's own factor comes on top of the one that is stated; with a log multiplier the scores are multiplied instead
    (`score_magnitude`)."""
    if config.number("rope.scaling.yarn_log_multiplier", 0.0):
        return 1.0
    return scaling.get("attention_factor", 1.0) * yarn_magnitude(scaling.get("factor", 1.0))


def _rotated_dim(config: Config, rotation: Rotation, layer_type: str, head_dim: int) -> int:
    if config.is_gguf:
        return config.integer("rope.dimension_count_swa" if layer_type == "sliding_attention" else "rope.dimension_count", head_dim)
    if not 0.0 < rotation.fraction <= 1.0:
        raise CorruptModelFile(
            f"{config.container.path} has partial_rotary_factor {rotation.fraction:g}; expected more than 0 and at most 1"
        )
    return head_dim if rotation.kind == "proportional" else int(head_dim * rotation.fraction)


def _scaled(config: Config, rotation: Rotation, dim: int, truncates: bool) -> Scaled:
    scale = _SCALINGS.get(rotation.kind)
    if scale is None:
        kinds = ", ".join(repr(kind) for kind in _SCALINGS)
        raise UnsupportedModel(
            f"{config.container.path} sets the rope type to {rotation.kind[:40]!r}, which is not supported; expected one of {kinds}"
        )
    scaled = scale(config, rotation._replace(truncates=truncates), dim)
    stored = _stored_factors(config.container, rotation.stored, dim) if rotation.stored else None
    if stored is None:
        return scaled
    return scaled._replace(factors=[one * other for one, other in zip(scaled.factors or (1.0,) * len(stored), stored, strict=True)])


def _default(config: Config, rotation: Rotation, dim: int) -> Scaled:
    return Scaled()


def _linear(config: Config, rotation: Rotation, dim: int) -> Scaled:
    factor = rotation.scaling.number("factor")
    return Scaled() if factor == 1.0 else Scaled((factor,) * (dim // 2))


def _llama3(config: Config, rotation: Rotation, dim: int) -> Scaled:
    """Long wavelengths are stretched by the factor, short ones not at all, those between by something between."""
    scaling = rotation.scaling
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    original, factor = scaling.integer("original_max_position_embeddings"), scaling.number("factor")
    if not low < high:
        raise CorruptModelFile(f"{scaling.path} has {scaling.inside}low_freq_factor {low:g}; expected less than high_freq_factor, {high:g}")
    wavelengths = 2 * math.pi * rotation.theta ** (np.arange(0, dim, 2) / dim)
    kept = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return Scaled((1 / ((1 - kept) / _at_least_one(scaling, factor) + kept)).tolist())


def _yarn(config: Config, rotation: Rotation, dim: int) -> Scaled:
    scaling = rotation.scaling
    original = scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    factor = _at_least_one(scaling, scaling.number("factor"))
    low, high = (_pair_of(turns, original, rotation.theta, dim) for turns in _turns(scaling))
    if scaling.boolean("truncate", rotation.truncates):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return Scaled((1 / (ramp / factor + (1 - ramp))).tolist(), _yarn_attention(scaling, factor))


def _turns(scaling: Metadata) -> tuple[float, float]:
    """Pairs that turn at least so often within the original context are not stretched; fully so if they turn at most so often."""
    found = scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)
    if not all(1e-6 <= turns <= 1e6 for turns in found):
        raise CorruptModelFile(f"{scaling.path} has {scaling.inside}beta_fast and beta_slow {found}; expected numbers from 1e-06 to 1e+06")
    return found


def _pair_of(turns: float, context: int, theta: float, dim: int) -> float:
    """The number of the pair that turns so often within the context."""
    if context < 1 or theta <= 1:
        raise CorruptModelFile(
            f"YaRN has an original context of {context} tokens and the base {theta:g}; expected a positive number and more than 1"
        )
    return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))


def _yarn_attention(scaling: Metadata, factor: float) -> float:
    stated = scaling.number("attention_factor", 0.0)
    if stated:
        return stated
    mscale, mscale_all = scaling.number("mscale", 0.0), scaling.number("mscale_all_dim", 0.0)
    if mscale and mscale_all:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    return yarn_magnitude(factor)


def _longrope(config: Config, rotation: Rotation, dim: int) -> Scaled:
    scaling = rotation.scaling
    longest = config.integer("max_position_embeddings")
    original = scaling.integer("original_max_position_embeddings", 0) or config.integer("original_max_position_embeddings", 0) or longest
    if config.is_gguf:
        short, long = (_stored_factors(config.container, name, dim) for name in (_SHORT_FACTORS, _LONG_FACTORS))
        if short is None or long is None:
            raise CorruptModelFile(f"{config.container.path} has longrope scaling, but not both {_SHORT_FACTORS} and {_LONG_FACTORS}")
    else:
        short, long = (_listed_factors(scaling, key) for key in ("short_factor", "long_factor"))
    stretched = max(1.0, longest / max(1, original))
    magnitude = scaling.number("attention_factor", 0.0) or (
        math.sqrt(1 + math.log(stretched) / math.log(original)) if stretched > 1 and original > 1 else 1.0
    )
    return Scaled(short, magnitude, long, original)


def _listed_factors(scaling: Metadata, key: str) -> list[float]:
    values = scaling.array(key)
    if values is None:
        raise CorruptModelFile(f"{scaling.path} lacks the metadata key {scaling.inside}{key}")
    return [float(one) for one in values]


def _proportional(config: Config, rotation: Rotation, dim: int) -> Scaled:
    rotated = int(rotation.fraction * dim // 2)
    factor = _at_least_one(rotation.scaling, rotation.scaling.number("factor", 1.0))
    return Scaled([factor if index < rotated else NO_ROTATION for index in range(dim // 2)])


def _at_least_one(scaling: Metadata, factor: float) -> float:
    if not 1.0 <= factor <= 1e6:
        raise CorruptModelFile(f"{scaling.path} has {scaling.inside}factor {factor:g}; expected a number from 1 to 1e+06")
    return factor


_SCALINGS: Mapping[str, Callable[[Config, Rotation, int], Scaled]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "proportional": _proportional,
}


def _stored_factors(container: Container, name: str, dim: int) -> list[float] | None:
    """A vector of half as many numbers as are rotated. None: there is none."""
    tensor = container.tensors.get(name)
    if tensor is None:
        return None
    if tensor.block_format.name != "F32" or len(tensor.shape) != 1:
        raise UnsupportedModel(f"{name} is {tensor.block_format.name} of shape {tensor.shape}; expected a vector of F32")
    if tensor.shape[0] != dim // 2:
        raise CorruptModelFile(f"{name} has {tensor.shape[0]} values; expected half of the {dim} rotated dimensions")
    with FileSource(container.files[tensor.file_index].path) as source:
        factors: list[float] = np.frombuffer(source.read(tensor.offset_bytes, tensor.size_bytes), "<f4").astype(float).tolist()
    return [min(factor, NO_ROTATION) if math.isfinite(factor) else factor for factor in factors]
