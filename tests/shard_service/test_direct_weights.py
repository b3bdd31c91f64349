"""Units from where the model was fetched: byte ranges of a server that cuts, lies and knows no ranges; and what is never asked for."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import InvalidModel, PeerUnreachable
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.shard_service.weights.direct import DirectMember, ranges_from, require_allowed
from dairllm.v1 import cluster_pb2
from tests.instruments.hub import Fault, Hub
from tests.shard_service.fake_coordinator import FakeCoordinator, Frames, RingEdge, greedy_tokens
from tests.shard_service.shard_processes import joined, process_of
from tests.shard_service.whole_model import WholeModel

FILES = tuple(bytes([index]) + bytes(range(256)) * 12_000 for index in range(2))
PROMPT = [3, 14, 15, 92, 65]


def unit_of(places: Sequence[tuple[int, int, int]]) -> Unit:
    """places: (file, offset, size)."""
    pieces = [TensorPiece(file_index=file, offset_bytes=offset, size_bytes=size) for file, offset, size in places]
    tensors = tuple(TensorInfo(name="t", role="q", block_format="F32", shape=(1,), pieces=(piece,)) for piece in pieces)
    size_bytes = sum(size for _, _, size in places)
    return Unit(index=1, tensors=tensors, size_bytes=size_bytes, digest=hashlib.sha256(content_of(places)).digest())


def content_of(places: Sequence[tuple[int, int, int]]) -> bytes:
    return b"".join(FILES[file][offset : offset + size] for file, offset, size in places)


PLACES = [(0, 100, 1000), (0, 1100, 2_000_000), (1, 5, 70), (0, 50, 3)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        running.web = {f"{index}.gguf": (data, {"ETag": f'"{index}"'}) for index, data in enumerate(FILES)}
        yield running


async def fetched(hub: Hub, places: Sequence[tuple[int, int, int]], offset: int = 0) -> bytes:
    member = DirectMember([f"{hub.url}/files/{index}.gguf" for index in range(2)], silence_s=0.5)
    try:
        return b"".join([piece async for piece in member.pieces(unit_of(places), offset)])
    finally:
        await member.close()


@pytest.mark.parametrize("offset", [0, 999, 1000, 1500, 2_001_000, 2_001_073])
async def test_a_unit_comes_in_as_few_ranges_as_it_lies_in(hub: Hub, offset: int) -> None:
    assert await fetched(hub, PLACES, offset) == content_of(PLACES)[offset:]
    assert len(hub.asked) == len(ranges_from(unit_of(PLACES), offset)) <= 3


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 500), st.integers(1, 50)), min_size=1, max_size=8),
    st.integers(0, 400),
)
def test_ranges_are_the_bytes_of_the_unit(places: list[tuple[int, int, int]], offset: int) -> None:
    ranges = ranges_from(unit_of(places), offset)
    assert b"".join(FILES[one.file_index][one.start : one.end] for one in ranges) == content_of(places)[offset:]
    assert all(one.start < one.end for one in ranges)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(status=503), "answers 503"),
        (Fault(status=404), "answers 404"),
        (Fault(after_bytes=500), "before the end"),
        (Fault(ignores_ranges=True), "knows no ranges"),
        (Fault(silent_s=1.0), "sends nothing for 0.5 s"),
    ],
)
async def test_what_goes_wrong_is_the_fault_of_that_member(hub: Hub, fault: Fault, told: str) -> None:
    hub.content_faults.append(fault)
    with pytest.raises(PeerUnreachable, match=told):
        await fetched(hub, PLACES)
    assert await fetched(hub, PLACES) == content_of(PLACES)


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("https://example.com/x.gguf", True),
        ("https://hub.local:8443/o/n/resolve/c/x.gguf", True),
        ("http://hub:1/o/n/resolve/c/x.gguf", True),
        ("http://hub:12/x.gguf", False),
        ("http://example.com/x.gguf", False),
        ("https://127.0.0.1/x.gguf", False),
        ("https://localhost/x.gguf", False),
        ("https://192.168.1.1/x.gguf", False),
        ("https://[fe80::1]/x.gguf", False),
        ("https://[::1/x.gguf", False),
        ("https://user:word@example.com/x.gguf", False),
        ("file:///etc/passwd", False),
        ("", False),
    ],
)
def test_a_shard_asks_its_own_hub_and_the_world_and_nobody_near(url: str, is_allowed: bool) -> None:
    if is_allowed:
        require_allowed([url], "http://hub:1")
    else:
        with pytest.raises(InvalidModel, match="weights are not fetched from"):
            require_allowed(["https://example.com/1.gguf", url], "http://hub:1")


def from_hub(coordinator: FakeCoordinator, hub: Hub) -> cluster_pb2.Assignment:
    """Of a model that is on no disk here."""
    assignment = coordinator.assignment(1, model_folder="/nowhere")
    assignment.model_urls.append(f"{hub.url}/files/model.gguf")
    return assignment


@pytest.mark.parametrize("arguments", [(), ("--no-direct-weights",)])
async def test_a_shard_process_takes_its_units_from_there_unless_told_not_to(
    coordinator: FakeCoordinator, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    assert coordinator.model is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.web["model.gguf"] = (coordinator.model.read_bytes(), {"ETag": '"one"'})
    hub.content_faults.append(Fault(after_bytes=100))
    async with joined(coordinator, *arguments) as shard:
        await shard.assign(from_hub(coordinator, hub))
        async with await RingEdge.open(shard, epoch=1) as edge:
            assert await greedy_tokens(edge, coordinator, Frames(1), PROMPT, 4) == WholeModel(coordinator).greedy(PROMPT, 4)
    assert bool(hub.asked) == (not arguments)
    assert all(one.range for one in hub.asked)


async def test_wrong_bytes_are_noticed_and_the_unit_comes_from_elsewhere(
    coordinator: FakeCoordinator, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert coordinator.model is not None
    content = bytearray(coordinator.model.read_bytes())
    content[-1000:] = bytes(1000)
    hub.web["model.gguf"] = (bytes(content), {"ETag": '"one"'})
    async with joined(coordinator) as shard:
        await shard.assign(from_hub(coordinator, hub))
        async with await RingEdge.open(shard, epoch=1) as edge:
            assert await greedy_tokens(edge, coordinator, Frames(1), PROMPT, 4) == WholeModel(coordinator).greedy(PROMPT, 4)
        assert "has the digest" in process_of(shard).output()


async def test_a_member_that_is_closed_leaves_no_thread_waiting(hub: Hub) -> None:
    hub.content_faults.append(Fault(silent_s=0.4))
    member = DirectMember([f"{hub.url}/files/0.gguf"], silence_s=0.2)
    with pytest.raises(PeerUnreachable):
        async for _ in member.pieces(unit_of([(0, 0, 10)]), 0):
            pass
    await asyncio.wait_for(member.close(), 1)
