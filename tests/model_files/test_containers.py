"""What a model lies in: files whole, in parts and behind links, folders, stores of other programs; and what is none."""

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dairllm.model_files.containers import Container, Conventions, open_container
from dairllm.model_files.containers.ollama import find_in_ollama
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnknownModelName, UnsupportedModel
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.reader import FileSource
from tests.instruments.golden import TINY
from tests.instruments.stored_models import (
    safetensors_bytes,
    stored,
    write_distributed_llama,
    write_hub_cache,
    write_ollama_store,
    write_sharded_folder,
    write_split,
)
from tests.tiny_gguf import TinyLlama, random_weights, read_safetensors, write_llama, write_tiny_llama

INDEX = "model.safetensors.index.json"
ONE = {"a": stored(np.zeros((2, 4), np.float32))}


def values_in(container: Container, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    tensor = container.tensors[name]
    assert tensor.block_format.name == "F32"
    with FileSource(container.files[tensor.file_index].path) as source:
        return np.frombuffer(source.read(tensor.offset_bytes, tensor.size_bytes), "<f4").reshape(tensor.shape)


def refusal(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        open_container(path)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def split(tiny_path: Path, tmp_path: Path) -> list[Path]:
    return write_split(tiny_path, tmp_path / "split")


def test_any_part_of_a_split_file_stands_for_all(tiny_path: Path, split: list[Path]) -> None:
    whole = open_container(tiny_path)
    for part in split:
        container = open_container(part)
        assert container.paths == tuple(split)
        assert container.name == "tiny"
        assert container.tensors.keys() == whole.tensors.keys()
        assert container.text("general.architecture") == "llama"
        assert (values_in(container, "blk.1.attn_q.weight") == values_in(whole, "blk.1.attn_q.weight")).all()
    assert open_container(split[0].parent).paths == tuple(split)


def test_a_split_model_has_the_digest_of_the_whole_one(tiny_path: Path, split: list[Path], cache_home: Path) -> None:
    manifest = build_manifest(split[1])
    assert [file.name for file in manifest.files] == [path.name for path in split]
    assert manifest.model_digest == build_manifest(tiny_path).model_digest


def test_a_missing_part_is_named(split: list[Path]) -> None:
    split[2].unlink()
    for part in split[:2]:
        assert split[2].name in str(refusal(part))


def test_parts_that_do_not_belong_together_are_refused(tiny_path: Path, split: list[Path], tmp_path: Path) -> None:
    whole = split[1].read_bytes()
    split[1].write_bytes(split[0].read_bytes())
    assert "split.no 0" in str(refusal(split[0]))
    split[1].write_bytes(tiny_path.read_bytes())
    assert "split.count 1" in str(refusal(split[0]))
    split[1].write_bytes(whole)
    split[1].rename(tmp_path / "renamed.gguf")
    assert "one of 3 parts" in str(refusal(tmp_path / "renamed.gguf"))


def test_parts_behind_links_are_found(split: list[Path], tmp_path: Path) -> None:
    """In a hub's cache beside the link, whose target has another name; elsewhere beside what the link leads to."""
    snapshot = write_hub_cache(tmp_path / "hub", "somebody", "tiny", split)
    assert open_container(snapshot / split[1].name).paths == tuple(snapshot / path.name for path in split)
    assert open_container(tmp_path / "hub" / "models--somebody--tiny").paths[0].parent == snapshot
    (tmp_path / "link.gguf").symlink_to(split[2])
    assert open_container(tmp_path / "link.gguf").paths == tuple(split)


def test_a_blob_of_a_hub_cache_alone_is_a_part_without_the_others(split: list[Path], tmp_path: Path) -> None:
    snapshot = write_hub_cache(tmp_path / "hub", "somebody", "tiny", split)
    assert "expected a name that ends in -00001-of-00003.gguf" in str(refusal((snapshot / split[0].name).resolve()))


def test_version_2_is_read_as_version_3(tiny_path: Path, tmp_path: Path) -> None:
    data = tiny_path.read_bytes()
    (tmp_path / "old.gguf").write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    assert open_container(tmp_path / "old.gguf").tensors == open_container(tiny_path).tensors


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_folder_in_one_file_or_several_has_the_same_tensors(tmp_path: Path, dtype: str) -> None:
    folder = write_sharded_folder(TINY / "llama", tmp_path / "sharded", 3, dtype)
    whole, sharded = open_container(TINY / "llama"), open_container(folder)
    assert whole.conventions == sharded.conventions == Conventions.TRANSFORMERS
    assert sharded.name == "sharded"
    assert len(sharded.files) == 3
    shapes = {name: tensor.shape for name, tensor in whole.tensors.items()}
    assert {name: tensor.shape for name, tensor in sharded.tensors.items()} == shapes
    assert {tensor.block_format.name for tensor in sharded.tensors.values()} == {dtype}
    if dtype == "F32":
        for name, values in read_safetensors(TINY / "llama" / "model.safetensors").items():
            assert (values_in(sharded, name) == values).all()


def test_any_file_of_a_folder_stands_for_it(tmp_path: Path) -> None:
    folder = write_sharded_folder(TINY / "llama", tmp_path / "sharded")
    for name in os.listdir(folder):
        assert open_container(folder / name).paths == open_container(folder).paths
    (folder / INDEX).unlink()
    assert len(open_container(folder).files) == 2, "names of parts say it, too"


def test_config_is_read_by_key(tmp_path: Path) -> None:
    config = {
        **{"n": 3, "x": 0.5, "s": "text", "b": True, "none": None, "words": ["a", "b"], "numbers": [1, 2], "mixed": [1, "a"]},
        **{"empty": [], "inner": {"n": 4}, "large": 1 << 63},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(ONE))
    container = open_container(tmp_path)
    assert (container.integer("n"), container.number("n"), container.number("x"), container.text("s")) == (3, 3.0, 0.5, "text")
    assert container.boolean("b")
    assert container.texts("words") == ["a", "b"]
    assert container.texts("empty") == []
    assert container.integer("none", 7) == 7, "null is as good as missing"
    assert container.section("inner").integer("n") == 4
    numbers, empty = container.array("numbers"), container.array("empty")
    assert numbers is not None
    assert empty is not None
    assert (numbers.tolist(), empty.tolist()) == ([1, 2], [])
    for read, expected in (
        (lambda: container.integer("x"), "has 0.5 as x; expected an integer"),
        (lambda: container.section("inner").text("n"), r"has 4 as inner\.n; expected a string"),
        (lambda: container.section("inner").text("m"), r"lacks the metadata key inner\.m"),
        (lambda: container.texts("mixed"), "expected a list of strings"),
        (lambda: container.section("n"), "expected an object"),
        (lambda: container.boolean("inner"), "has an object as inner"),
    ):
        with pytest.raises(CorruptModelFile, match=expected):
            read()


def test_companions_are_the_files_beside_the_weights(tmp_path: Path) -> None:
    shutil.copytree(TINY / "llama", tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "README.md").write_text("x")
    assert open_container(tmp_path / "m").companions == {"tokenizer.json": tmp_path / "m" / "tokenizer.json"}


@pytest.mark.parametrize("name", ["llama", "llama3-rope"])
@pytest.mark.parametrize("weight_type", ["F32", "Q4_0", "Q8_0"])
def test_distributed_llama(tmp_path: Path, name: str, weight_type: str) -> None:
    path = write_distributed_llama(tmp_path / "model.m", TINY / name, weight_type)
    container, folder = open_container(path), open_container(TINY / name)
    assert {name: tensor.shape for name, tensor in container.tensors.items()} == {
        name: tensor.shape for name, tensor in folder.tensors.items()
    }
    assert container.tensors["lm_head.weight"].block_format.name == weight_type
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size"):
        assert container.integer(key) == folder.integer(key)
    assert container.number("rms_norm_eps") == folder.number("rms_norm_eps")
    for key, value in folder.section("rope_parameters").metadata.items():
        assert container.section("rope_parameters").metadata[key] == value
    assert (values_in(container, "model.norm.weight") == values_in(folder, "model.norm.weight")).all()
    assert (values_in(container, "model.embed_tokens.weight") == values_in(folder, "model.embed_tokens.weight")).all()
    if weight_type == "F32":
        q, heads = values_in(container, "model.layers.1.self_attn.q_proj.weight"), folder.integer("num_attention_heads")
        halves = q.reshape(heads, -1, 2, q.shape[1]).swapaxes(1, 2).reshape(q.shape)
        assert container.boolean("rope_interleave")
        assert (halves == values_in(folder, "model.layers.1.self_attn.q_proj.weight")).all()


def test_the_tokenizer_beside_a_distributed_llama_file(tmp_path: Path) -> None:
    path = write_distributed_llama(tmp_path / "model.m", TINY / "llama")
    assert open_container(path).companions == {}
    (tmp_path / "any.t").touch()
    assert open_container(path).companions == {"tokenizer.t": tmp_path / "any.t"}
    (tmp_path / "model.t").touch()
    assert open_container(path).companions == {"tokenizer.t": tmp_path / "model.t"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: data[:-4], "it may not be complete"),
        (lambda data: data + b"abcd", "its weights end at byte"),
        (lambda data: data[:4] + struct.pack("<i", 7) + data[8:], "its header has 7 bytes"),
        (lambda data: data[:4] + struct.pack("<i", 1 << 30) + data[8:], "its header has 1073741824 bytes"),
        (lambda data: data[:8] + struct.pack("<i", 99) + data[12:], "its header has the keys"),
        (lambda data: data[:16] + struct.pack("<2i", 1, 0xABCD0 + 5) + data[24:], "expected llama, qwen3, qwen3_moe"),
        (lambda data: data[:28] + struct.pack("<i", -1) + data[32:], "has dim -1"),
        (lambda data: data[:36] + struct.pack("<i", (1 << 27) - 1) + data[40:], "it may not be complete"),
    ],
)
def test_damage_to_a_distributed_llama_file_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], expected: str) -> None:
    path = write_distributed_llama(tmp_path / "model.m", TINY / "llama")
    path.write_bytes(damage(path.read_bytes()))
    assert expected in str(refusal(path))


