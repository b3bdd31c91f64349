"""The weights that this shard holds, by the digest of their unit: what is held already is never read again."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from dairllm.kernels_pyx import PackedMatrix
from dairllm.mesh.errors import DairllmError, UnknownModel, WeightsDiffer
from dairllm.shard_service.assignment import AssignmentFacts, TensorFacts, UnitFacts
from dairllm.shard_service.sources import UnitSource
from dairllm.shard_service.unit_assembler import LoadedUnit, UnitAssembler, demanded_bytes

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

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights in memory, a shared matrix counted once."""
        sizes = {id(weights): _size_bytes(weights) for unit in self._units.values() for weights in unit.weights.values()}
        return sum(sizes.values())

    def keep_only(self, *assignments: AssignmentFacts) -> None:
        """Free all units that none of these assignments has."""
        wanted = {_key(unit) for assignment in assignments for unit in assignment.units}
        self._units = {key: unit for key, unit in self._units.items() if key in wanted}

    def bytes_besides(self, *assignments: AssignmentFacts) -> int:
        """Bytes of units in memory that none of these assignments has."""
        wanted = {_key(unit) for assignment in assignments for unit in assignment.units}
        return demanded_bytes(tuple(unit.facts for key, unit in self._units.items() if key not in wanted))

    def held_units(self) -> tuple[bytes, list[int]]:
        """Digest of the model of which most units are here, and their indexes, ascending."""
        by_model: dict[bytes, set[int]] = {}
        for unit in self._units.values():
            by_model.setdefault(unit.model_digest, set()).add(unit.facts.index)
        digest = max(by_model, key=lambda digest: len(by_model[digest]), default=b"")
        return digest, sorted(by_model.get(digest, ()))

    async def load(self, assignment: AssignmentFacts, sources: Sequence[UnitSource], report: ReportProgress) -> tuple[LoadedUnit, ...]:
        """All units of the assignment, in order: from memory, else from the first source that has the right bytes.

        Raises the last source's error if none has them.
        """
        counts = _Counting(sum(unit.size_bytes for unit in assignment.units), report)
        usable = list(sources)
        return tuple([await self._get(unit, assignment.model_digest, usable, counts) for unit in assignment.units])

    async def _get(self, unit: UnitFacts, model_digest: bytes, usable: list[UnitSource], counts: "_Counting") -> LoadedUnit:
        held = self._units.get(_key(unit))
        if held is not None:
            counts.add("memory", unit.size_bytes)
            return held
        loaded = await self._load(unit, model_digest, usable, counts)
        self._units[_key(unit)] = loaded
        return loaded

    async def _load(self, unit: UnitFacts, model_digest: bytes, usable: list[UnitSource], counts: "_Counting") -> LoadedUnit:
        last: DairllmError = UnknownModel(f"no source has unit {unit.index} of the model")
        for source in list(usable):
            mark = counts.mark()
            try:
                return await self._load_from(source, self._assembler(unit, model_digest), unit, counts)
            except DairllmError as error:
                counts.reset(mark)
                last = type(error)(f"{source}: {error}")
                log.warning("%s; the next source is tried", last)
                if isinstance(error, WeightsDiffer) or source.is_local:
                    usable.remove(source)  # a file that differs in one unit is not used for any other
        raise last

    async def _load_from(self, source: UnitSource, assembler: UnitAssembler, unit: UnitFacts, counts: "_Counting") -> LoadedUnit:
        loop = asyncio.get_running_loop()
        async with aclosing(_one_ahead(source.pieces(unit))) as pieces:
            async for data in pieces:
                await asyncio.gather(
                    loop.run_in_executor(self._executor, assembler.hash, data),
                    loop.run_in_executor(self._executor, assembler.pack, data),
                )
                counts.add("disk" if source.is_local else "network", len(data))
        return assembler.finish()

    def _assembler(self, unit: UnitFacts, model_digest: bytes) -> UnitAssembler:
        same_model = [held for held in self._units.values() if held.model_digest == model_digest]

        def find_shared(tensor: TensorFacts) -> PackedMatrix | None:
            return next((matrix for held in same_model if (matrix := held.matrix_of(tensor)) is not None), None)

        return UnitAssembler(unit, model_digest, find_shared)


async def _one_ahead(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same pieces; while one is worked on, the next one is read."""
    following = asyncio.ensure_future(anext(pieces, None))
    try:
        while (data := await following) is not None:
            following = asyncio.ensure_future(anext(pieces, None))
            yield data
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await pieces.aclose()


class _Counting:
    def __init__(self, total_bytes: int, report: ReportProgress) -> None:
        self._total_bytes = total_bytes
        self._by_source = {"memory": 0, "disk": 0, "network": 0}
        self._report = report

    def add(self, source: str, size_bytes: int) -> None:
        self._by_source[source] += size_bytes
        self._tell()

    def mark(self) -> dict[str, int]:
        return dict(self._by_source)

    def reset(self, mark: dict[str, int]) -> None:
        self._by_source = mark
        self._tell()

    def _tell(self) -> None:
        by = self._by_source
        self._report(LoadCounts(self._total_bytes, by["memory"], by["disk"], by["network"]))


def bytes_together(*assignments: AssignmentFacts) -> int:
    """Memory for the weights of all these assignments at once; what two of them share counts once."""
    by_model: dict[bytes, dict[UnitKey, UnitFacts]] = {}
    for assignment in assignments:
        by_model.setdefault(assignment.model_digest, {}).update((_key(unit), unit) for unit in assignment.units)
    return sum(demanded_bytes(tuple(units.values())) for units in by_model.values())


UnitKey = tuple[bytes, tuple[tuple[str, str, tuple[int, ...]], ...]]


def _key(unit: UnitFacts) -> UnitKey:
    """Equal bytes in equal shapes are the same weights, whatever file they lie in."""
    return unit.digest, tuple((tensor.role, tensor.block_format, tensor.shape) for tensor in unit.tensors)


def _size_bytes(weights: object) -> int:
    return int(weights.size_bytes if isinstance(weights, PackedMatrix) else getattr(weights, "nbytes", 0))
