"""Where the bytes of a unit come from, besides memory: files that this machine can read, then the coordinator.

Every source gives a unit's bytes in order, in pieces of at most a few MiB; none of them is trusted, the digest decides.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import grpc

from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.errors import DairllmError, InvalidModel, PeerUnreachable, UnknownModel, WeightsDiffer
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.reader import FileSource, chunks_of
from dairllm.shard_service.assignment import AssignmentFacts, UnitFacts
from dairllm.v1 import weights_pb2, weights_pb2_grpc

_MOST_FILES_LOOKED_AT = 10_000
_CONNECT_S = 5.0
_SILENCE_S = 15.0
_GIVE_UP_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 3.0


class UnitSource(Protocol):
    @property
    def is_local(self) -> bool: ...

    def pieces(self, unit: UnitFacts) -> AsyncGenerator[bytes, None]:
        """The unit's bytes in order. Raises a DairllmError when this source cannot give them."""
        ...


class LocalFile:
    """A file that may be the assignment's model: it has its size."""

    is_local = True

    def __init__(self, path: Path, executor: Executor) -> None:
        self.path = path
        self._executor = executor

    def __str__(self) -> str:
        return str(self.path)

    async def pieces(self, unit: UnitFacts) -> AsyncGenerator[bytes, None]:
        loop = asyncio.get_running_loop()
        try:
            with FileSource(self.path) as file:
                for tensor in unit.tensors:
                    for offset, size in chunks_of(tensor.offset_bytes, tensor.size_bytes):
                        yield await loop.run_in_executor(self._executor, file.read, offset, size)
        except CorruptModelFile as error:
            raise InvalidModel(str(error)) from error


class RemoteMember:
    """A member that serves WeightsService, at any of these addresses. Interrupted transfers go on where they stopped."""

    is_local = False

    def __init__(self, addresses: Sequence[str], model_digest: bytes, name: str, *, give_up_s: float = _GIVE_UP_S) -> None:
        self._addresses = addresses
        self._model_digest = model_digest
        self._name = name
        self._give_up_s = give_up_s
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _connected(self) -> grpc.aio.Channel:
        """A channel of its own, so that weights never queue in front of activations; made when it is first needed."""
        if self._channel is None:
            self._channel = await dial(self._addresses, _CONNECT_S, self._name)
        return self._channel

    def __str__(self) -> str:
        return self._name

    async def pieces(self, unit: UnitFacts) -> AsyncGenerator[bytes, None]:
        """Raises PeerUnreachable after `give_up_s` without progress, or what the member answered if trying again would not help."""
        offset, pause_s = 0, _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        progress_s = loop.time()
        while offset < unit.size_bytes:
            try:
                async with aclosing(self._transfer(unit, offset)) as transfer:
                    async for data in transfer:
                        offset += len(data)
                        progress_s, pause_s = loop.time(), _FIRST_PAUSE_S
                        yield data
            except (PeerUnreachable, TimeoutError) as error:
                if loop.time() - progress_s > self._give_up_s:
                    raise PeerUnreachable(f"{self._name} stopped sending unit {unit.index} at byte {offset}: {error}") from error
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _transfer(self, unit: UnitFacts, offset: int) -> AsyncGenerator[bytes, None]:
        request = weights_pb2.FetchUnitRequest(model_digest=self._model_digest, unit_index=unit.index, offset_bytes=offset)
        call = weights_pb2_grpc.WeightsServiceStub(await self._connected()).FetchUnit(request)
        try:
            while True:
                async with asyncio.timeout(_SILENCE_S):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    break
                _require_next(response, unit, offset, self._name)
                offset += len(response.data)
                yield response.data
        except grpc.aio.AioRpcError as error:
            raise _fetch_error(error, unit, self._name) from error
        finally:
            call.cancel()
        if offset < unit.size_bytes:
            raise PeerUnreachable(f"{self._name} ended unit {unit.index} at byte {offset} of {unit.size_bytes}")


def find_local_files(assignment: AssignmentFacts, model_dirs: Sequence[Path]) -> list[Path]:
    """Files that have the size of the model's file: the coordinator's path first, then what lies under the model folders."""
    found: dict[tuple[int, int], Path] = {}
    for path in _candidates(assignment.model_path, model_dirs):
        try:
            status = path.stat()
        except OSError:
            continue
        if status.st_size == assignment.model_file_size_bytes and path.is_file():
            found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())


def _candidates(model_path: str, model_dirs: Sequence[Path]) -> Iterator[Path]:
    if model_path:
        yield Path(model_path)
    number = 0
    for folder in model_dirs:
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                number += 1
                if number > _MOST_FILES_LOOKED_AT:
                    return
                yield Path(parent, name)


def _require_next(response: weights_pb2.FetchUnitResponse, unit: UnitFacts, offset: int, name: str) -> None:
    if response.offset_bytes != offset or not response.data or offset + len(response.data) > unit.size_bytes:
        raise WeightsDiffer(
            f"{name} sent {len(response.data)} bytes at offset {response.offset_bytes} of unit {unit.index}; "
            f"expected at most {unit.size_bytes - offset} at offset {offset}"
        )


def _fetch_error(error: grpc.aio.AioRpcError, unit: UnitFacts, name: str) -> DairllmError:
    known = error_from_rpc(error)
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return PeerUnreachable(f"{name} cannot send unit {unit.index}: {known}")
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return UnknownModel(f"{name} has no unit {unit.index} of the model: {known}")
    return known
