"""Weights over the network, and files that may be the model."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dairllm.mesh.channels import bind, create_server
from dairllm.mesh.errors import PeerUnreachable, UnknownModel, WeightsDiffer
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry, ModelFacts, PeerFacts, UnitFacts
from dairllm.shard_service.sources import RemoteMember, find_local_files
from dairllm.v1 import weights_pb2, weights_pb2_grpc

DATA = bytes(range(256)) * 40
UNIT = UnitFacts(3, (), len(DATA), b"")
MODEL = ModelFacts("llama", "test", 1, 64, 64, 2, 1, 32, 50, 1e-5, 1e4, 32, True, (), 0.2)


class Server(weights_pb2_grpc.WeightsServiceServicer):
    """Breaks off after `most_bytes` in every call."""

    def __init__(self, most_bytes: int = len(DATA), wrong_offset: bool = False, lacks_it: bool = False) -> None:
        self._most_bytes = most_bytes
        self._wrong_offset = wrong_offset
        self._lacks_it = lacks_it
        self.offsets: list[int] = []

    async def FetchUnit(self, request: weights_pb2.FetchUnitRequest, context: Any) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        self.offsets.append(request.offset_bytes)
        if self._lacks_it:
            raise UnknownModel("no such file")
        end = min(len(DATA), request.offset_bytes + self._most_bytes)
        for offset in range(request.offset_bytes, end, 1000):
            data = DATA[offset : min(offset + 1000, end)]
            yield weights_pb2.FetchUnitResponse(offset_bytes=offset + self._wrong_offset, data=data)
        if end < len(DATA):
            raise PeerUnreachable("the cable was pulled")


async def fetch(server: Server, give_up_s: float = 5.0) -> bytes:
    grpc_server = create_server()
    weights_pb2_grpc.add_WeightsServiceServicer_to_server(server, grpc_server)
    port = await bind(grpc_server, "127.0.0.1", 0, "the test")
    await grpc_server.start()
    source = RemoteMember([f"127.0.0.1:{port}"], b"digest", "the test", give_up_s=give_up_s)
    try:
        return b"".join([piece async for piece in source.pieces(UNIT)])
    finally:
        await source.close()
        await grpc_server.stop(None)


async def test_fetches_a_unit() -> None:
    server = Server()
    assert await fetch(server) == DATA
    assert server.offsets == [0]


async def test_goes_on_where_it_was_interrupted() -> None:
    server = Server(most_bytes=4500)
    assert await fetch(server) == DATA
    assert server.offsets == [0, 4500, 9000]


async def test_gives_up_without_progress() -> None:
    with pytest.raises(PeerUnreachable, match="unit 3"):
        await fetch(Server(most_bytes=0), give_up_s=0.1)


async def test_bytes_of_another_place_are_not_taken() -> None:
    with pytest.raises(WeightsDiffer, match="offset"):
        await fetch(Server(wrong_offset=True))


async def test_a_member_without_the_file_is_not_asked_again() -> None:
    server = Server(lacks_it=True)
    with pytest.raises(UnknownModel, match="no such file"):
        await fetch(server)
    assert server.offsets == [0]


def test_candidates_have_the_size_and_come_once(tmp_path: Path) -> None:
    named = tmp_path / "elsewhere" / "model.gguf"
    folder = tmp_path / "models"
    for path, size in ((named, 10), (folder / "deep" / "b", 10), (folder / "a", 11), (folder / "c", 10)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    (folder / "link").symlink_to(named)
    assignment = AssignmentFacts(1, b"", MODEL, (UNIT,), str(named), 10, PeerFacts("", ()), CacheGeometry(1, 1, 1, 1))
    assert find_local_files(assignment, [folder, tmp_path / "missing"]) == [named, folder / "c", folder / "deep" / "b"]
