"""Spec, manifest, architectures and reading: what the cluster believes about a file is what the file contains."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dairllm.kernels_pyx import BLOCK_FORMATS as KERNEL_FORMATS
from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.model_files import file_identity, manifest_builder
from dairllm.model_files.architectures import architectures
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.codec import manifest_from_bytes, manifest_to_bytes
from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.file_identity import FileIdentity, is_certain
from dairllm.model_files.manifest_builder import build_manifest, read_spec
from dairllm.model_files.reader import FileSource
from dairllm.model_files.spec import ModelSpec
from tests.tiny_gguf import TinyLlama, random_weights, write_llama, write_safetensors_model, write_tiny_llama


def with_metadata(folder: Path, **extra: Any) -> Path:
    """A tiny llama with more metadata: copied tensor by tensor, the given keys (dots written as two underscores) added or replaced."""
    source = gguf.GGUFReader(write_tiny_llama(folder / "plain.gguf", num_layers=1))
    given = {key.replace("__", "."): value for key, value in extra.items()}
    writer = gguf.GGUFWriter(folder / "changed.gguf", given.pop("general.architecture", "llama"))
    for key, field in source.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")) and key not in given:
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in given.items():
        if value is not None:
            add: Any = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
            add(key, value)
    for tensor in source.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "changed.gguf"


def test_spec_of_smollm2(smollm2_path: Path) -> None:
    spec = build_manifest(smollm2_path).spec
    attention = spec.layers[-1].attention
    assert isinstance(attention, SelfAttention)
    assert (spec.num_layers, spec.hidden_size, attention.num_heads, attention.num_kv_heads, attention.key_dim) == (30, 576, 9, 3, 64)
    assert (spec.vocab_size, attention.scale, attention.rope) == (49152, 0.125, Rope(theta=100_000.0, dim=64, interleaved=True))
    assert spec.needed_features() <= set(STAGE_FEATURES)


@pytest.mark.parametrize("block_format", sorted(BLOCK_FORMATS))
@pytest.mark.parametrize("tied", [False, True])
def test_manifest_describes_every_byte_of_every_unit(tmp_path: Path, block_format: str, tied: bool) -> None:
    hidden_size = max(64, BLOCK_FORMATS[block_format].block_size)
    path = write_tiny_llama(
        tmp_path / "m.gguf", block_format=block_format, tied=tied, hidden_size=hidden_size, intermediate_size=256, num_heads=8
    )
    manifest = build_manifest(path)
    assert [manifest.spec.unit_name(unit.index) for unit in manifest.units] == ["embedding", "layer 0", "layer 1", "layer 2", "head"]
    content = path.read_bytes()
    for unit in manifest.units:
        data = b"".join(content[offset : offset + size_bytes] for _, offset, size_bytes in unit.places)
        assert (unit.size_bytes, unit.digest) == (len(data), hashlib.sha256(data).digest())
    assert [tensor.role for tensor in manifest.units[1].tensors] == [
        "attention_norm",
        "q",
        "k",
        "v",
        "attention_output",
        "ffn_norm",
        "gate",
        "up",
        "down",
    ]
    embedding, output = manifest.units[0].tensors[0], manifest.units[-1].tensors[-1]
    assert (embedding.place == output.place) is tied
    assert manifest.tied_bytes == (embedding.size_bytes if tied else 0)
    assert embedding.block_format == block_format
    assert embedding.shape == (256, hidden_size)


def test_digest_identifies_the_weights_and_not_the_file(tmp_path: Path) -> None:
    model = TinyLlama()
    weights = random_weights(model, seed=1)
    first = build_manifest(write_llama(tmp_path / "a.gguf", model, weights))
    reordered = build_manifest(write_llama(tmp_path / "b.gguf", model, dict(reversed(weights.items()))))
    assert first.units[1].places != reordered.units[1].places
    assert first.model_digest == reordered.model_digest
    weights["blk.1.attn_q.weight"][3, 4] += 1
    changed = build_manifest(write_llama(tmp_path / "c.gguf", model, weights))
    assert changed.model_digest != first.model_digest
    assert [a.digest == b.digest for a, b in zip(first.units, changed.units, strict=True)] == [True, True, False, True, True]
    theta = build_manifest(write_llama(tmp_path / "d.gguf", model._replace(rope_theta=5e5), weights))
    assert theta.model_digest != changed.model_digest


def test_biases_that_are_stored_are_listed(tmp_path: Path) -> None:
    model = TinyLlama(num_layers=1)
    weights = random_weights(model, 0) | {
        "blk.0.attn_q.bias": np.zeros(128, np.float32),
        "blk.0.attn_output.bias": np.zeros(64, np.float32),
    }
    unit = build_manifest(write_llama(tmp_path / "m.gguf", model, weights)).units[1]
    assert [tensor.role for tensor in unit.tensors][4:8] == ["attention_output", "q_bias", "attention_output_bias", "ffn_norm"]


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if files that a test has written were there for long."""
    monkeypatch.setattr(file_identity, "RACY_NS", 0)


