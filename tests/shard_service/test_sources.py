"""Files that may be the model."""

import os
from pathlib import Path

import pytest

from dairllm.mesh.peers import Peer
from dairllm.mesh.weights import pieces_of
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.manifest import ModelFile, TensorInfo, TensorPiece, Unit
from dairllm.model_files.reader import FileRange, ModelSource, ranges_of
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.weights.sources import find_local_files, have_files_of
from tests.instruments.descriptions import spec_of

UNIT = Unit(index=3, tensors=(), size_bytes=10, digest=b"")


def assignment_of(folder: Path, *files: ModelFile) -> AssignmentFacts:
    """From this folder of the coordinator."""
    return AssignmentFacts(1, b"", spec_of(), (UNIT,), str(folder), files, Peer("", ()), CacheGeometry(1, 1, 1, 1), "F32")


def test_candidates_have_the_size_and_come_once_and_in_order(tmp_path: Path) -> None:
    shared = tmp_path / "elsewhere" / "model.gguf"
    folder = tmp_path / "models"
    for path, size in ((shared, 10), (folder / "a", 10), (folder / "b.gguf", 11), (folder / "deep" / "c.gguf", 10), (folder / "d", 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    os.link(folder / "a", folder / "e")
    assignment = assignment_of(shared.parent, ModelFile(name="model.gguf", size_bytes=10))
    found = find_local_files(assignment, [folder, tmp_path / "missing"])
    assert found == [(folder / "deep" / "c.gguf",), (folder / "a",), (folder / "d",), (shared,)]
    (folder / "f").symlink_to(shared)
    assert find_local_files(assignment, [folder]) == [(folder / "deep" / "c.gguf",), (folder / "a",), (folder / "d",), (folder / "f",)]


def test_files_of_a_model_in_several_lie_beside_each_other(tmp_path: Path) -> None:
    whole, partial, shared = tmp_path / "models" / "whole", tmp_path / "models" / "partial", tmp_path / "elsewhere"
    for path, size in (
        *((whole / "renamed.gguf", 10), (whole / "b.gguf", 20), (partial / "a.gguf", 10), (partial / "b.gguf", 19)),
        *((shared / "a.gguf", 10), (shared / "b.gguf", 20)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    assignment = assignment_of(shared, ModelFile(name="a.gguf", size_bytes=10), ModelFile(name="b.gguf", size_bytes=20))
    found = find_local_files(assignment, [tmp_path / "models"])
    assert found == [(whole / "renamed.gguf", whole / "b.gguf"), (shared / "a.gguf", shared / "b.gguf")]


def test_files_that_are_nowhere_together_are_taken_from_where_they_are(tmp_path: Path) -> None:
    for path, size in ((tmp_path / "one" / "a.gguf", 10), (tmp_path / "two" / "b.gguf", 10), (tmp_path / "two" / "c.gguf", 9)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    files = [ModelFile(name=f"{name}.gguf", size_bytes=10) for name in "abc"]
    (found,) = find_local_files(assignment_of(tmp_path / "none", *files), [tmp_path])
    assert found == (tmp_path / "one" / "a.gguf", tmp_path / "two" / "b.gguf", None)
    tensors = tuple(
        TensorInfo(
            name="t", role="q", block_format="F32", shape=(1,), pieces=(TensorPiece(file_index=index, offset_bytes=0, size_bytes=4),)
        )
        for index in range(3)
    )
    units = [Unit(index=0, tensors=tensors[:2], size_bytes=8, digest=b""), Unit(index=1, tensors=tensors[1:], size_bytes=8, digest=b"")]
    assert [have_files_of(found, unit) for unit in units] == [True, False]
    with ModelSource(found) as source, pytest.raises(CorruptModelFile, match="file 2 of the model is not here"):
        source.read(FileRange(2, 0, 1))
    assert find_local_files(assignment_of(tmp_path / "none", *files), [tmp_path / "none"]) == []


def test_parts_of_one_size_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(bytes(10))
    files = [ModelFile(name=name, size_bytes=10) for name in ("a.gguf", "b.gguf")]
    assert find_local_files(assignment_of(tmp_path, *files), [tmp_path]) == [(tmp_path / "a.gguf", tmp_path / "b.gguf")]


def test_a_unit_is_read_from_the_files_that_its_tensors_name(tmp_path: Path) -> None:
    for number, content in enumerate((b"0123456789", b"abcdefghij")):
        (tmp_path / str(number)).write_bytes(content)
    pieces = [
        TensorPiece(file_index=file, offset_bytes=offset, size_bytes=size) for file, offset, size in ((1, 2, 5), (0, 4, 3), (1, 0, 2))
    ]
    tensors = tuple(TensorInfo(name="t", role="q", block_format="F32", shape=(1,), pieces=tuple(some)) for some in (pieces[:1], pieces[1:]))
    unit = Unit(index=1, tensors=tensors, size_bytes=10, digest=b"")
    with ModelSource([tmp_path / "0", tmp_path / "1"]) as source:
        assert b"".join(source.read(place) for place in ranges_of(unit)) == b"cdefg456ab"
        for start in range(11):
            following = pieces_of(unit.places, start)
            places = [FileRange(piece.file_index, piece.file_offset_bytes, piece.size_bytes) for piece in following]
            assert b"".join(source.read(place) for place in places) == b"cdefg456ab"[start:]
