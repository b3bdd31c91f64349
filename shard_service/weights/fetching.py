"""Units over the network: from several members at once, through the disk cache, so that nothing is sent twice to one machine."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import grpc

from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.errors import DairllmError, InvalidRequest, PeerUnreachable, UnknownModel, WeightsDiffer
from dairllm.mesh.peers import Peer
from dairllm.mesh.streams import next_message
from dairllm.mesh.telemetry import fields
from dairllm.model_files.manifest import Unit
from dairllm.model_files.reader import chunks_of
from dairllm.shard_service.weights.direct import DirectMember
from dairllm.shard_service.weights.disk_cache import CompleteUnit, PartialUnit, WeightsCache
from dairllm.shard_service.weights.reading import FilePart, StreamedFile, UnitPlace
from dairllm.shard_service.weights.senders import WeightSenders
from dairllm.shard_service.weights.sources import Piece
from dairllm.v1 import weights_pb2, weights_pb2_grpc

_CONNECT_S = 5.0
_SILENCE_S = 6.0
_SILENCE_OF_LAST_S = 15.0
"""A member that sends nothing for so long is left; the last resort is given more time."""
_GIVE_UP_S = 60.0
_LOCK_POLL_S = 0.05
_LOCK_PATIENCE_S = 10.0

log = logging.getLogger(__name__)


class WeightMember(Protocol):
    name: str

    async def close(self) -> None: ...

    def pieces(self, unit: Unit, offset: int) -> AsyncGenerator[bytes, None]:
        """From this offset to the end. Raises UnknownModel if it lacks the unit, PeerUnreachable, WeightsDiffer, or what it answered."""
        ...


class RemoteMember:
    """A member that serves WeightsService, at any of these addresses."""

    def __init__(self, peer: Peer, model_digest: bytes, silence_s: float) -> None:
        self.name = peer.name
        self._silence_s = silence_s
        self._addresses = peer.addresses
        self._model_digest = model_digest
        self._channel: grpc.aio.Channel | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def pieces(self, unit: Unit, offset: int) -> AsyncGenerator[bytes, None]:
        request = weights_pb2.FetchUnitRequest(
            model_digest=self._model_digest, unit_index=unit.index, offset_bytes=offset, unit_digest=unit.digest
        )
        call = weights_pb2_grpc.WeightsServiceStub(await self._connected()).FetchUnit(request)
        try:
            while True:
                async with asyncio.timeout(self._silence_s):
                    response = await next_message(call)
                if response is None:
                    break
                _require_next(response, unit, offset, self.name)
                offset += len(response.data)
                yield response.data
        except TimeoutError as error:
            raise PeerUnreachable(f"{self.name} sent nothing of unit {unit.index} for {self._silence_s:g} s") from error
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error, self.name) from error
        finally:
            call.cancel()
        if offset < unit.size_bytes:
            raise PeerUnreachable(f"{self.name} ended unit {unit.index} at byte {offset} of {unit.size_bytes}")

    async def _connected(self) -> grpc.aio.Channel:
        """A channel of its own, so that weights never queue in front of activations; made when it is first needed."""
        async with self._connecting:
            if self._channel is None:
                self._channel = await dial(self._addresses, _CONNECT_S, self.name)
            return self._channel


class Transfer:
    """A unit from whichever members give it. senders: who gave any of it."""

    def __init__(self, members: "WeightMembers", unit: Unit, offset: int) -> None:
        self._members = members
        self._unit = unit
        self._offset = offset
        self.senders: set[str] = set()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Raises UnknownModel when no member has the unit, PeerUnreachable after `give_up_s` without a byte."""
        loop = asyncio.get_running_loop()
        progress_s, reason = loop.time(), "there is nobody to ask"
        while self._offset < self._unit.size_bytes:
            name = await self._members.next_sender(self._unit, reason)
            try:
                async with aclosing(self._from(name)) as pieces:
                    async for data in pieces:
                        progress_s = loop.time()
                        yield data
            except InvalidRequest as error:
                reason = str(error)
                self._members.senders.note_lack(name, self._unit.index)
            except DairllmError as error:
                reason = str(error)
                self._members.senders.note_failure(name, loop.time())
                if loop.time() - progress_s > self._members.give_up_s:
                    raise PeerUnreachable(f"nobody sends unit {self._unit.index} from byte {self._offset} on: {reason}") from error
                log.info("unit %d stopped at byte %d; it goes on from there: %s", self._unit.index, self._offset, reason)
                self._members.on_trouble(reason)

        log.debug("fetched", extra=fields(unit=self._unit.index, senders=",".join(sorted(self.senders)) or "none"))

    async def _from(self, name: str) -> AsyncGenerator[bytes, None]:
        """What this member gives, as long as it is not much slower than others."""
        loop, senders, index = asyncio.get_running_loop(), self._members.senders, self._unit.index
        senders.begin(name)
        try:
            began_s, received_bytes = loop.time(), 0
            async with aclosing(self._members.by_name[name].pieces(self._unit, self._offset)) as pieces:
                async for data in pieces:
                    received_bytes += len(data)
                    self._offset += len(data)
                    self.senders.add(name)
                    elapsed_s = loop.time() - began_s
                    senders.note_progress(name, received_bytes, elapsed_s)
                    yield data
                    if self._offset < self._unit.size_bytes and senders.is_too_slow(name, index, received_bytes, elapsed_s, loop.time()):
                        raise PeerUnreachable(f"{name} is much slower than others could be")
        finally:
            senders.end(name)