@pytest.mark.usefixtures("old_files")
def test_second_build_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf")
    calls: list[tuple[str, int, int]] = []
    first = build_manifest(path, lambda *progress: calls.append(progress))
    total = sum(unit.size_bytes for unit in first.units)
    assert calls[-1] == ("Hashing m.gguf", total, total)
    monkeypatch.setattr(manifest_builder, "_read_manifest", None)
    assert build_manifest(path) == first


def replace_by_rename(path: Path, times: tuple[int, int]) -> None:
    os.utime(write_tiny_llama(path.with_name("other"), seed=2), ns=times)
    path.with_name("other").rename(path)


def rewrite_in_place(path: Path, times: tuple[int, int]) -> None:
    other = write_tiny_llama(path.with_name("other"), seed=2)
    with path.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=times)


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("change", [replace_by_rename, rewrite_in_place])
def test_a_file_of_the_same_size_and_time_is_another_one(tmp_path: Path, change: Callable[[Path, tuple[int, int]], None]) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", seed=1)
    os.utime(path, ns=(1, 1))
    first, before = build_manifest(path), path.stat()
    change(path, (1, 1))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert build_manifest(path).model_digest != first.model_digest


def test_what_was_read_right_after_it_changed_is_read_again(tmp_path: Path, cache_home: Path) -> None:
    """A later change could bear the same time."""
    build_manifest(write_tiny_llama(tmp_path / "m.gguf"))
    assert not (cache_home / "dairllm" / "manifests").exists()


@pytest.mark.parametrize(
    ("changed_s", "kind", "certain"),
    [
        (90, "ext4", True),
        (98.1, "ext4", False),
        (101, "ext4", False),
        (90, "nfs4", False),
        (90, "fuse.sshfs", False),
        (90, "overlay", True),
    ],
)
def test_doubts(changed_s: float, kind: str, certain: bool) -> None:
    identity = FileIdentity(os.makedev(8, 1), 5, 10, 0, round(changed_s * 1e9))
    mounts = f"1 0 8:2 / / rw - nfs4 a rw\n2 1 8:1 / /models rw shared:1 - {kind} b rw\n"
    assert is_certain(identity, 100 * 10**9, mounts) is certain


@pytest.mark.usefixtures("old_files")
def test_changed_file_and_damaged_cache_are_read_again(tmp_path: Path, cache_home: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf", seed=1)
    first = build_manifest(path)
    write_tiny_llama(path, seed=2)
    os.utime(path, ns=(1, 1))
    second = build_manifest(path)
    assert first.model_digest != second.model_digest
    for entry in (cache_home / "dairllm" / "manifests").iterdir():
        entry.write_text("{}")
    assert build_manifest(path) == second


def test_unwritable_cache_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    path = write_tiny_llama(tmp_path / "m.gguf")
    assert build_manifest(path) == build_manifest(path)


def test_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "m.gguf")
    with pytest.raises(CorruptModelFile, match="changed while it was read"):
        build_manifest(path, lambda *_: os.utime(path, ns=(5, 5)))


@pytest.mark.parametrize(
    ("extra", "kind", "expected"),
    [
        ({"general__architecture": "mamba"}, UnsupportedModel, "'mamba'.*llama"),
        ({"general__architecture": "../llama"}, UnsupportedModel, "llama"),
        ({"llama__block_count": None}, CorruptModelFile, "lacks the metadata key llama.block_count"),
        ({"llama__embedding_length": "64"}, CorruptModelFile, "llama.embedding_length; expected an integer"),
        ({"llama__block_count": 2}, CorruptModelFile, "lacks the tensor 'blk.1"),
        ({"llama__expert_count": 8}, CorruptModelFile, "lacks the metadata key llama.expert_used_count"),
        ({"llama__attention__clamp_kqv": 8.0}, UnsupportedModel, "llama.attention.clamp_kqv to 8.0"),
        ({"llama__final_logit_softcapping": 30.0}, UnsupportedModel, "llama.final_logit_softcapping to 30.0"),
        ({"llama__rope__scaling__type": "dynamic"}, UnsupportedModel, "'dynamic'"),
        ({"llama__block_count": 100_000}, CorruptModelFile, "block_count 100000"),
        ({"llama__rope__dimension_count": 31}, CorruptModelFile, "even"),
        ({"llama__rope__dimension_count": 64}, CorruptModelFile, "at most key_dim"),
        ({"llama__attention__head_count_kv": 3}, CorruptModelFile, "multiple of num_kv_heads"),
        ({"llama__attention__head_count": 0}, CorruptModelFile, "num_heads is 0"),
        ({"llama__attention__value_length": 16}, CorruptModelFile, "expected \\(32, 64\\)"),
        ({"llama__vocab_size": 255}, CorruptModelFile, "256 rows"),
        ({"llama__feed_forward_length": 64}, CorruptModelFile, "expected \\(64, 64\\)"),
    ],
)
def test_unsupported_models_are_refused_by_name(tmp_path: Path, extra: dict[str, Any], kind: type[ModelFileError], expected: str) -> None:
    build_manifest(with_metadata(tmp_path))
    with pytest.raises(kind, match=expected):
        build_manifest(with_metadata(tmp_path, **extra))


