"""Containers from anywhere: whatever a file or a folder holds, it is a model or one sentence says why not, in bounded memory."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.containers import Container, open_container
from dairllm.model_files.containers.bounded_json import parse_json_object
from dairllm.model_files.errors import ModelFileError
from tests.instruments.golden import TINY
from tests.instruments.stored_models import safetensors_bytes, stored, write_distributed_llama, write_split
from tests.tiny_gguf import write_tiny_llama

INDEX = "model.safetensors.index.json"
MIB = 1 << 20

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def require_sentence(error: ModelFileError) -> None:
    assert str(error).isprintable()


def opened(path: Path) -> Container | None:
    """None for a refusal in one sentence."""
    try:
        container = open_container(path)
    except ModelFileError as error:
        require_sentence(error)
        return None
    for tensor in container.tensors.values():
        assert 0 < tensor.offset_bytes + tensor.size_bytes <= container.files[tensor.file_index].size_bytes
        assert all(length > 0 for length in tensor.shape)
    return container


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def sound_files(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """By name, small files of each kind, and as many of their first bytes as are changed."""
    folder = tmp_path_factory.mktemp("sound")
    shape: dict[str, Any] = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1}
    shape |= {"head_dim": 16, "vocab_size": 32}
    whole = write_tiny_llama(folder / "whole.gguf", **shape)
    parts = write_split(whole, folder / "parts", 2)
    return {
        "whole.gguf": whole.read_bytes(),
        "parts/tiny-00001-of-00002.gguf": parts[0].read_bytes(),
        "parts/tiny-00002-of-00002.gguf": parts[1].read_bytes(),
        "m/model.m": write_distributed_llama(folder / "model.m", TINY / "llama").read_bytes(),
        "folder/model.safetensors": safetensors_bytes({name: stored(np.zeros((2, 3), np.float32)) for name in ("a", "b")}),
        "folder/config.json": b'{"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}, "list": [1, 2, "a"]}',
        f"folder/{INDEX}": json.dumps({"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}).encode(),
    }


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


HEADER_BYTES = 1500
"""So many bytes of a file are changed: where its header is."""


@given(st.data())
def test_changed_bytes_give_a_model_or_a_sentence(sound_files: dict[str, bytes], scratch: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(sound_files)))
    damaged = bytearray(sound_files[name])
    for position in data.draw(st.lists(st.integers(0, min(len(damaged), HEADER_BYTES) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.sampled_from([0, 0x22, 0x2F, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    write_all(scratch, sound_files | {name: bytes(damaged)})
    opened(scratch / name)


@given(st.data())
def test_truncated_and_extended_files_give_a_model_or_a_sentence(sound_files: dict[str, bytes], scratch: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(sound_files)))
    sound = sound_files[name]
    size = data.draw(st.integers(0, min(len(sound), HEADER_BYTES)) | st.integers(len(sound) - 20, len(sound)))
    write_all(scratch, sound_files | {name: sound[:size] + data.draw(st.binary(max_size=10))})
    opened(scratch / name)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_told(scratch: Path, data: bytes) -> None:
    (scratch / "any").write_bytes(data)
    assert opened(scratch / "any") is None


@given(value=values)
def test_any_config_and_index(sound_files: dict[str, bytes], scratch: Path, value: Any) -> None:
    text = json.dumps(value).encode()
    for name in ("config.json", INDEX):
        write_all(scratch, sound_files | {f"folder/{name}": text})
        opened(scratch / "folder")
    write_all(scratch, sound_files | {f"folder/{INDEX}": json.dumps({"weight_map": value}).encode()})
    opened(scratch / "folder")


@given(entry=values, name=st.text(max_size=10))
def test_any_entry_of_a_safetensors_header(sound_files: dict[str, bytes], scratch: Path, entry: Any, name: str) -> None:
    text = json.dumps({name: entry}).encode()
    write_all(scratch, sound_files | {"folder/model.safetensors": struct.pack("<Q", len(text)) + text + bytes(64)})
    opened(scratch / "folder" / "model.safetensors")


@given(layers=values, more=st.dictionaries(st.text(max_size=10), values, max_size=3))
def test_any_manifest_of_ollama(scratch: Path, layers: Any, more: Mapping[str, Any]) -> None:
    path = scratch / "manifests" / "h" / "n" / "m" / "t"
    path.parent.mkdir(parents=True, exist_ok=True)
    model = {"mediaType": "application/vnd.ollama.image.model", **more}
    for value in (layers, [layers], [model]):
        path.write_text(json.dumps({"schemaVersion": 2, "layers": value}))
        assert opened(path) is None


def strings_of_gguf(count: int) -> bytes:
    """Two characters each, the costliest ones."""
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 1)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<IIQ", 9, 8, count)
        + count * (struct.pack("<Q", 2) + b"ab")
    )


def texts_of_gguf(count: int, size: int) -> bytes:
    """One character that needs four bytes makes all the others do."""
    text = "\U0001f600".encode() + (size - 4) * b"a"
    keys = (struct.pack("<Q", 4) + f"{number:04d}".encode() + struct.pack("<IQ", 8, size) + text for number in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, 0, count) + b"".join(keys)


def tensors_of_gguf(count: int) -> bytes:
    infos = (struct.pack("<Q", 5) + f"{number:05d}".encode() + struct.pack("<IQIQ", 1, 1, 0, 32 * number) for number in range(count))
    return b"GGUF" + struct.pack("<IQQ", 3, count, 0) + b"".join(infos) + bytes(32 * count + 64)


def entries_of_safetensors(count: int) -> bytes:
    return safetensors_bytes({f"{number:x}": ("U8", (1,), b"x") for number in range(count)})


HOSTILE: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "strings": ("a.gguf", lambda: strings_of_gguf(800_000)),
    "texts": ("a.gguf", lambda: texts_of_gguf(10, 8 * MIB)),
    "tensors": ("a.gguf", lambda: tensors_of_gguf(60_000)),
    "lists in a config": ("folder/config.json", lambda: b'{"a": [' + b"[]," * MIB + b"1]}"),
    "objects in an index": (f"folder/{INDEX}", lambda: b'{"weight_map": [' + b'{"":0},' * (2 * MIB) + b"1]}"),
    "strings in an index": (f"folder/{INDEX}", lambda: b'{"weight_map": [' + b'"ab",' * (3 * MIB) + b"1]}"),
    "numbers in an index": (f"folder/{INDEX}", lambda: b'{"weight_map": [' + b"300," * (4 * MIB) + b"1]}"),
    "entries in a header": ("folder/model.safetensors", lambda: entries_of_safetensors(80_000)),
    "lists in a header": ("folder/model.safetensors", lambda: struct.pack("<Q", 12 * MIB) + b'{"a":[' + b"[]," * (4 * MIB)),
    "layers": ("m/model.m", lambda: struct.pack("<2i", 0x0A00ABCD, 80) + struct.pack("<18i", *sum(enumerate_m(1 << 26), ())) + bytes(MIB)),
}


def enumerate_m(layers: int) -> list[tuple[int, int]]:
    """Keys of a model of one number by one."""
    return [(1, 0xABCD00), (2, 1), (3, 1), (4, layers), (5, 1), (6, 1), (9, 1), (10, 1), (13, 0)]


@pytest.mark.parametrize("case", HOSTILE)
def test_memory_stays_in_proportion_to_the_file(sound_files: dict[str, bytes], tmp_path: Path, case: str) -> None:
    name, content = HOSTILE[case]
    write_all(tmp_path, sound_files | {name: content()})
    size = os.path.getsize(tmp_path / name)
    tracemalloc.start()
    try:
        opened(tmp_path / name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 4 * size + 64 * MIB, f"{peak / MIB:.0f} MiB for {size / MIB:.0f} MiB"


@given(data=st.text(alphabet='{}[]",:\\0 ab1e-', max_size=60))
def test_json_is_an_object_or_a_sentence(data: str) -> None:
    try:
        value = parse_json_object(data.encode(), "it")
    except ModelFileError as error:
        require_sentence(error)
        return
    assert isinstance(value, dict)
