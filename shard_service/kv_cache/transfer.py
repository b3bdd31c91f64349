"""Handing what a layer keeps of sequences over from its old owner to the new one, over ShardService.FetchKv: blocks of the KV cache, or the
states that sequences with these blocks go on from.

A transfer that fails harms nobody: what is missing is computed again. So it is tried once, with a deadline; what came over whole counts.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import grpc
import grpc.aio

from dairllm.kernels_pyx import KvCache
from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.errors import DairllmError, InvalidRequest, MalformedFrame, NotAMember, UnknownModel, Unsupported
from dairllm.mesh.peers import Peer
from dairllm.shard_service.kv_cache.layers import KvCaches, LayerCache
from dairllm.shard_service.kv_cache.state_book import StateKey
from dairllm.shard_service.kv_cache.states import LayerStates
from dairllm.v1 import cluster_pb2, shard_pb2, shard_pb2_grpc

TRANSFER_DEADLINE_S = 5.0
MAX_PIECE_BYTES = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class TransferFacts:
    """From this peer, the cache blocks in use of these layers. units: of the model, so that layer 0 is unit 1. kv_key: shown to it."""

    peer: Peer
    units: range
    block_ids: tuple[int, ...]
    kv_key: bytes = field(repr=False)


class TransferOutcome(NamedTuple):
    """units: those that came over whole. note: why others did not, for people."""

    units: tuple[int, ...]
    size_bytes: int
    note: str


def transfer_from_proto(message: cluster_pb2.KvTransfer) -> TransferFacts:
    peer: cluster_pb2.Peer = getattr(message, "from")
    units = range(message.first_unit, message.end_unit)
    return TransferFacts(Peer(peer.name, tuple(peer.addresses)), units, tuple(message.block_ids), message.kv_key)


async def take_over(transfers: Sequence[TransferFacts], caches: KvCaches, deadline_s: float = TRANSFER_DEADLINE_S) -> TransferOutcome:
    """Fill the caches, which are here already, all from their old owners at once. Never raises for a failing peer."""
    outcomes = await asyncio.gather(*(_take_over(transfer, caches, deadline_s) for transfer in transfers))
    units = sorted({unit for outcome in outcomes for unit in outcome.units})
    notes = [outcome.note for outcome in outcomes if outcome.note]
    return TransferOutcome(tuple(units), sum(outcome.size_bytes for outcome in outcomes), "; ".join(notes))


async def _take_over(transfer: TransferFacts, caches: KvCaches, deadline_s: float) -> TransferOutcome:
    receiver = _Receiver(transfer, caches)
    note = ""
    try:
        async with asyncio.timeout(deadline_s):
            await receiver.receive(deadline_s)
    except TimeoutError:
        note = f"{transfer.peer.name} did not send the KV cache within {deadline_s:g} s"
    except grpc.aio.AioRpcError as error:
        note = str(error_from_rpc(error, transfer.peer.name))
    except (DairllmError, ValueError) as error:
        note = str(error)
    return TransferOutcome(tuple(receiver.finished), receiver.size_bytes, note)


class _Receiver:
    def __init__(self, transfer: TransferFacts, caches: KvCaches) -> None:
        self._transfer = transfer
        self._model_digest = caches.model_digest
        self._caches = {unit: cache for unit in transfer.units if (cache := caches.get(unit)) is not None}
        self._missing = {unit: set(transfer.block_ids) for unit in self._caches}
        self._state = bytearray()
        self.size_bytes = 0

    @property
    def finished(self) -> list[int]:
        return [unit for unit, missing in self._missing.items() if not missing]

    async def receive(self, deadline_s: float) -> None:
        peer, units = self._transfer.peer, self._transfer.units
        if len(self._caches) < len(units):
            raise InvalidRequest(f"the KV cache of units {units.start} to {units.stop - 1} is to be taken over, but they are not all here")
        if not self._transfer.block_ids or not units:
            return
        async with await dial(peer.addresses, deadline_s, peer.name) as channel:
            for request in self._requests():
                async for response in shard_pb2_grpc.ShardServiceStub(channel).FetchKv(request):
                    self._take(response)

    def _requests(self) -> Iterator[shard_pb2.FetchKvRequest]:
        """One for each run of layers whose blocks have one size."""
        for block_bytes, run in groupby(self._caches, lambda unit: _block_bytes(self._caches[unit])):
            units = list(run)
            yield shard_pb2.FetchKvRequest(
                model_digest=self._model_digest,
                first_unit=units[0],
                end_unit=units[-1] + 1,
                block_ids=self._transfer.block_ids,
                block_bytes=block_bytes,
                kv_key=self._transfer.kv_key,
            )

    def _take(self, response: shard_pb2.FetchKvResponse) -> None:
        missing, cache, block_ids = self._missing.get(response.unit), self._caches.get(response.unit), response.block_ids
        if missing is None or cache is None or not missing.issuperset(block_ids):
            raise MalformedFrame(f"{self._transfer.peer.name} sent blocks of unit {response.unit} that nobody asked for")
        if isinstance(cache, LayerStates):
            self._take_state(response, cache)
            return
        if len(response.data) != len(block_ids) * cache.block_bytes:
            raise MalformedFrame(f"{self._transfer.peer.name} sent {len(response.data)} bytes for {len(block_ids)} blocks of the KV cache")
        view = memoryview(response.data)
        for index, block_id in enumerate(block_ids):
            cache.write_block(block_id, view[index * cache.block_bytes : (index + 1) * cache.block_bytes])
        missing.difference_update(block_ids)
        self.size_bytes += len(response.data)

    def _take_state(self, response: shard_pb2.FetchKvResponse, states: LayerStates) -> None:
        """A piece of a state; without data, the blocks whose states have all been sent."""
        if not response.data:
            self._missing[response.unit].difference_update(response.block_ids)
            return
        if response.offset_bytes == 0:
            self._state = bytearray()
        if len(response.block_ids) != 1 or response.offset_bytes != len(self._state):
            begins, sender = len(self._state), self._transfer.peer.name
            raise MalformedFrame(f"{sender} sent a part of a state at {response.offset_bytes}; expected {begins}")
        self._state += response.data
        if len(self._state) >= states.state_bytes:
            states.write(StateKey(response.block_ids[0], response.position), self._state)
        self.size_bytes += len(response.data)


async def kv_pieces(request: shard_pb2.FetchKvRequest, caches: KvCaches, kv_key: bytes) -> AsyncIterator[shard_pb2.FetchKvResponse]:
    """What FetchKv answers. kv_key: of this shard's cache; empty if nobody may fetch it.

    Raises NotAMember without the key, UnknownModel for a layer that is not here, Unsupported for another model or geometry.
    """
    if not kv_key or not hmac.compare_digest(request.kv_key, kv_key):
        raise NotAMember("KV cache is given to members of the plan only: the request does not have this shard's `kv_key`")
    if request.model_digest != caches.model_digest:
        raise Unsupported(f"this shard has no KV cache of the model {request.model_digest.hex()[:16]}")
    units = range(request.first_unit, request.end_unit)
    held = [(unit, cache) for unit in units[: len(caches.units)] if (cache := caches.get(unit)) is not None]
    if len(held) < len(units):
        raise UnknownModel(f"this shard holds the KV cache of units {sorted(caches.units)}; asked for {units.start} to {units.stop - 1}")
    for unit, cache in held:
        _require_geometry(request, unit, cache)
    for unit, cache in held:
        for piece in _state_pieces(request, unit, cache) if isinstance(cache, LayerStates) else _block_pieces(request, unit, cache):
            yield piece


def _block_pieces(request: shard_pb2.FetchKvRequest, unit: int, cache: KvCache) -> Iterator[shard_pb2.FetchKvResponse]:
    for block_ids in _pieces(request.block_ids, cache.block_bytes):
        _require_geometry(request, unit, cache)  # again: a change of plan may have come between two pieces
        data = b"".join([cache.read_block(block_id) for block_id in block_ids])
        yield shard_pb2.FetchKvResponse(unit=unit, block_ids=block_ids, data=data)


def _state_pieces(request: shard_pb2.FetchKvRequest, unit: int, states: LayerStates) -> Iterator[shard_pb2.FetchKvResponse]:
    for (block_id, position), offset, data in states.read(frozenset(request.block_ids), MAX_PIECE_BYTES):
        yield shard_pb2.FetchKvResponse(unit=unit, block_ids=[block_id], position=position, offset_bytes=offset, data=data)
    yield shard_pb2.FetchKvResponse(unit=unit, block_ids=request.block_ids)


def _block_bytes(cache: LayerCache) -> int:
    """What both must have alike."""
    return cache.state_bytes if isinstance(cache, LayerStates) else cache.block_bytes


def _require_geometry(request: shard_pb2.FetchKvRequest, unit: int, cache: LayerCache) -> None:
    if request.block_bytes != _block_bytes(cache):
        raise Unsupported(f"blocks of unit {unit} have {_block_bytes(cache)} bytes on this shard; asked for {request.block_bytes}")
    if not isinstance(cache, LayerStates) and max(request.block_ids, default=0) >= cache.num_blocks:
        raise Unsupported(f"unit {unit} has {cache.num_blocks} blocks on this shard; asked for block {max(request.block_ids)}")


def _pieces(block_ids: Sequence[int], block_bytes: int) -> Iterator[Sequence[int]]:
    step = max(1, MAX_PIECE_BYTES // block_bytes)
    for start in range(0, len(block_ids), step):
        yield block_ids[start : start + step]