def test_rows_behind_the_last_token_are_no_tokens(tmp_path: Path) -> None:
    padded = build_manifest(write_tiny_llama(tmp_path / "padded.gguf", vocab_size=320, padding_rows=20, with_tokenizer=True))
    whole = build_manifest(write_tiny_llama(tmp_path / "whole.gguf", vocab_size=320, with_tokenizer=True))
    bare = build_manifest(write_tiny_llama(tmp_path / "bare.gguf", vocab_size=320))
    assert [(one.spec.vocab_size, one.spec.num_tokens) for one in (padded, whole, bare)] == [(320, 300), (320, 320), (320, 320)]
    assert manifest_from_bytes(manifest_to_bytes(padded)).spec == padded.spec
    assert padded.model_digest != whole.model_digest == bare.model_digest


def test_unused_tensors_are_refused_by_name(tmp_path: Path) -> None:
    model = TinyLlama(num_layers=1)
    weights = random_weights(model, 0) | {"blk.0.attn_q_norm.weight": np.ones(32, np.float32)}
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_q_norm\.weight"):
        build_manifest(write_llama(tmp_path / "m.gguf", model, weights))


def freq_factors_of(spec: ModelSpec) -> tuple[float, ...]:
    attention = spec.layers[0].attention
    assert isinstance(attention, SelfAttention)
    assert attention.rope is not None
    return attention.rope.freq_factors


def test_rope_scaling_becomes_freq_factors(tmp_path: Path) -> None:
    linear = with_metadata(tmp_path, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert freq_factors_of(read_spec(read_gguf(linear))) == (4.0,) * 16
    none = with_metadata(tmp_path, llama__rope__scaling__type="none", llama__rope__scaling__factor=4.0)
    assert freq_factors_of(read_spec(read_gguf(none))) == ()
    factors = [1.0 + index / 4 for index in range(16)]
    stored = write_tiny_llama(tmp_path / "stored.gguf", rope_freq_factors=factors)
    assert freq_factors_of(read_spec(read_gguf(stored))) == tuple(factors)
    with pytest.raises(CorruptModelFile, match="15 values"):
        read_spec(read_gguf(write_tiny_llama(tmp_path / "short.gguf", rope_freq_factors=factors[:15])))


@pytest.mark.parametrize("name", ["llama", "llama3-rope"])
def test_converted_hugging_face_models_have_manifests(tmp_path: Path, name: str) -> None:
    folder = Path(__file__).parent.parent / "data" / "tiny" / name
    spec = build_manifest(write_safetensors_model(tmp_path / "m.gguf", folder)).spec
    assert spec.num_layers == 3
    assert spec.output_norm.eps == pytest.approx(1e-6)
    assert bool(freq_factors_of(spec)) is (name == "llama3-rope")


def test_block_formats_are_those_of_the_kernels() -> None:
    assert {name: tuple(kind) for name, kind in BLOCK_FORMATS.items()} == {name: tuple(kind) for name, kind in KERNEL_FORMATS.items()}


def test_architectures_are_told_apart_by_their_names() -> None:
    assert {"llama", "gpt-oss", "qwen35moe"} <= architectures().keys()
    model_types = [model_type for architecture in architectures().values() for model_type in architecture.model_types]
    assert len(set(model_types)) == len(model_types)


def test_file_source_reads_exactly(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(100)))
    with FileSource(path) as source:
        assert source.read(10, 5) == bytes(range(10, 15))
        assert source.read(100, 0) == b""
        with pytest.raises(CorruptModelFile, match="ends before byte 101"):
            source.read(99, 2)
    with pytest.raises(CorruptModelFile, match="closed"):
        source.read(0, 1)
    with pytest.raises(CorruptModelFile, match="cannot be read"):
        FileSource(tmp_path / "none")


def test_manifest_is_checked_however_it_is_made(tiny_path: Path) -> None:
    with pytest.raises(CorruptModelFile, match="model_digest"):
        dataclasses.replace(build_manifest(tiny_path), model_digest=bytes(32))
