"""The GGUF reader: what `gguf` writes is read back, and no damage gets past it as anything but a ModelFileError."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.block_formats import BLOCK_FORMATS, block_format_of_ggml_type
from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.tiny_gguf import write_tiny_llama

U32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*, tensors: int = 0, keys: int = 0, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def tensor(name: str, dimensions: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


def refusal(folder: Path, data: bytes) -> ModelFileError:
    path = folder / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture(scope="module")
def small_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    return write_tiny_llama(path, num_layers=1, hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1, head_dim=16).read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def header_size(data: bytes, scratch: Path) -> int:
    path = scratch / "whole.gguf"
    path.write_bytes(data)
    return min(tensor.offset_bytes for tensor in read_gguf(path).tensors.values())


def test_reads_what_the_gguf_package_writes(tiny_path: Path) -> None:
    ours, reference = read_gguf(tiny_path), gguf.GGUFReader(tiny_path)
    assert {t.name: (tuple(t.shape), t.data_offset, t.n_bytes) for t in reference.tensors} == {
        t.name: (t.shape[::-1], t.offset_bytes, t.size_bytes) for t in ours.tensors.values()
    }
    for key, field in reference.fields.items():
        if not key.startswith("GGUF."):
            value = ours.metadata[key]
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents()


def test_type_names_and_sizes_are_those_of_the_gguf_package() -> None:
    for kind in gguf.GGMLQuantizationType:
        if kind.name in BLOCK_FORMATS:
            found = block_format_of_ggml_type(kind.value, "x")
            assert found == (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        elif kind.value < 40:
            with pytest.raises(UnsupportedModel, match=rf"\b{kind.name}\b"):
                block_format_of_ggml_type(kind.value, "x")


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (b"", CorruptModelFile, "magic"),
        (header(magic=b"GGML"), CorruptModelFile, "GGML"),
        (header(version=1), UnsupportedModel, "version 1"),
        (header(version=4), UnsupportedModel, "version 4"),
        (header(version=3 << 24), UnsupportedModel, "big-endian"),
        (header(keys=1 << 60), CorruptModelFile, "metadata keys"),
        (header(tensors=1 << 60), CorruptModelFile, "number of tensors"),
        (header(keys=1) + struct.pack("<Q", 1 << 40), CorruptModelFile, "metadata key"),
        (header(keys=1) + text("k") + struct.pack("<I", 99), CorruptModelFile, "value type 99"),
        (header(keys=1) + text("k") + struct.pack("<IB", 7, 2), CorruptModelFile, "boolean"),
        (header(keys=1) + text("k") + struct.pack("<IQ", STRING, 1000) + b"abc", CorruptModelFile, "file ends"),
        (header(keys=1) + text("k") + struct.pack("<IQ", STRING, 2) + b"\xff\xfe", CorruptModelFile, "UTF-8"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", ARRAY, U32, 1 << 23) + b"abcd", CorruptModelFile, "file ends"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", ARRAY, U32, 1 << 62), CorruptModelFile, "length of k"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 19), CorruptModelFile, "file ends"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", ARRAY, STRING, 1 << 23), CorruptModelFile, "8388608 strings"),
        (header(keys=1) + text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1), UnsupportedModel, "array of arrays"),
        (header(keys=2) + 2 * (text("k") + struct.pack("<II", U32, 5)), CorruptModelFile, "'k' occurs twice"),
        (header(keys=1) + text("general.alignment") + struct.pack("<II", U32, 24), CorruptModelFile, "alignment"),
        (header(keys=1) + text("general.alignment") + struct.pack("<II", U32, 0), CorruptModelFile, "alignment"),
        (header(tensors=1) + tensor("t", (8, 0)), CorruptModelFile, "dimensions"),
        (header(tensors=1) + tensor("t", ()), CorruptModelFile, "dimensions"),
        (header(tensors=1) + tensor("t", (1, 1, 1, 1, 1)), CorruptModelFile, "number of dimensions"),
        (header(tensors=1) + tensor("t", (1 << 63, 1 << 63)), CorruptModelFile, "ends at byte"),
        (header(tensors=1) + tensor("t", (8,), offset=1 << 60), CorruptModelFile, "ends at byte"),
        (header(tensors=1) + tensor("t", (8,), offset=8) + bytes(200), CorruptModelFile, "multiple of 32"),
        (header(tensors=1) + tensor("t", (33,), kind=8) + bytes(200), CorruptModelFile, "multiple of 32 for Q8_0"),
        (header(tensors=1) + tensor("t", (256,), kind=22) + bytes(400), UnsupportedModel, "IQ2_S"),
        (header(tensors=1) + tensor("t", (256,), kind=999) + bytes(400), UnsupportedModel, "type 999"),
        (header(tensors=2) + tensor("t", (8,)) + tensor("t", (8,), offset=32) + bytes(200), CorruptModelFile, "occurs twice"),
        (header(tensors=2) + tensor("t", (16,)) + tensor("u", (8,), offset=32) + bytes(200), CorruptModelFile, "overlap"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, kind: type[ModelFileError], expected: str) -> None:
    error = refusal(tmp_path, data)
    assert type(error) is kind
    assert expected in str(error)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CorruptModelFile, match="cannot be read"):
            read_gguf(path)


def test_every_truncation_of_the_header_is_refused(small_bytes: bytes, scratch: Path) -> None:
    for size in range(0, header_size(small_bytes, scratch), 3):
        refusal(scratch, small_bytes[:size])
    refusal(scratch, small_bytes[:-1])


@given(st.data())
def test_changed_bytes_give_a_sound_model_or_a_model_file_error(small_bytes: bytes, scratch: Path, data: st.DataObject) -> None:
    damaged = bytearray(small_bytes)
    limit = header_size(small_bytes, scratch)
    for position in data.draw(st.lists(st.integers(0, limit - 1), min_size=1, max_size=3)):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    path = scratch / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        manifest = build_manifest(path)
    except ModelFileError:
        return
    assert [file.size_bytes for file in manifest.files] == [len(damaged)]


@given(st.data())
def test_changed_bytes_never_break_the_tokenizer(tiny_path: Path, scratch: Path, data: st.DataObject) -> None:
    damaged = bytearray(tiny_path.read_bytes())
    limit = min(tensor.offset_bytes for tensor in read_gguf(tiny_path).tensors.values())
    damaged[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    path = scratch / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        tokenizer = load_tokenizer(read_gguf(path))
    except ModelFileError:
        return
    tokenizer.decode(tokenizer.encode("the <|im_end|> and \u20ac", add_special=True, parse_special=True), skip_special=False)


def test_a_vocabulary_of_128_k_tokens_is_read_within_a_second(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "large.gguf", "llama")
    writer.add_token_list([f"token{index}" for index in range(128_000)])
    writer.add_token_merges([f"left{index} right{index}" for index in range(280_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    before = time.process_time()
    metadata = read_gguf(tmp_path / "large.gguf").metadata
    assert time.process_time() - before < 1.0
    assert len(metadata["tokenizer.ggml.merges"]) == 280_000  # type: ignore[arg-type]
