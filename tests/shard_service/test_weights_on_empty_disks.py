"""Real shard processes that lack the model's file: where their bytes come from, and how often."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dairllm.v1 import cluster_pb2
from tests.instruments.tcp_proxy import TcpProxy
from tests.shard_service.fake_coordinator import FakeCoordinator, Frames, JoinedShard, RingEdge, greedy_tokens
from tests.shard_service.shard_processes import joined, process_of
from tests.shard_service.whole_model import WholeModel

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty at first; where the weights cache comes to lie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dairllm" / "units"


def loaded(shard: JoinedShard) -> tuple[int, int, int]:
    """Bytes of the latest assignment from memory, disk and network."""
    last = shard.progress[-1]
    assert last.loaded_bytes == last.total_bytes
    return last.from_memory_bytes, last.from_disk_bytes, last.from_network_bytes


def bytes_in(folder: Path) -> int:
    """Of all files that are there, whatever is renamed or removed meanwhile."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def size_of(coordinator: FakeCoordinator, units: range) -> int:
    assert coordinator.manifest is not None
    return sum(coordinator.manifest.units[index].size_bytes for index in units)


def without_file(coordinator: FakeCoordinator, epoch: int, units: range | None = None, *sources: tuple[str, str]) -> cluster_pb2.Assignment:
    """The coordinator's path leads nowhere on this machine. sources: (name, address)."""
    assignment = coordinator.assignment(epoch, units, model_folder="/nowhere")
    assignment.weight_sources.extend(cluster_pb2.Peer(name=name, addresses=[address]) for name, address in sources)
    return assignment


async def require_right_tokens(coordinator: FakeCoordinator, shard: JoinedShard, epoch: int) -> None:
    async with await RingEdge.open(shard, epoch=epoch) as edge:
        assert await greedy_tokens(edge, coordinator, Frames(epoch), PROMPT, 4) == WholeModel(coordinator).greedy(PROMPT, 4)


