"""Units over the network: interrupted, wrong, slow, from several members, and through the cache."""

import asyncio
import contextlib
import errno
import hashlib
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dairllm.mesh.channels import bind, create_server
from dairllm.mesh.errors import PeerUnreachable, UnknownModel, WeightsDiffer
from dairllm.mesh.peers import Peer
from dairllm.model_files.manifest import Unit
from dairllm.shard_service.weights import fetching
from dairllm.shard_service.weights.disk_cache import PartialUnit, WeightsCache
from dairllm.shard_service.weights.fetching import FetchedUnits, WeightMembers
from dairllm.v1 import weights_pb2, weights_pb2_grpc

DATA = bytes(range(256)) * 40
UNIT = Unit(index=3, tensors=(), size_bytes=len(DATA), digest=hashlib.sha256(DATA).digest())


class Server(weights_pb2_grpc.WeightsServiceServicer):
    """Breaks off after `most_bytes` in every call; waits before each piece after the first if it is not `going_on`."""

    def __init__(self, data: bytes = DATA, *, most_bytes: int = len(DATA), wrong_offset: bool = False, lacks_it: bool = False) -> None:
        self.data = data
        self._most_bytes = most_bytes
        self._wrong_offset = wrong_offset
        self._lacks_it = lacks_it
        self.offsets: list[int] = []
        self.began = asyncio.Event()
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.address = ""

    async def FetchUnit(self, request: weights_pb2.FetchUnitRequest, context: Any) -> AsyncIterator[weights_pb2.FetchUnitResponse]:
        self.offsets.append(request.offset_bytes)
        assert request.unit_digest == UNIT.digest
        if self._lacks_it:
            raise UnknownModel("no such file")
        end = min(len(self.data), request.offset_bytes + self._most_bytes)
        for offset in range(request.offset_bytes, end, 1000):
            data = self.data[offset : min(offset + 1000, end)]
            yield weights_pb2.FetchUnitResponse(offset_bytes=offset + self._wrong_offset, data=data)
            self.began.set()
            await self.going_on.wait()
        if end < len(self.data):
            raise PeerUnreachable("the cable was pulled")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "units", 10**6, lambda folder: 10**9)


@contextlib.asynccontextmanager
async def members_of(*servers: Server, give_up_s: float = 5.0) -> AsyncIterator[WeightMembers]:
    grpc_servers = [create_server() for _ in servers]
    for server, grpc_server in zip(servers, grpc_servers, strict=True):
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(server, grpc_server)
        server.address = f"127.0.0.1:{await bind(grpc_server, '127.0.0.1', 0, 'the test')}"
        await grpc_server.start()
    members = WeightMembers([Peer(f"m{i}", (server.address,)) for i, server in enumerate(servers)], b"digest", give_up_s=give_up_s)
    try:
        yield members
    finally:
        await members.close()
        for grpc_server in grpc_servers:
            await grpc_server.stop(None)


async def read(source: FetchedUnits) -> tuple[bytes, int]:
    """The unit, verified as the layer store does, and how many bytes of it were received."""
    async with source.opened(UNIT) as pieces:
        got = [piece async for piece in pieces]
        data = b"".join(piece.data for piece in got)
        if hashlib.sha256(data).digest() != UNIT.digest:
            raise WeightsDiffer("unit 3 has another digest")
    return data, sum(len(piece.data) for piece in got if not piece.is_local)


async def fetch(threads: ThreadPoolExecutor, servers: Sequence[Server], cache: WeightsCache | None = None, **options: Any) -> int:
    async with members_of(*servers, **options) as members:
        data, received_bytes = await read(FetchedUnits(members, cache, threads))
    assert data == DATA
    return received_bytes


async def test_fetches_a_unit(threads: ThreadPoolExecutor) -> None:
    server = Server()
    assert await fetch(threads, [server]) == len(DATA)
    assert server.offsets == [0]


async def test_goes_on_where_it_was_interrupted(threads: ThreadPoolExecutor) -> None:
    server = Server(most_bytes=4500)
    assert await fetch(threads, [server]) == len(DATA)
    assert server.offsets == [0, 4500, 9000]


async def test_goes_on_with_another_member(threads: ThreadPoolExecutor) -> None:
    first, lacking, last = Server(most_bytes=4500), Server(lacks_it=True), Server()
    await fetch(threads, [first, lacking, last])
    assert first.offsets == [0]
    assert last.offsets in ([4500], [4500, 4500])
    assert len(lacking.offsets) <= 1


async def test_gives_up_without_progress(threads: ThreadPoolExecutor) -> None:
    with pytest.raises(PeerUnreachable, match="unit 3"):
        await fetch(threads, [Server(most_bytes=0)], give_up_s=0.1)


async def test_bytes_of_another_place_are_not_taken(threads: ThreadPoolExecutor) -> None:
    with pytest.raises(PeerUnreachable, match="offset"):
        await fetch(threads, [Server(wrong_offset=True)], give_up_s=0.1)


