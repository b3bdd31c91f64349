"""Descriptions as messages: nothing is lost, and bytes from anywhere give a sound description or one clear sentence."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.model_files.codec import (
    DESCRIPTIONS,
    manifest_from_bytes,
    manifest_to_bytes,
    spec_from_proto,
    spec_to_proto,
    unit_from_proto,
    unit_to_proto,
)
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.manifest import Manifest
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.spec import ModelSpec, PerLayerEmbedding
from dairllm.v1 import model_pb2
from tests.model_files.test_spec import ADDED, EXPERTS, FULL, LATENT, LINEAR, NORM, ROPE, layer, model
from tests.tiny_gguf import write_tiny_llama

LONG = dataclasses.replace(ROPE, long_freq_factors=(2.0,) * 8, original_context=100)
STRANGE = model(
    layer(
        dataclasses.replace(FULL, window=16, q_norm=NORM, softcap=50.0, rope=None),
        residual_scale=0.5,
        attention_norm=None,
        per_layer_input=ADDED,
    ),
    layer(
        dataclasses.replace(LATENT, bias=True, rope=LONG),
        dataclasses.replace(EXPERTS, shared_intermediate_size=48, shared_gate=True, bias=True),
        per_layer_input=ADDED,
    ),
    layer(dataclasses.replace(LINEAR, tiled=True), EXPERTS, feed_forward_post_norm=NORM, output_scale=True, per_layer_input=ADDED),
    layer(dataclasses.replace(FULL, v_norm=dataclasses.replace(NORM, weighted=False), norm_spans_heads=True), per_layer_input=ADDED),
    layer(dataclasses.replace(FULL, keys_of=3), per_layer_input=ADDED),
    embedding_scale=8.0,
    logit_softcap=30.0,
    per_layer_embedding=PerLayerEmbedding(width=8, norm=NORM, scale=0.7),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Of a small file."""
    factors = [1.0 + index / 3 for index in range(8)]
    path = tmp_path_factory.mktemp("codec") / "m.gguf"
    return build_manifest(write_tiny_llama(path, num_layers=2, head_dim=16, rope_freq_factors=factors))


@pytest.mark.parametrize("cls", DESCRIPTIONS.values(), ids=lambda cls: cls.__name__)
def test_messages_have_the_fields_of_their_descriptions(cls: type) -> None:
    """A field that is added to one and not to the other would be lost in silence."""
    descriptor = getattr(model_pb2, cls.__name__).DESCRIPTOR
    kinds = {name: choices for name, choices in descriptor.oneofs_by_name.items() if not name.startswith("_")}
    members = {field.name for choices in kinds.values() for field in choices.fields}
    hints = get_type_hints(cls)
    assert {field.name for field in descriptor.fields} - members | set(kinds) == set(hints)
    for name, choices in kinds.items():
        assert {field.message_type.name for field in choices.fields} == {one.__name__ for one in get_args(hints[name])}
    for field in dataclasses.fields(cls):
        neutral = field.default if field.default is not dataclasses.MISSING else None
        if neutral not in (None, 0, False, ()) and get_origin(hints[field.name]) is not tuple:
            assert descriptor.fields_by_name[field.name].has_presence, f"{field.name} is {neutral} when it is not written"


def test_round_trip(manifest: Manifest, smollm2_path: Path) -> None:
    for one in (manifest, build_manifest(smollm2_path)):
        assert manifest_from_bytes(manifest_to_bytes(one)) == one
    assert spec_from_proto(spec_to_proto(STRANGE)) == STRANGE
    for unit in manifest.units:
        assert unit_from_proto(unit_to_proto(unit)) == unit


def test_neutral_values_are_not_written(manifest: Manifest) -> None:
    message = spec_to_proto(manifest.spec)
    assert not message.HasField("embedding_scale")
    assert not message.layers[0].HasField("residual_scale")
    assert not message.layers[0].self_attention.HasField("window")