def test_a_model_of_ollama_by_name_manifest_and_blob(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    blob = write_ollama_store(tmp_path, tiny_path)
    assert open_container(blob).name == "tiny:1b"
    manifest = find_in_ollama("tiny:1b")
    assert manifest is not None
    container = open_container(manifest)
    assert (container.name, container.paths) == ("tiny:1b", (blob,))
    assert find_in_ollama("library/tiny:1b") == find_in_ollama("registry.ollama.ai/library/tiny:1b") == manifest
    for name in ("tiny", "tiny:2b", "other:1b", "../tiny:1b", "tiny:..", "a/b/c/d:e", "tiny:1b/", "", "tiny\0"):
        assert find_in_ollama(name) is None
    blob.unlink()
    assert "'ollama pull' gets it" in str(refusal(manifest))


def test_models_of_ollama_that_this_would_not_compute_alike(tiny_path: Path, tmp_path: Path) -> None:
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": "sha256:" + 64 * "0"}
    write_ollama_store(tmp_path, tiny_path, layers=[adapter])
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "1b"
    assert type(error := refusal(manifest)) is UnsupportedModel
    assert "tiny:1b of Ollama has an adapter" in str(error)
    tensor = {"mediaType": "application/vnd.ollama.image.tensor; name=a; dtype=bf16", "digest": "sha256:" + 64 * "0"}
    write_ollama_store(tmp_path, tiny_path, layers=[tensor])
    assert "tensors as separate files" in str(refusal(manifest))


@pytest.mark.parametrize("digest", ["../../../etc/passwd", "sha256:../../x", "sha256:" + 63 * "0", "sha256:" + 64 * "g", "", 7, None])
def test_nothing_but_a_digest_leads_out_of_a_manifest_of_ollama(tmp_path: Path, digest: object) -> None:
    manifest = tmp_path / "manifests" / "h" / "n" / "m" / "t"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    assert "expected sha256: and 64 digits" in str(refusal(manifest))


def torch_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"x")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "is empty; expected a model file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4080263168\n", "'git lfs pull' of 4080263168 bytes"),
        (b"\n <!DOCTYPE html><html>", "a web page, not a model"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied", "a web page, not a model"),
        (bytes(5000), "nothing but zeros"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
        (b"PK\x03\x04" + bytes(26) + b"notes.txt", "a zip archive: unpack it"),
        (b"\x1f\x8b\x08\x00", "a compressed file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "an HDF5 file"),
        (b"\x1c\x00\x00\x00TFL3", "a TensorFlow Lite model"),
        (b"\x08\x07\x12\x07pytorch\x1a\x03", "an ONNX model"),
        (b"tjgg\x03\x00\x00\x00", "an old GGML file"),
        (b"FUGG\x00\x00\x00\x03", "the other byte order"),
        (b"\x24\x71\x56\x00", "a tokenizer of distributed-llama"),
        (b"\x00\xcd\xab\x00", "before version 0.7"),
        (b'{"a": 1}', "is a JSON file"),
        (b"\x08", "it begins with"),
        (b"hello, this is text", "it begins with b'hello, t'"),
        (b"GGUF", "the version at byte 4 needs 4 bytes"),
    ],
)
def test_what_is_no_model_is_named_as_what_it_is(tmp_path: Path, data: bytes, expected: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert expected in str(refusal(path))


def test_torch_checkpoints_are_named(tmp_path: Path) -> None:
    torch_archive(tmp_path / "pytorch_model.bin")
    for path in (tmp_path / "pytorch_model.bin", tmp_path):
        assert "a pickle" in str(refusal(path))
        assert "safetensors" in str(refusal(path))


def test_folders_without_a_model_are_named(tiny_path: Path, tmp_path: Path) -> None:
    assert "an empty folder" in str(refusal(tmp_path))
    (tmp_path / "notes.txt").touch()
    assert "has no model in it" in str(refusal(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert "has a config.json but no weights" in str(refusal(tmp_path))
    shutil.copy(tiny_path, tmp_path / "a.gguf")
    (tmp_path / "mmproj-a.gguf").touch()
    assert open_container(tmp_path).paths == (tmp_path / "a.gguf",)
    shutil.copy(tiny_path, tmp_path / "b.gguf")
    assert "has 2 models, a.gguf, b.gguf" in str(refusal(tmp_path))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name, expected in {
        "pipe": "not a regular file",
        "loop": "cannot be read",
        "nowhere": "No such file",
        "gone": "No such file",
        "x" * 5000: "cannot be read",
        "a\0b": "NUL",
    }.items():
        assert expected in str(refusal(tmp_path / name))
    assert "not a regular file" in str(refusal(Path("/dev/null")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(tmp_path: Path, tiny_path: Path) -> None:
    shutil.copy(tiny_path, tmp_path / "m.gguf")
    (tmp_path / "m.gguf").chmod(0)
    assert "Permission denied" in str(refusal(tmp_path / "m.gguf"))


def folder_with(tmp_path: Path, **files: bytes) -> Path:
    (tmp_path / "config.json").write_text("{}")
    for name, data in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "x\0.safetensors", "a\n.safetensors", "", 7, "model.bin"]
)
def test_an_index_names_only_files_beside_it(tmp_path: Path, file: object) -> None:
    index = json.dumps({"weight_map": {"a": file}}).encode()
    folder = folder_with(tmp_path, model__safetensors=safetensors_bytes(ONE), **{INDEX.replace(".", "__"): index})
    assert "in the same folder" in str(refusal(folder))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, "lacks 'gone.safetensors'"),
        ({"weight_map": {"b": "model.safetensors"}}, "which has none of that name"),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, "has no weight_map"),
    ],
)
def test_an_index_that_contradicts_its_files_is_refused(tmp_path: Path, files: object, expected: str) -> None:
    index = json.dumps(files).encode()
    folder = folder_with(tmp_path, model__safetensors=safetensors_bytes(ONE), **{INDEX.replace(".", "__"): index})
    assert expected in str(refusal(folder))


