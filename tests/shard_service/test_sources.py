"""Files that may be the model."""

import os
from pathlib import Path

from dairllm.mesh.peers import Peer
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry, ModelFacts, UnitFacts
from dairllm.shard_service.weights.sources import find_local_files

UNIT = UnitFacts(3, (), 10, b"")
MODEL = ModelFacts("llama", "test", 1, 64, 64, 2, 1, 32, 50, 1e-5, 1e4, 32, True, (), 0.2)


def test_candidates_have_the_size_and_come_once_and_in_order(tmp_path: Path) -> None:
    shared = tmp_path / "elsewhere" / "model.gguf"
    folder = tmp_path / "models"
    for path, size in ((shared, 10), (folder / "a", 10), (folder / "b.gguf", 11), (folder / "deep" / "c.gguf", 10), (folder / "d", 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    os.link(folder / "a", folder / "e")
    assignment = AssignmentFacts(1, b"", MODEL, (UNIT,), str(shared), 10, Peer("", ()), CacheGeometry(1, 1, 1, 1), "F32")
    found = find_local_files(assignment, [folder, tmp_path / "missing"])
    assert found == [folder / "deep" / "c.gguf", folder / "a", folder / "d", shared]
    (folder / "f").symlink_to(shared)
    assert find_local_files(assignment, [folder]) == [folder / "deep" / "c.gguf", folder / "a", folder / "d", folder / "f"]
