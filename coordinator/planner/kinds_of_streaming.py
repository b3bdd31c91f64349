"""What need not stay in memory: whole layers, or of layers with experts all experts but those that are chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dairllm.coordinator.planner.demand import ModelDemand
from dairllm.model_files.memory import EXPERTS_FEATURE, STREAM_READERS, STREAMED_FEATURE, ExpertsInMemory, ExpertsSize, slots_bytes


@dataclass(frozen=True, slots=True)
class StreamedPart:
    """What a stage reads anew for every step.

    weights_bytes: of all its weights, in memory. size_bytes: that a step of one row reads; ahead_bytes: of these, while other stages
    compute. layers: the units that are read, maybe embedding and head among them. expert_places: so many experts are in memory, 0: all;
    num_touched: so many a row chooses; missed_share: of these, how many have to be read if all are equally likely.
    """

    weights_bytes: int = 0
    size_bytes: int = 0
    ahead_bytes: int = 0
    layers: tuple[int, ...] = ()
    expert_places: int = 0
    num_touched: int = 0
    missed_share: float = 0.0

    def with_misses(self, ratio: float) -> "StreamedPart":
        """Where so many of the experts have to be read that would have to be if all were equally likely."""
        return replace(self, size_bytes=round(self.size_bytes * ratio)) if self.expert_places else self

    def passing_ps(self, step_ps: int, ps_per_byte: float) -> int:
        """From a row's arrival to its departure. step_ps: of computing alone."""
        reading_ps = round((self.size_bytes - self.ahead_bytes) * ps_per_byte)
        return step_ps + reading_ps if self.expert_places else max(step_ps, reading_ps)


NOTHING_STREAMED = StreamedPart()


class Streaming(Protocol):
    """feature: what a shard must be able to do. sizes: of each unit, bytes that need not stay in memory. buffers_bytes: what a machine
    needs beside what stays, at least. read_share: of what does not stay, how much a step of one row reads."""

    @property
    def feature(self) -> str: ...
    @property
    def sizes(self) -> Sequence[int]: ...
    @property
    def buffers_bytes(self) -> int: ...
    @property
    def read_share(self) -> float: ...
    def part_of(self, units: range, room_bytes: int) -> StreamedPart | None:
        """The least that must be read with so much room for weights. None if there is too little room for any of it."""
        ...


@dataclass(frozen=True, slots=True)
class StreamedLayers:
    """Whole layers, each of which is read anew for every step, and the head, where so less is read or where it must. Rows of the embedding
    are read as they are needed, which costs nothing, unless it is the head's matrix, too, which stays on the same shard."""

    demand: ModelDemand
    feature: str = STREAMED_FEATURE
    read_share: float = 1.0
    sizes: Sequence[int] = field(init=False)
    buffers_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", self.demand.streamed_sizes)
        object.__setattr__(self, "buffers_bytes", self.demand.stream_buffers_bytes)

    def part_of(self, units: range, room_bytes: int) -> StreamedPart | None:
        """The fewest bytes of layers, or of head and layers, with which the others have room."""
        found = self._part(units, (), room_bytes)
        if found is not None:
            return found
        can = [unit for unit in units if self.demand.units[unit].streamed is not None]
        head = tuple(unit for unit in can if unit == self.demand.num_units - 1)
        embedding, layers = tuple(unit for unit in can if unit == 0), [unit for unit in can if unit > 0 and unit not in head]
        is_shared = self.demand.tied_bytes > 0 and units.stop == self.demand.num_units
        found = self._fewest(units, () if is_shared else embedding, layers, (), room_bytes)
        if head and (found is None or found.size_bytes > self.sizes[head[0]]):
            with_head = self._fewest(units, embedding, layers, head, room_bytes)
            if with_head is not None and (found is None or with_head.size_bytes < found.size_bytes):
                return with_head
        return found

    def _fewest(
        self, units: range, before: tuple[int, ...], layers: list[int], behind: tuple[int, ...], room_bytes: int
    ) -> StreamedPart | None:
        """With as few of these layers as can be. None of them may have room where one has not, which is read to somewhere."""
        found = self._part(units, (*before, *behind), room_bytes)
        fails, works = 0, 1 if found else len(layers) + 1
        while works - fails > 1:
            middle = (fails + works) // 2
            part = self._part(units, (*before, *_spread(layers, middle), *behind), room_bytes)
            fails, works = (middle, works) if part is None else (fails, middle)
            found = part or found
        return found

    def _part(self, units: range, chosen: tuple[int, ...], room_bytes: int) -> StreamedPart | None:
        weights_bytes = self.demand.resident_bytes(units, chosen)
        if weights_bytes > room_bytes:
            return None
        size_bytes = sum(self.sizes[unit] for unit in chosen if unit > 0)
        slots = slots_bytes(size for unit in chosen if (size := self.demand.units[unit].streamed) is not None)
        return StreamedPart(weights_bytes, size_bytes, min(size_bytes, slots), chosen)


def _spread(layers: list[int], count: int) -> tuple[int, ...]:
    """So many of them, as far from each other as possible."""
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))


@dataclass(frozen=True, slots=True)
class ExpertsInPlaces:
    """Of all layers with experts of a stage: as many of them stay as there is room for, and those that are chosen are read."""

    demand: ModelDemand
    feature: str = EXPERTS_FEATURE
    sizes: Sequence[int] = field(init=False)
    buffers_bytes: int = field(init=False)
    read_share: float = field(init=False)

    def __post_init__(self) -> None:
        every = self._sizes_of(range(self.demand.num_units))
        largest = max((size.place_bytes for size in every), default=0)
        reading_bytes = STREAM_READERS * max((size.reading_bytes for size in every), default=0)
        chosen, total = (sum(getattr(size, name) * size.place_bytes for size in every) for name in ("num_used", "num_experts"))
        object.__setattr__(self, "sizes", [unit.expert_bytes if unit.experts else 0 for unit in self.demand.units])
        object.__setattr__(self, "buffers_bytes", max((size.num_used for size in every), default=0) * largest + reading_bytes)
        object.__setattr__(self, "read_share", chosen / total if total else 1.0)

    def part_of(self, units: range, room_bytes: int) -> StreamedPart | None:
        all_bytes, sizes = self.demand.weights_bytes(units), self._sizes_of(units)
        if all_bytes <= room_bytes or not sizes:
            return StreamedPart(all_bytes) if all_bytes <= room_bytes else None
        besides = all_bytes - sum(self.demand.units[unit].size_bytes for unit in units if self.demand.units[unit].experts)
        none = ExpertsInMemory(sizes, 0)
        most = sum(size.num_experts for size in sizes)
        experts = ExpertsInMemory(sizes, min(most, (room_bytes - besides - none.size_bytes) // none.place_bytes))
        if experts.num_places < none.least_places:
            return None
        missed = 1 - experts.expected_hits
        read_bytes = round(missed * sum(size.num_used * size.place_bytes for size in sizes))
        return StreamedPart(besides + experts.size_bytes, read_bytes, 0, (), experts.num_places, experts.num_touched, missed)

    def _sizes_of(self, units: range) -> list[ExpertsSize]:
        return [size for unit in units if (size := self.demand.units[unit].experts) is not None]