def test_a_missing_part_of_a_folder_is_named(tmp_path: Path) -> None:
    folder = write_sharded_folder(TINY / "llama", tmp_path / "m")
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in str(refusal(folder))
    (folder / INDEX).unlink()
    assert "model-00002-of-00002.safetensors" in str(refusal(folder))


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, adapter_model__safetensors=safetensors_bytes(ONE))
    assert "a whole model" in str(refusal(folder))
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert "is quantised by 'gptq'" in str(refusal(folder))
    (folder / "config.json").unlink()
    assert "lacks config.json" in str(refusal(folder))


def header_with(entry: str) -> bytes:
    text = f'{{"a": {entry}}}'.encode()
    return struct.pack("<Q", len(text)) + text + bytes(100)


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (struct.pack("<Q", 1 << 60) + b"{" + bytes(20), CorruptModelFile, "its header has 1152921504606846976 bytes"),
        (header_with("7"), CorruptModelFile, "expected an object"),
        (header_with('{"dtype":"F32","shape":[2],"data_offsets":[0,9]}'), CorruptModelFile, "expected 8 bytes"),
        (header_with('{"dtype":"F32","shape":[2],"data_offsets":[8,0]}'), CorruptModelFile, "expected 8 bytes"),
        (header_with('{"dtype":"F32","shape":[200],"data_offsets":[0,800]}'), CorruptModelFile, "but the file ends at byte"),
        (header_with('{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}'), CorruptModelFile, "as shape"),
        (header_with('{"dtype":"F32","shape":[1.5],"data_offsets":[0,8]}'), CorruptModelFile, "as shape"),
        (header_with('{"dtype":"F32","shape":[true],"data_offsets":[0,4]}'), CorruptModelFile, "as shape"),
        (header_with('{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}'), CorruptModelFile, "as shape"),
        (header_with('{"dtype":"F32","shape":[2]}'), CorruptModelFile, "as data_offsets"),
        (header_with('{"dtype":"F99","shape":[2],"data_offsets":[0,8]}'), UnsupportedModel, "stored as F99"),
        (header_with('{"dtype":[],"shape":[2],"data_offsets":[0,8]}'), UnsupportedModel, "stored as []"),
        (header_with('{"dtype":"F32","shape":[2],"data_offsets":[0,' + 5000 * "9" + "]}"), CorruptModelFile, "digits"),
        (header_with('{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}'), CorruptModelFile, "'a' occurs twice"),
        (
            header_with('{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[1],"data_offsets":[3,4]}'),
            CorruptModelFile,
            "overlap",
        ),
        (header_with(40000 * "[" + 40000 * "]"), CorruptModelFile, "nested too deeply"),
        (header_with('{"dtype":"F32"'), CorruptModelFile, "not sound JSON"),
        (struct.pack("<Q", 4) + b"{\xff}}", CorruptModelFile, "not sound JSON"),
    ],
)
def test_damage_to_a_safetensors_header_is_named(tmp_path: Path, data: bytes, kind: type[ModelFileError], expected: str) -> None:
    folder = folder_with(tmp_path, model__safetensors=data)
    assert type(error := refusal(folder)) is kind
    assert expected in str(error)


