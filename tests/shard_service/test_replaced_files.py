"""A model file that is replaced while it is served: nobody gets a wrong byte, and whoever wants a unit of it learns why there is none."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dairllm.coordinator.services.weights_servicer import ModelFileServicer
from dairllm.mesh.errors import UnknownModel, WeightsDiffer
from dairllm.model_files import file_identity
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.shard_service.assignment import assignment_from_proto
from dairllm.shard_service.weights.servicer import WeightsServicer
from dairllm.v1 import weights_pb2, weights_pb2_grpc
from tests.shard_service.fake_coordinator import FakeCoordinator
from tests.tiny_gguf import write_tiny_llama

UNIT = 1
NO_CONTEXT: Any = None


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if it were there for long."""
    monkeypatch.setattr(file_identity, "RACY_NS", 0)
    return write_tiny_llama(tmp_path / "m.gguf", seed=1)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


async def fetched(servicer: weights_pb2_grpc.WeightsServiceServicer, request: weights_pb2.FetchUnitRequest) -> bytes:
    return b"".join([response.data async for response in servicer.FetchUnit(request, NO_CONTEXT)])


def replace(path: Path, seed: int) -> None:
    """With the same size."""
    write_tiny_llama(path.with_name("other"), seed=seed).rename(path)


async def test_the_coordinator_says_that_its_file_was_replaced(path: Path) -> None:
    manifest = build_manifest(path)
    servicer = ModelFileServicer(manifest, (path,))
    request = weights_pb2.FetchUnitRequest(model_digest=manifest.model_digest, unit_index=UNIT)
    right = await fetched(servicer, request)
    replace(path, seed=2)
    with pytest.raises(WeightsDiffer, match=r"m\.gguf was replaced or changed.*restart the coordinator"):
        await fetched(servicer, request)
    replace(path, seed=1)
    assert await fetched(servicer, request) == right, "its content decides"


async def test_a_shard_serves_no_file_that_was_replaced(path: Path, threads: ThreadPoolExecutor) -> None:
    coordinator = FakeCoordinator(path)
    assignment = assignment_from_proto(coordinator.assignment(1))
    servicer = WeightsServicer(lambda digest, index: (assignment, assignment.units[index]), [path.parent], None, threads)
    request = weights_pb2.FetchUnitRequest(model_digest=assignment.model_digest, unit_index=UNIT)
    assert await fetched(servicer, request)
    replace(path, seed=2)
    with pytest.raises(UnknownModel):
        await fetched(servicer, request)
