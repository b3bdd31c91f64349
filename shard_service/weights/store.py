"""The weights that this shard holds, by the digest of their unit: what is held already is never read again."""

import asyncio
import logging
import weakref
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from dairllm.mesh.errors import DairllmError, UnknownModel, WeightsDiffer
from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.model_files.memory import streamed_bytes, weights_bytes
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.weights.assembler import LoadedUnit, UnitAssembler, share_matrix
from dairllm.shard_service.weights.embedding_rows import EmbeddingRows
from dairllm.shard_service.weights.experts import ExpertStore
from dairllm.shard_service.weights.sources import Piece, UnitSource
from dairllm.shard_service.weights.streaming import WeightStream
from dairllm.shard_service.weights.streams import NO_STREAMS, Streams
from dairllm.shard_service.weights.writers import Matrices, Weights

_UNITS_FETCHED_AT_ONCE = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """Bytes of the assignment's units, as the model file has them, by where they came from."""

    total_bytes: int
    from_memory_bytes: int = 0
    from_disk_bytes: int = 0
    from_network_bytes: int = 0

    @property
    def loaded_bytes(self) -> int:
        return self.from_memory_bytes + self.from_disk_bytes + self.from_network_bytes


ReportProgress = Callable[[LoadCounts], None]


class LayerStore:
    """Only one `load` at a time; it may be cancelled at any await and leaves the units that were complete."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._units: dict[UnitKey, LoadedUnit] = {}
        self._streams: weakref.WeakSet[WeightStream | ExpertStore | EmbeddingRows] = weakref.WeakSet()

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights in memory, a shared matrix counted once; of those that are streamed, what there is of them at a time."""
        sizes = {id(weights): _size_bytes(weights) for unit in self._units.values() for weights in unit.weights.values()}
        return sum(sizes.values()) + sum(stream.size_bytes for stream in self._streams)

    def keep_only(self, *assignments: AssignmentFacts) -> None:
        """Free all units that none of these assignments has in memory."""
        wanted = {_key(unit) for assignment in assignments for unit in assignment.resident_units}
        self._units = {key: unit for key, unit in self._units.items() if key in wanted}

    def bytes_besides(self, *assignments: AssignmentFacts) -> int:
        """Bytes of units in memory that none of these assignments has there."""
        wanted = {_key(unit) for assignment in assignments for unit in assignment.resident_units}
        return weights_bytes(unit.facts for key, unit in self._units.items() if key not in wanted)

    def held_units(self) -> tuple[bytes, list[int]]:
        """Digest of the model of which most units are here, and their indexes, ascending."""
        by_model: dict[bytes, set[int]] = {}
        for unit in self._units.values():
            by_model.setdefault(unit.model_digest, set()).add(unit.facts.index)
        digest = max(by_model, key=lambda digest: len(by_model[digest]), default=b"")
        return digest, sorted(by_model.get(digest, ()))

    async def load(
        self, assignment: AssignmentFacts, sources: Sequence[UnitSource], report: ReportProgress, streams: Streams = NO_STREAMS
    ) -> tuple[LoadedUnit, ...]:
        """All units of the assignment, in order: from memory, else from the first source that has the right bytes.

        Of those that are streamed the bytes are verified, and it is settled where they are read from. Files are read one unit after the
        other; of what comes from elsewhere several units are under way at once. Raises the last source's error if none has a unit.
        """
        counting = _Counting(sum(unit.size_bytes for unit in assignment.units), report)
        plan = _Loading(assignment.model_digest, sources, counting, streams)
        self._streams.update(streams)
        tasks: list[asyncio.Task[LoadedUnit]] = []
        for unit in assignment.units:
            before = [task for other, task in zip(assignment.units, tasks, strict=False) if share_matrix(other, unit)]
            tasks.append(asyncio.create_task(self._get(unit, before, plan), name=f"load-unit-{unit.index}"))
        return tuple(await _all_of(tasks))

    async def _get(self, unit: Unit, before: Sequence[asyncio.Task[LoadedUnit]], plan: "_Loading") -> LoadedUnit:
        """before: units with a matrix of this one, which is not packed twice."""
        if before:
            await asyncio.wait(before)
        counts = plan.counting.of_unit()
        if plan.streams.has(unit.index):
            return await self._load(unit, plan, counts)
        held = self._units.get(_key(unit))
        if held is not None:
            counts.add("memory", unit.size_bytes)
            return held
        loaded = await self._load(unit, plan, counts)
        self._units[_key(unit)] = loaded
        return loaded

    async def _load(self, unit: Unit, plan: "_Loading", counts: "_UnitCounts") -> LoadedUnit:
        last: DairllmError = UnknownModel(f"no source has unit {unit.index} of the model")
        for source in plan.sources:
            async with plan.turn(source):
                for _ in range(source.attempts if source.offers(unit) else 0):
                    try:
                        loaded = await self._load_from(source, self._assembler(unit, plan), unit, counts)
                        if plan.streams.has(unit.index):
                            place = await asyncio.get_running_loop().run_in_executor(self._executor, source.place_of, unit)
                            plan.streams.place(unit.index, place)
                        return loaded
                    except DairllmError as error:
                        counts.clear()
                        last = type(error)(f"{source}: {error}")
                        log.warning("%s; it is read anew, or the next source is tried", last)
                        if not isinstance(error, WeightsDiffer):
                            break
        raise last

    async def _load_from(self, source: UnitSource, assembler: UnitAssembler, unit: Unit, counts: "_UnitCounts") -> LoadedUnit:
        loop = asyncio.get_running_loop()
        async with source.opened(unit) as opened, aclosing(_one_ahead(opened)) as pieces:
            async for data, is_local in pieces:
                await asyncio.gather(
                    loop.run_in_executor(self._executor, assembler.hash, data),
                    loop.run_in_executor(self._executor, assembler.pack, data),
                )
                counts.add("disk" if is_local else "network", len(data))
            return assembler.finish()

    def _assembler(self, unit: Unit, plan: "_Loading") -> UnitAssembler:
        """What is streamed has its matrices already, and nothing is packed into them yet."""
        same_model = [held for held in self._units.values() if held.model_digest == plan.model_digest]

        def find_shared(tensor: TensorInfo) -> Matrices | None:
            if plan.streams.has(unit.index):
                return plan.streams.matrix_of(unit.index, tensor.role)
            return next((matrix for held in same_model if (matrix := held.matrix_of(tensor)) is not None), None)

        return UnitAssembler(unit, plan.model_digest, find_shared)