def test_tensors_without_elements_are_left_out(tmp_path: Path) -> None:
    tensors = ONE | {"none": stored(np.zeros((0, 4), np.float32)), "one": stored(np.ones((), np.float32))}
    container = open_container(folder_with(tmp_path, model__safetensors=safetensors_bytes(tensors)))
    assert {name: tensor.shape for name, tensor in container.tensors.items()} == {"a": (2, 4), "one": ()}


def test_a_path_of_a_file_is_absolute_and_links_stay(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.gguf").symlink_to(tiny_path)
    assert open_container(Path("link.gguf")).paths == (tmp_path / "link.gguf",)


def test_a_manifest_follows_the_config_of_a_folder(tmp_path: Path) -> None:
    container = open_container(folder_with(tmp_path, model__safetensors=safetensors_bytes(ONE)))
    assert container.descriptions == (tmp_path / "config.json",)


def test_write_tiny_llama_is_opened_by_its_folder(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "only.gguf")
    assert open_container(tmp_path).paths == (path,)
    assert open_container(tmp_path).name == "only"


def test_what_sees_and_hears_in_the_same_file_is_left_alone(tmp_path: Path) -> None:
    """Ollama's files have it beside the text model."""
    model = TinyLlama(num_layers=1)
    others = {name: np.zeros((2, 2), np.float32) for name in ("v.blk.0.attn_q.weight", "mm.0.weight")}
    path = write_llama(tmp_path / "m.gguf", model, random_weights(model, 0) | others)
    assert len(build_manifest(path).units) == 3


def test_names_of_a_hub_cache(tmp_path: Path) -> None:
    files = sorted((TINY / "llama").iterdir())
    snapshot = write_hub_cache(tmp_path, "somebody", "small-llama", files)
    assert open_container(snapshot).name == "somebody/small-llama"
    assert open_container(snapshot).paths == (snapshot / "model.safetensors",)
    (tmp_path / "models--somebody--small-llama" / "refs" / "main").write_text("../../x")
    assert open_container(tmp_path / "models--somebody--small-llama").paths == (snapshot / "model.safetensors",), "the only revision"
    (snapshot.parent / "another").mkdir()
    assert type(refusal(tmp_path / "models--somebody--small-llama")) is UnknownModelName
