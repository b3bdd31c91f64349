"""What config.json and GGUF's metadata ask for and nobody computes is refused by the name of its key; anything else never crashes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dairllm.model_files.architectures import architecture_of, architectures
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.containers.metadata import metadata_from_json
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.roles import unit_shapes
from dairllm.model_files.spec import ModelSpec
from tests.instruments.golden import TINY
from tests.tiny_gguf import write_tiny_llama

FOLDERS = sorted(folder.name for folder in TINY.iterdir() if (folder / "config.json").exists())
CONTAINERS = {name: open_container(TINY / name) for name in FOLDERS}
CONFIGS: dict[str, dict[str, Any]] = {name: json.loads((TINY / name / "config.json").read_text()) for name in FOLDERS}


def with_config(name: str, **changes: Any) -> Container:
    """The folder as if its config.json had other values; None: lacked the key."""
    return dataclasses.replace(CONTAINERS[name], metadata=metadata_from_json({**CONFIGS[name], **changes}))


def spec_of(container: Container) -> ModelSpec:
    return architecture_of(container).read_spec(container)


def check(container: Container) -> None:
    architecture = architecture_of(container)
    architecture.unit_tensors(container, architecture.read_spec(container))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama", {"model_type": "mamba"}, "'mamba' is not supported; expected one of .*llama"),
        ("llama", {"hidden_act": "relu"}, "hidden_act to 'relu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ("llama", {"sliding_window": 16, "model_type": "qwen2", "use_qk_norm": True}, "use_qk_norm to True"),
        ("llama", {"clip_qkv": 8.0}, "clip_qkv to 8.0"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping to 30.0"),
        ("llama", {"n_routed_experts": 8}, "n_routed_experts to 8"),
        ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
        ("llama", {"is_causal": False, "use_bidirectional_attention": True}, "use_bidirectional_attention to True"),
        (
            "gemma3",
            {"layer_types": ["linear_attention"] * 7},
            "'linear_attention', which is not supported; expected full_attention or sliding",
        ),
        ("qwen2", {"layer_types": ["chunked_attention"] * 3, "use_sliding_window": True, "sliding_window": 4}, "'chunked_attention'"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_key(name: str, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UnsupportedModel, match=expected):
        spec_of(with_config(name, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hidden_size": None}, "lacks the metadata key hidden_size"),
        ({"num_hidden_layers": 5000}, "num_hidden_layers 5000; expected 1 to 1024"),
        ({"num_attention_heads": "4"}, "num_attention_heads; expected an integer"),
        ({"vocab_size": 255}, "256 rows"),
        ({"model_type": None}, "model_type"),
        ({"num_hidden_layers": 4}, r"lacks the tensor 'model\.layers\.3"),
        ({"intermediate_size": 64}, r"expected \(64, 64\)"),
        ({"attention_bias": True}, r"self_attn\.q_proj\.bias"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 0.5}}, "factor 0.5"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.0] * 16}}, "short_factor"),
    ],
)
def test_what_contradicts_the_weights_is_named(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(CorruptModelFile, match=expected):
        check(with_config("llama", **changes))


def test_a_layer_too_much_is_a_tensor_that_nobody_uses() -> None:
    with pytest.raises(UnsupportedModel, match=r"'model\.layers\.2\.input_layernorm\.weight'"):
        check(with_config("llama", num_hidden_layers=2))
    check(with_config("llama", num_hidden_layers=2, num_nextn_predict_layers=1))


def refusal_of(container: Container) -> str | None:
    try:
        check(container)
    except ModelFileError as error:
        return str(error)
    return None


def rope_with(**parameters: Any) -> Rope:
    attention = spec_of(with_config("llama", rope_parameters={"rope_theta": 1e4, **parameters})).layers[0].attention
    assert isinstance(attention, SelfAttention)
    assert attention.rope is not None
    return attention.rope


def test_a_longer_context_has_its_own_factors() -> None:
    factors = {"short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "original_max_position_embeddings": 64}
    rope = rope_with(rope_type="longrope", **factors)
    assert rope.magnitude == pytest.approx((1 + 2 / 6) ** 0.5)
    assert rope.for_context(64) == dataclasses.replace(rope, long_freq_factors=(), original_context=None)
    assert rope.for_context(65).freq_factors == (2.0,) * 16


def test_older_keys_say_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    newer = spec_of(with_config("llama", rope_parameters={**scaling, "rope_type": "llama3", "rope_theta": 5e5}))
    older = spec_of(with_config("llama", rope_parameters=None, rope_theta=5e5, rope_scaling={**scaling, "type": "llama3"}))
    assert newer == older


@pytest.mark.parametrize("name", FOLDERS)
def test_every_byte_of_every_unit_is_of_some_tensor(name: str) -> None:
    container = CONTAINERS[name]
    architecture = architecture_of(container)
    spec = architecture.read_spec(container)
    units = architecture.unit_tensors(container, spec)
    assert [[tensor.role for tensor in unit] for unit in units] == [list(unit_shapes(spec, index)) for index in range(spec.num_units)]
    pieces = {piece for unit in units for tensor in unit for piece in tensor.pieces}
    covered = {(piece.file_index, byte) for piece in pieces for byte in (piece.offset_bytes, piece.offset_bytes + piece.size_bytes - 1)}
    firsts = {(tensor.file_index, tensor.offset_bytes) for tensor in container.tensors.values()}
    assert len(firsts - covered) == 0 or name.startswith("gemma4")


LITTLE = st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["", "yarn", "silu", "full_attention"])
VALUES = st.recursive(
    LITTLE | st.integers(-(2**63), 2**63),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "rope_theta", "0"]), inner),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_config_gives_a_description_or_one_sentence(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FOLDERS))
    keys = st.sampled_from([*CONFIGS[name], "rope_scaling", "rope_theta", "sliding_window", "n_group", "layer_types", "no_rope_layers"])
    changes = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=4))
    sentence = refusal_of(with_config(name, **changes))
    assert sentence is None or 10 < len(sentence) < 1000
    assert "\n" not in (sentence or "")


GGUF_KEYS = st.sampled_from(
    [
        *("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_count"),
        *("attention.key_length", "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scaling.original_context_length", "attention.sliding_window", "attention.sliding_window_pattern"),
        *("full_attention_interval", "nextn_predict_layers", "ssm.state_size", "attention.kv_lora_rank", "expert_used_count"),
    ]
)
GGUF_VALUES = LITTLE | st.lists(st.integers(0, 9), min_size=1, max_size=5).map(np.array) | st.sampled_from(["linear", "yarn", "longrope"])


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Container:
    return open_container(write_tiny_llama(tmp_path_factory.mktemp("gguf") / "m.gguf"))


@settings(max_examples=300, deadline=None)
@example(name="gemma3", changes={"full_attention_interval": 2})
@given(name=st.sampled_from(sorted(architectures())), changes=st.dictionaries(GGUF_KEYS, GGUF_VALUES, max_size=4))
def test_any_metadata_of_gguf_gives_a_description_or_one_sentence(gguf: Container, name: str, changes: dict[str, Any]) -> None:
    given_keys = {key.replace("llama.", f"{name}.", 1): value for key, value in gguf.metadata.items()}
    changed = {f"{name}.{key}": value for key, value in changes.items() if value is not None}
    sentence = refusal_of(dataclasses.replace(gguf, metadata={**given_keys, **changed, "general.architecture": name}))
    assert sentence is None or 10 < len(sentence) < 1000


@pytest.mark.parametrize(("prefix", "output"), [("model.language_model.", "lm_head"), ("language_model.model.", "language_model.lm_head")])
def test_a_model_that_also_sees_is_read_by_its_text(prefix: str, output: str) -> None:
    container = CONTAINERS["llama"]
    names = {name: name.replace("model.", prefix, 1).replace("lm_head", output) for name in container.tensors}
    tensors = {names[name]: dataclasses.replace(tensor, name=names[name]) for name, tensor in container.tensors.items()}
    tensors["model.visual.patch.weight"] = dataclasses.replace(next(iter(tensors.values())), name="model.visual.patch.weight")
    config = {"model_type": "seeing", "text_config": CONFIGS["llama"], "vision_config": {"hidden_size": 7}}
    whole = dataclasses.replace(container, metadata=metadata_from_json(config), tensors=tensors)
    check(whole)
    assert spec_of(whole) == spec_of(container)


def test_experts_are_described() -> None:
    folders = [name for name in FOLDERS if "moe" in name or name == "mixtral"]
    assert folders
    for name in folders:
        assert any(isinstance(layer.feed_forward, ExpertFeedForward) for layer in spec_of(CONTAINERS[name]).layers)


def test_the_folder_may_be_named_by_any_of_its_files() -> None:
    assert open_container(TINY / "llama" / "config.json").tensors == CONTAINERS["llama"].tensors
    assert Path(CONTAINERS["llama"].path).name == "llama"