class WeightMembers:
    """Members that may have units of one model: at least one, best first, the last resort last. urls: where the model was fetched, which is
    asked as well (`direct`). Close it.

    on_trouble: is told whenever one has failed and another, or the same, is to be asked.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        model_digest: bytes,
        *,
        urls: Sequence[str] = (),
        give_up_s: float = _GIVE_UP_S,
        on_trouble: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.on_trouble = on_trouble
        members: list[WeightMember] = [RemoteMember(peer, model_digest, _SILENCE_S) for peer in peers[:-1]]
        members += [DirectMember(urls, _SILENCE_S)] if urls else []
        members.append(RemoteMember(peers[-1], model_digest, _SILENCE_OF_LAST_S))
        self.by_name = {member.name: member for member in members}
        self.senders = WeightSenders(list(self.by_name))
        self.give_up_s = give_up_s

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in self.by_name.values()))

    async def next_sender(self, unit: Unit, reason: str) -> str:
        """Who is to be asked. Raises UnknownModel, with the latest reason, if nobody has the unit."""
        loop = asyncio.get_running_loop()
        while (name := self.senders.choose(unit.index, loop.time())) is None:
            pause_s = self.senders.pause_s(unit.index, loop.time())
            if pause_s is None:
                raise UnknownModel(f"nobody has unit {unit.index}: {reason}")
            await asyncio.sleep(pause_s)
        return name


class FetchedUnits:
    """A source: the disk cache, else members, whose bytes go to the cache on their way.

    cache: None to keep nothing. keep: digests that are not removed from the cache to make room. A cache that cannot be used is a warning,
    and no reason to fail.
    """

    is_local = False
    attempts = 4

    def __init__(self, members: WeightMembers, cache: WeightsCache | None, threads: Executor, keep: Collection[bytes] = ()) -> None:
        self._members = members
        self._cache = cache
        self._threads = threads
        self._keep = keep

    def __str__(self) -> str:
        return "fetched weights"

    def offers(self, unit: Unit) -> bool:
        return True

    def place_of(self, unit: Unit) -> UnitPlace:
        """Its file in the cache."""
        try:
            complete = None if self._cache is None else self._cache.find(unit.digest, unit.size_bytes)
            if complete is not None:
                with complete:
                    return UnitPlace([FilePart(StreamedFile(complete.path, may_change=False), 0, unit.size_bytes)])
        except OSError as error:
            raise UnknownModel(f"unit {unit.index} cannot be streamed: {error}") from error
        raise UnknownModel(f"unit {unit.index} is to be streamed, but came over the network, and no weights cache has kept it")

    @asynccontextmanager
    async def opened(self, unit: Unit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        """The block raises WeightsDiffer if the bytes were wrong; otherwise what is complete is kept."""
        file = await self._file_for(unit)
        if isinstance(file, CompleteUnit):
            opening = self._from_cache(file)
        elif isinstance(file, PartialUnit):
            opening = self._through_cache(unit, file)
        else:
            opening = self._from_members(unit)
        async with opening as pieces:
            yield pieces

    @asynccontextmanager
    async def _from_cache(self, file: CompleteUnit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        with file:
            try:
                yield self._kept_pieces(file)
            except WeightsDiffer as error:
                await asyncio.get_running_loop().run_in_executor(self._threads, file.discard)
                raise WeightsDiffer(f"{file.path} is damaged, and was removed: {error}") from error

    @asynccontextmanager
    async def _through_cache(self, unit: Unit, file: PartialUnit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        assert self._cache is not None, "there is no partial file without a cache"
        began_with_bytes = file.size_bytes
        keeping = _Keeping(file, self._threads)
        transfer = Transfer(self._members, unit, began_with_bytes)
        try:
            yield self._kept_and_fetched_pieces(file, keeping, transfer)
            await keeping.end(is_right=True)
        except WeightsDiffer as error:
            await keeping.end(is_right=False)
            if began_with_bytes:
                raise WeightsDiffer(f"{file.path} was damaged, and is removed: {error}") from error
            self._members.senders.note_wrong(transfer.senders, unit.index)
            raise WeightsDiffer(f"{' and '.join(sorted(transfer.senders))}: {error}") from error
        finally:
            file.close()
            self._cache.end(unit.digest)

    @asynccontextmanager
    async def _from_members(self, unit: Unit) -> AsyncIterator[AsyncGenerator[Piece, None]]:
        transfer = Transfer(self._members, unit, 0)
        try:
            yield _from_network(transfer)
        except WeightsDiffer as error:
            self._members.senders.note_wrong(transfer.senders, unit.index)
            raise WeightsDiffer(f"{' and '.join(sorted(transfer.senders))}: {error}") from error

    async def _kept_and_fetched_pieces(self, file: PartialUnit, keeping: "_Keeping", transfer: Transfer) -> AsyncGenerator[Piece, None]:
        async with aclosing(self._kept_pieces(file)) as kept:
            async for piece in kept:
                yield piece
        async with aclosing(transfer.pieces()) as fetched:
            async for data in fetched:
                await keeping.append(data)
                yield Piece(data, is_local=False)

    async def _kept_pieces(self, file: CompleteUnit | PartialUnit) -> AsyncGenerator[Piece, None]:
        for offset, size in chunks_of(0, file.size_bytes):
            try:
                data = await asyncio.get_running_loop().run_in_executor(self._threads, file.read, offset, size)
            except OSError as error:
                raise WeightsDiffer(f"byte {offset} cannot be read: {error}") from error
            yield Piece(data, is_local=True)

    async def _file_for(self, unit: Unit) -> CompleteUnit | PartialUnit | None:
        """While another process fetches the unit, wait for it, as long as it gets on. None: go on without the cache."""
        if self._cache is None:
            return None
        loop = asyncio.get_running_loop()
        known_bytes, changed_s = -1, loop.time()
        while loop.time() - changed_s < _LOCK_PATIENCE_S:
            try:
                file = await self._begin(self._cache, unit)
            except OSError as error:
                log.warning("unit %d is not kept in the weights cache %s: %s", unit.index, self._cache, error)
                return None
            if file is not None:
                return file
            size_bytes = self._cache.partial_bytes(unit.digest)
            if size_bytes != known_bytes:
                known_bytes, changed_s = size_bytes, loop.time()
            await asyncio.sleep(_LOCK_POLL_S)
        log.warning("another process fetches unit %d, but gets no further; it is fetched here as well, and not kept", unit.index)
        return None

    async def _begin(self, cache: WeightsCache, unit: Unit) -> CompleteUnit | PartialUnit | None:
        """A file that is opened while this is cancelled is closed: its lock would outlive the load."""
        opening = asyncio.get_running_loop().run_in_executor(self._threads, cache.begin, unit.digest, unit.size_bytes, self._keep)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: self._put_back(cache, unit, done))
            raise

    @staticmethod
    def _put_back(cache: WeightsCache, unit: Unit, opening: "asyncio.Future[CompleteUnit | PartialUnit | None]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            return
        file = opening.result()
        if file is not None:
            file.close()
        if isinstance(file, PartialUnit):
            cache.end(unit.digest)


class _Keeping:
    """Writes a unit to its partial file, until the disk refuses: then it is fetched without being kept."""

    def __init__(self, file: PartialUnit, threads: Executor) -> None:
        self._file = file
        self._threads = threads
        self._works = True

    async def append(self, data: bytes) -> None:
        if self._works:
            await self._try(lambda: self._file.append(data))

    async def end(self, *, is_right: bool) -> None:
        if self._works:
            await self._try(self._file.commit if is_right else self._file.discard)

    async def _try(self, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, work)
        except OSError as error:
            self._works = False
            log.warning("%s is not kept: %s", self._file.path, error)
            with contextlib.suppress(OSError):
                await loop.run_in_executor(self._threads, self._file.discard)


async def _from_network(transfer: Transfer) -> AsyncGenerator[Piece, None]:
    async with aclosing(transfer.pieces()) as pieces:
        async for data in pieces:
            yield Piece(data, is_local=False)


def _require_next(response: weights_pb2.FetchUnitResponse, unit: Unit, offset: int, name: str) -> None:
    if response.offset_bytes != offset or not response.data or offset + len(response.data) > unit.size_bytes:
        raise WeightsDiffer(
            f"{name} sent {len(response.data)} bytes at offset {response.offset_bytes} of unit {unit.index}; "
            f"expected at most {unit.size_bytes - offset} at offset {offset}"
        )