async def test_serves_from_an_empty_disk_and_a_second_start_receives_nothing(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    whole = size_of(coordinator, range(5))
    async with joined(coordinator) as shard:
        await shard.assign(without_file(coordinator, 1))
        assert loaded(shard) == (0, 0, whole)
        await require_right_tokens(coordinator, shard, 1)
    assert bytes_in(cache_folder) == whole
    async with joined(coordinator) as shard:
        await shard.assign(without_file(coordinator, 2))
        assert loaded(shard) == (0, whole, 0)
        await require_right_tokens(coordinator, shard, 2)


async def test_a_corrupt_byte_in_the_cache_is_repaired(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    assert coordinator.manifest is not None
    damaged = coordinator.manifest.units[2]
    path = cache_folder / damaged.digest.hex()
    async with joined(coordinator) as shard:
        await shard.assign(without_file(coordinator, 1))
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    async with joined(coordinator) as shard:
        await shard.assign(without_file(coordinator, 2))
        assert loaded(shard) == (0, size_of(coordinator, range(5)) - damaged.size_bytes, damaged.size_bytes)
        assert process_of(shard).output().count("is damaged, and was removed") == 1
        await require_right_tokens(coordinator, shard, 2)
    assert path.read_bytes() == right


async def test_a_corrupt_byte_on_the_wire_is_repaired(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    async with TcpProxy("127.0.0.1", coordinator.port) as proxy, joined(coordinator) as shard:
        proxy.corrupt(after_bytes=50_000)
        await shard.assign(without_file(coordinator, 1, None, ("coordinator", proxy.address)))
        assert proxy.corrupted_bytes == 1
        _, kept, received = loaded(shard)
        assert kept + received == size_of(coordinator, range(5))
        await require_right_tokens(coordinator, shard, 1)


async def test_a_transfer_that_is_cut_goes_on(coordinator: FakeCoordinator) -> None:
    whole = size_of(coordinator, range(5))
    async with TcpProxy("127.0.0.1", coordinator.port) as proxy, joined(coordinator) as shard:
        proxy.throttle(whole)
        preparing = asyncio.create_task(shard.prepare(without_file(coordinator, 1, None, ("coordinator", proxy.address))))
        while proxy.forwarded_bytes < whole / 2:
            await asyncio.sleep(0.01)
        proxy.cut()
        proxy.throttle(None)
        await preparing
        assert loaded(shard) == (0, 0, whole)


async def test_a_shard_that_was_killed_goes_on_where_it_was(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    whole = size_of(coordinator, range(5))
    async with TcpProxy("127.0.0.1", coordinator.port) as proxy:
        with contextlib.suppress(AssertionError):
            async with joined(coordinator) as shard:
                proxy.throttle(whole / 2)
                shard.say_assignment(without_file(coordinator, 1, None, ("coordinator", proxy.address)))
                while not cache_folder.exists() or bytes_in(cache_folder) < whole / 4:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(process_of(shard).kill)
        kept = bytes_in(cache_folder)
        async with joined(coordinator, name="again") as shard:
            await shard.prepare(without_file(coordinator, 2))
            assert loaded(shard) == (0, kept, whole - kept)


async def test_two_shards_on_one_host_fetch_once(coordinator: FakeCoordinator) -> None:
    whole = size_of(coordinator, range(5))
    async with TcpProxy("127.0.0.1", coordinator.port) as proxy, joined(coordinator, name="a") as a, joined(coordinator, name="b") as b:
        proxy.throttle(whole)
        source = ("coordinator", proxy.address)
        await asyncio.gather(*(shard.prepare(without_file(coordinator, 1, None, source)) for shard in (a, b)))
        assert loaded(a)[2] + loaded(b)[2] == whole
        assert loaded(a)[1] + loaded(b)[1] == whole


async def test_units_come_from_another_shard_and_the_rest_from_the_coordinator(
    coordinator: FakeCoordinator, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard has the file and part of the plan; another one kept what it fetched; the third has an empty disk of its own."""
    async with contextlib.AsyncExitStack() as stack:
        shards = []
        for name in "abc":
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
            folder = ["--model-dir", str(tiny.parent)] if name == "a" else []
            shards.append(await stack.enter_async_context(joined(coordinator, *folder, name=name)))
        a, b, c = shards
        await a.assign(without_file(coordinator, 1, range(0, 2)))
        await b.assign(without_file(coordinator, 1, range(1, 4)))
        proxy_a = await stack.enter_async_context(TcpProxy("127.0.0.1", int(a.address.rpartition(":")[2])))
        proxy_b = await stack.enter_async_context(TcpProxy("127.0.0.1", int(b.address.rpartition(":")[2])))
        proxy_0 = await stack.enter_async_context(TcpProxy("127.0.0.1", coordinator.port))
        sources = ("a", proxy_a.address), ("b", proxy_b.address), ("coordinator", proxy_0.address)
        await c.assign(without_file(coordinator, 2, None, *sources))
        assert loaded(c) == (0, 0, size_of(coordinator, range(5)))
        assert proxy_a.forwarded_bytes > size_of(coordinator, range(0, 1))
        assert proxy_b.forwarded_bytes > size_of(coordinator, range(2, 4))
        assert size_of(coordinator, range(4, 5)) < proxy_0.forwarded_bytes < size_of(coordinator, range(4, 5)) + 20_000
        await require_right_tokens(coordinator, c, 2)


async def test_a_peer_that_is_gone_does_no_harm(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(without_file(coordinator, 1, None, ("gone", "127.0.0.1:9")))
        assert loaded(shard)[2] == size_of(coordinator, range(5))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_disk_that_becomes_full_does_not_fail_the_load(coordinator: FakeCoordinator, small_disk: Path, cache_folder: Path) -> None:
    cache_folder.parent.mkdir(parents=True, exist_ok=True)
    cache_folder.symlink_to(small_disk)
    whole = size_of(coordinator, range(5))
    async with TcpProxy("127.0.0.1", coordinator.port) as proxy, joined(coordinator) as shard:
        proxy.throttle(whole)
        preparing = asyncio.create_task(shard.prepare(without_file(coordinator, 1, None, ("coordinator", proxy.address))))
        while proxy.forwarded_bytes < whole / 4:
            await asyncio.sleep(0.01)
        with contextlib.suppress(OSError), (small_disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        proxy.throttle(None)
        await preparing
        assert sum(loaded(shard)) == whole
        assert "No space left on device" in process_of(shard).output()
        await shard.activate(1)
        await require_right_tokens(coordinator, shard, 1)


async def test_a_disk_without_room_does_not_fail_the_load(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    async with joined(coordinator, "--weights-cache", "1KiB") as shard:
        await shard.assign(without_file(coordinator, 1))
        assert loaded(shard) == (0, 0, size_of(coordinator, range(5)))
        assert "is not kept" in process_of(shard).output()
        assert list(cache_folder.iterdir()) == []


async def test_nothing_is_kept_without_a_cache(coordinator: FakeCoordinator, cache_folder: Path) -> None:
    async with joined(coordinator, "--weights-cache", "0") as shard:
        await shard.assign(without_file(coordinator, 1))
        assert loaded(shard)[2] == size_of(coordinator, range(5))
        assert not cache_folder.exists()
