"""An embedding that has no room: the rows that a frame needs, in whatever order, however often."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import quantize_q8_0
from dairllm.mesh.errors import WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.shard_service.weights.embedding_rows import EmbeddingRows
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import place_in

TOKENS, WIDTH, MAX_ROWS = 300, 64, 40


def unit_in(path: Path, data: bytes, block_format: str, quantized_to: str | None = None) -> Unit:
    path.write_bytes(b"x" * 4090 + data)
    pieces = (TensorPiece(offset_bytes=4090, size_bytes=len(data)),)
    role = "token_embedding"
    tensor = TensorInfo(name=role, role=role, block_format=block_format, shape=(TOKENS, WIDTH), pieces=pieces, quantized_to=quantized_to)
    return Unit(index=0, tensors=(tensor,), size_bytes=len(data), digest=b"")


def rows_of(path: Path, unit: Unit) -> EmbeddingRows:
    rows = EmbeddingRows(unit, MAX_ROWS, StreamMeter())
    rows.place(0, place_in((path,), unit))
    return rows


@pytest.fixture(scope="module")
def numbers() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((TOKENS, WIDTH)).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=MAX_ROWS), max_size=4))
def test_the_rows_of_any_tokens_are_there(tmp_path_factory: pytest.TempPathFactory, numbers: np.ndarray, frames: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("model") / "model.bin"
    rows = rows_of(path, unit_in(path, numbers.tobytes(), "F32"))
    for tokens in frames:
        local = rows.read(np.array(tokens, np.int32))
        np.testing.assert_array_equal(rows.matrices_of(0)["token_embedding"].dequantize_rows(local), numbers[tokens])


@pytest.mark.parametrize("quantized_to", [None, "Q8_0"])
def test_rows_in_blocks_and_rows_that_are_quantised_on_the_way(tmp_path: Path, numbers: np.ndarray, quantized_to: str | None) -> None:
    data, block_format = (numbers.tobytes(), "F32") if quantized_to else (quantize_q8_0(numbers.reshape(-1)), "Q8_0")
    rows = rows_of(tmp_path / "model.bin", unit_in(tmp_path / "model.bin", data, block_format, quantized_to))
    local = rows.read(np.array([5, 299, 5, 0], np.int32))
    found = rows.matrices_of(0)["token_embedding"].dequantize_rows(local)
    assert np.abs(found - numbers[[5, 299, 5, 0]]).max() < 0.03


def test_what_is_no_token_and_a_file_that_changes_are_refused(tmp_path: Path, numbers: np.ndarray) -> None:
    path = tmp_path / "model.bin"
    rows = rows_of(path, unit_in(path, numbers.tobytes(), "F32"))
    with pytest.raises(ValueError, match="tokens are from 2 to 300, expected 0 to 299"):
        rows.read(np.array([2, 300], np.int32))
    os.truncate(path, 5000)
    with pytest.raises(WeightsDiffer, match=r"the embedding cannot be read any more: .*model\.bin has changed since it was verified"):
        rows.read(np.array([2], np.int32))