async def _one_ahead(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The same pieces; while one is worked on, the next one is read."""
    following = asyncio.ensure_future(anext(pieces, None))
    try:
        while (piece := await following) is not None:
            following = asyncio.ensure_future(anext(pieces, None))
            yield piece
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await pieces.aclose()


async def _all_of(tasks: Sequence[asyncio.Task[LoadedUnit]]) -> list[LoadedUnit]:
    """What they give, in order. The first failure, or being cancelled, ends all."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Loading:
    """One call of `load`."""

    def __init__(self, model_digest: bytes, sources: Sequence[UnitSource], counting: "_Counting", streams: Streams) -> None:
        self.model_digest = model_digest
        self.streams = streams
        self.sources = sources
        self.counting = counting
        self._reading = asyncio.Semaphore(1)
        self._fetching = asyncio.Semaphore(_UNITS_FETCHED_AT_ONCE)

    def turn(self, source: UnitSource) -> asyncio.Semaphore:
        return self._reading if source.is_local else self._fetching


class _Counting:
    def __init__(self, total_bytes: int, report: ReportProgress) -> None:
        self._total_bytes = total_bytes
        self._by_origin = {"memory": 0, "disk": 0, "network": 0}
        self._report = report

    def of_unit(self) -> "_UnitCounts":
        return _UnitCounts(self)

    def add(self, origin: str, size_bytes: int) -> None:
        self._by_origin[origin] += size_bytes
        by = self._by_origin
        self._report(LoadCounts(self._total_bytes, by["memory"], by["disk"], by["network"]))


class _UnitCounts:
    """What of one unit has been counted, to be taken back if it was wrong."""

    def __init__(self, counting: _Counting) -> None:
        self._counting = counting
        self._by_origin: dict[str, int] = {}

    def add(self, origin: str, size_bytes: int) -> None:
        self._by_origin[origin] = self._by_origin.get(origin, 0) + size_bytes
        self._counting.add(origin, size_bytes)

    def clear(self) -> None:
        for origin, size_bytes in self._by_origin.items():
            self._counting.add(origin, -size_bytes)
        self._by_origin.clear()


def bytes_together(*assignments: AssignmentFacts) -> int:
    """Memory for the weights of all these assignments at once; what two of them share counts once, but for what is streamed."""
    by_model: dict[bytes, dict[UnitKey, Unit]] = {}
    for assignment in assignments:
        by_model.setdefault(assignment.model_digest, {}).update((_key(unit), unit) for unit in assignment.resident_units)
    streams = [assignment.streamed_sizes for assignment in assignments]
    experts_bytes = sum(assignment.experts_in_memory.size_bytes for assignment in assignments)
    return sum(weights_bytes(units.values()) for units in by_model.values()) + sum(map(streamed_bytes, streams)) + experts_bytes


UnitKey = tuple[bytes, tuple[tuple[str, str, str, tuple[int, ...], tuple[str, ...]], ...]]


def _key(unit: Unit) -> UnitKey:
    """Equal bytes in equal shapes are the same weights, whatever file they lie in."""
    contents = [(one.role, one.block_format, one.packed_format, one.shape, one.transforms) for one in unit.tensors]
    return unit.digest, tuple(contents)


def _size_bytes(weights: Weights) -> int:
    return weights.nbytes if isinstance(weights, np.ndarray) else weights.size_bytes