def test_fields_of_another_version_are_refused(manifest: Manifest) -> None:
    """They may change the arithmetic."""
    unknown = bytes([0xF8, 0x01, 0x01])  # field 31, a varint
    data = spec_to_proto(manifest.spec).SerializeToString()
    with pytest.raises(UnsupportedModel, match="ModelSpec has fields that this version does not know"):
        spec_from_proto(model_pb2.ModelSpec.FromString(data + unknown))
    message = spec_to_proto(manifest.spec)
    message.layers[1].self_attention.MergeFromString(unknown)
    with pytest.raises(UnsupportedModel, match=r"layers\[1\]: the SelfAttention has fields"):
        spec_from_proto(message)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.units.pop(), "units"),
        (lambda m: m.units[0].CopyFrom(m.units[1]), "contiguous"),
        (lambda m: m.units[1].tensors.pop(), "has the tensors"),
        (lambda m: setattr(m.units[1].tensors[1].pieces[0], "offset_bytes", 1 << 40), "offset"),
        (lambda m: setattr(m.units[1].tensors[1].pieces[0], "file_index", 1), "file_index 1"),
        (lambda m: m.units[1].tensors[1].pieces.pop(), "has 0 pieces"),
        (lambda m: m.units[1].tensors[1].pieces.append(m.units[1].tensors[1].pieces[0]), "bytes; expected"),
        (lambda m: m.units[1].tensors[0].transforms.append("rotate"), "unknown"),
        (lambda m: m.units[1].tensors[1].transforms.append("plus_one"), "only move values"),
        (lambda m: m.units[1].tensors[1].transforms.append("even_rows"), "bytes; expected"),
        (lambda m: m.units[1].tensors[1].shape.append(2), "shape"),
        (lambda m: setattr(m.units[1].tensors[1], "block_format", "IQ2_S"), "IQ2_S"),
        (lambda m: setattr(m.units[1].tensors[0], "block_format", "Q8_0"), "Q8_0"),
        (lambda m: setattr(m.units[1].tensors[1].pieces[0], "size_bytes", 1), "bytes"),
        (lambda m: setattr(m.units[1], "size_bytes", 1), "size_bytes"),
        (lambda m: setattr(m.units[1], "digest", bytes(31)), "31 bytes"),
        (lambda m: setattr(m.units[1], "digest", bytes(32)), "model_digest"),
        (lambda m: setattr(m.files[0], "size_bytes", 0), "size_bytes"),
        (lambda m: setattr(m.files[0], "name", "../x"), "without a folder"),
        (lambda m: m.files.pop(), "0 files"),
        (lambda m: m.spec.layers.pop(), "expected 3"),
        (lambda m: m.ClearField("spec"), "Manifest lacks its spec"),
        (lambda m: m.spec.ClearField("output_norm"), "ModelSpec lacks its output_norm"),
        (lambda m: m.spec.layers[1].ClearField("attention"), r"layers\[1\]: the LayerSpec lacks its attention"),
        (lambda m: setattr(m.spec.layers[1].self_attention, "num_heads", 0), r"layers\[1\]: num_heads is 0"),
        (lambda m: setattr(m.spec.layers[0].self_attention.rope, "theta", 5.0), "model_digest"),
        (lambda m: setattr(m.spec, "embedding_scale", 2.0), "model_digest"),
        (lambda m: setattr(m.spec, "embedding_scale", float("nan")), "embedding_scale is nan"),
    ],
)
def test_messages_from_elsewhere_are_not_trusted(manifest: Manifest, change: Callable[[model_pb2.Manifest], Any], expected: str) -> None:
    message = model_pb2.Manifest.FromString(manifest_to_bytes(manifest))
    change(message)
    with pytest.raises(CorruptModelFile, match=expected):
        manifest_from_bytes(message.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\xff", b"{}", b"\x0a\x05abc", bytes(1000), b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"])
def test_bytes_that_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ModelFileError):
        manifest_from_bytes(data)


@settings(max_examples=300)
@given(st.data())
def test_any_changed_bytes_are_refused_or_sound(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(manifest_to_bytes(manifest))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, 20)) * -1 or len(content) :]
    try:
        decoded = manifest_from_bytes(bytes(content))
    except ModelFileError:
        return
    assert manifest_from_bytes(manifest_to_bytes(decoded)) == decoded
    assert decoded.model_digest == manifest.model_digest, "only what no result depends on can differ"


INTEGERS = st.sampled_from([0, 1, 2, 3, 31, 64, 65_535, 2**32 - 1]) | st.integers(0, 2**32 - 1)
FLOATS = st.sampled_from([0.0, 1.0, -1.0, 1e-6, 1e300]) | st.floats()
TEXTS = st.sampled_from(["", "rms", "silu", "softmax", "llama"]) | st.text(max_size=300)
VALUES: dict[type, st.SearchStrategy[Any]] = {int: INTEGERS, float: FLOATS, str: TEXTS, bool: st.booleans()}


def scramble(message: Any, data: st.DataObject) -> None:
    """Another value for one field somewhere in the message, or none, or one more."""
    field = data.draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    held: Any = getattr(message, field.name)
    changed = data.draw(st.integers(0, 4))
    if changed == 0:
        message.ClearField(field.name)
    elif isinstance(held, (int, float, str)):
        setattr(message, field.name, data.draw(VALUES[type(held)]))
    elif isinstance(held, Message):
        held.SetInParent()
        scramble(held, data)
    elif field.message_type is None:
        held.extend(data.draw(st.lists(FLOATS if field.cpp_type == field.CPPTYPE_DOUBLE else INTEGERS, max_size=3)))
    else:
        scramble(data.draw(st.sampled_from(list(held))) if held and changed > 1 else held.add(), data)


@settings(max_examples=300)
@given(st.data())
def test_any_changed_description_is_refused_or_sound(data: st.DataObject) -> None:
    message = spec_to_proto(STRANGE)
    for _ in range(data.draw(st.integers(1, 3))):
        scramble(message, data)
    try:
        spec = spec_from_proto(message)
    except ModelFileError:
        return
    assert isinstance(spec, ModelSpec)
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert spec.needed_features()