async def test_a_member_without_the_unit_is_not_asked_again(threads: ThreadPoolExecutor) -> None:
    server = Server(lacks_it=True)
    with pytest.raises(UnknownModel, match="no such file"):
        await fetch(threads, [server])
    assert server.offsets == [0]


async def test_a_slow_member_is_left(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dairllm.shard_service.weights.senders._JUDGED_AFTER_S", 0.0)
    monkeypatch.setattr("dairllm.shard_service.weights.senders._SLOWEST_BYTES_PER_S", 10**9)
    slow, last = Server(), Server()
    await fetch(threads, [slow, last])
    assert (slow.offsets, last.offsets) == ([0], [1000])


async def test_a_silent_member_is_left(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_SILENCE_S", 0.2)
    silent, last = Server(), Server()
    silent.going_on.clear()
    await fetch(threads, [silent, last])
    assert (silent.offsets, last.offsets) == ([0], [1000])


async def test_wrong_bytes_are_fetched_from_another_member(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    wrong, last = Server(DATA[:-1] + b"x"), Server()
    async with members_of(wrong, last) as members:
        source = FetchedUnits(members, cache, threads)
        with pytest.raises(WeightsDiffer, match="m0"):
            await read(source)
        assert list(cache.folder.iterdir()) == []
        assert await read(source) == (DATA, len(DATA))
    assert (wrong.offsets, last.offsets) == ([0], [0])


async def test_what_was_fetched_is_never_sent_again(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    server = Server()
    assert await fetch(threads, [server], cache) == len(DATA)
    assert await fetch(threads, [server], cache) == 0
    assert server.offsets == [0]


async def test_a_damaged_copy_is_removed_and_fetched_anew(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    await fetch(threads, [Server()], cache)
    path = cache.folder / UNIT.digest.hex()
    path.write_bytes(DATA[:5000] + b"x" + DATA[5001:])
    async with members_of(Server()) as members:
        source = FetchedUnits(members, cache, threads)
        with pytest.raises(WeightsDiffer, match="was removed"):
            await read(source)
        assert await read(source) == (DATA, len(DATA))
    assert path.read_bytes() == DATA


async def test_a_damaged_beginning_is_not_blamed_on_who_sent_the_rest(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    cache.folder.mkdir()
    partial = cache.folder / (UNIT.digest.hex() + ".partial")
    partial.write_bytes(b"y" * 3000)
    server, last = Server(), Server()
    async with members_of(server, last) as members:
        source = FetchedUnits(members, cache, threads)
        with pytest.raises(WeightsDiffer, match="damaged"):
            await read(source)
        assert not partial.exists()
        assert await read(source) == (DATA, len(DATA))
    assert (server.offsets, last.offsets) == ([3000, 0], [])


async def test_goes_on_after_it_was_cancelled(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    server = Server()
    server.going_on.clear()
    async with members_of(server) as members:
        reading = asyncio.create_task(read(FetchedUnits(members, cache, threads)))
        while cache.partial_bytes(UNIT.digest) < 1000:
            await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        server.going_on.set()
        assert await read(FetchedUnits(members, cache, threads)) == (DATA, len(DATA) - 1000)
    assert server.offsets == [0, 1000]


async def test_two_on_one_machine_fetch_once(threads: ThreadPoolExecutor, cache: WeightsCache) -> None:
    server = Server()
    server.going_on.clear()
    async with members_of(server) as members:
        first = asyncio.create_task(read(FetchedUnits(members, cache, threads)))
        await server.began.wait()
        second = asyncio.create_task(read(FetchedUnits(members, WeightsCache(cache.folder, 10**6, lambda folder: 10**9), threads)))
        await asyncio.sleep(0.1)
        server.going_on.set()
        assert await first == (DATA, len(DATA))
        assert await second == (DATA, 0)
    assert server.offsets == [0]


async def test_nobody_waits_for_one_that_gets_no_further(
    threads: ThreadPoolExecutor, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_LOCK_PATIENCE_S", 0.2)
    stuck = cache.begin(UNIT.digest, UNIT.size_bytes)
    assert isinstance(stuck, PartialUnit)
    with stuck:
        assert await fetch(threads, [Server()], WeightsCache(cache.folder, 10**6)) == len(DATA)


async def test_a_full_disk_is_a_warning(
    threads: ThreadPoolExecutor, cache: WeightsCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = PartialUnit.append

    def refuse_late(partial: PartialUnit, data: bytes) -> None:
        if partial.size_bytes >= 4000:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(partial, data)

    monkeypatch.setattr(PartialUnit, "append", refuse_late)
    with caplog.at_level(logging.WARNING):
        assert await fetch(threads, [Server()], cache) == len(DATA)
    assert caplog.text.count("No space left") == 1
    assert list(cache.folder.iterdir()) == []


async def test_no_room_is_a_warning(threads: ThreadPoolExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert await fetch(threads, [Server()], WeightsCache(tmp_path, 5000)) == len(DATA)
    assert "unit 3 is not kept" in caplog.text
