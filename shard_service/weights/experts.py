"""Experts of layers for which there is too little memory: all share places of one size. One that is chosen and is in none is read.

    place     0     1     2     3     4   …
    expert   3.17  1.4   3.90  2.17  1.55     layer and number

Above the cliff, with a place for every expert that a row chooses in all layers, the expert that was not used for the longest time makes
room. Below it that one would always be the next to be wanted: there the first experts that come to most of the places stay, and the others
take turns in the rest (`ExpertsInMemory` in `model_files/memory.py`).

Gate and up of all that are missing are read before any down, so that the kernels compute with them meanwhile. Nothing is read that nobody
has chosen.
"""

import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from dairllm.kernels_pyx import ExpertPlaces, PackedStack, WeightMemory
from dairllm.mesh.errors import DairllmError
from dairllm.model_files.manifest import Unit
from dairllm.model_files.memory import ExpertsInMemory, expert_layout, experts_size_of
from dairllm.shard_service.weights.reading import MatrixPiece, Order, PieceReaders, StreamMeter, UnitPlace, pieces_of


class Expert(NamedTuple):
    unit: int
    number: int


@dataclass(slots=True)
class _Place:
    """left: pieces of its expert that are still to come, those of gate and up among them. stays: its expert does."""

    number: int
    left: int = 0
    left_first: int = 0
    stays: bool = False


@dataclass(slots=True)
class _Layer:
    """pieces: of each expert, those of gate and up first. keeper: whom the kernels ask, as long as the places of its experts live."""

    stacks: Mapping[str, PackedStack]
    places: ExpertPlaces
    pieces: Sequence[Sequence[MatrixPiece]]
    place: UnitPlace | None = field(default=None)


class _Keeper:
    """The kernels' way to the store, which does not keep it alive."""

    def __init__(self, store: "ExpertStore", unit: int) -> None:
        self._store = weakref.ref(store)
        self._unit = unit

    def want(self, experts: list[int]) -> list[bool]:
        return self._living().want(self._unit, experts)

    def wait(self, whole: bool) -> None:
        self._living().wait(whole=whole)

    def _living(self) -> "ExpertStore":
        store = self._store()
        assert store is not None, "whoever computes with experts holds their store"
        return store


class ExpertStore:
    """num_used: experts that a row chooses, by unit. All units are placed before the first expert is wanted; one thread computes."""

    def __init__(self, units: Sequence[Unit], num_used: Mapping[int, int], num_places: int, threads: Executor, meter: StreamMeter) -> None:
        sizes = [size for unit in units if (size := experts_size_of(unit, num_used[unit.index])) is not None]
        assert len(sizes) == len(units), "only layers with experts"
        self.in_memory = ExpertsInMemory(sizes, num_places)
        memory = WeightMemory(num_places * self.in_memory.place_bytes)
        self._most = num_places - self.in_memory.num_pinned
        self._layers = {unit.index: self._layer(unit, memory) for unit in units}
        self._free = [_Place(number) for number in reversed(range(num_places))]
        self._left_to_pin = self.in_memory.num_pinned
        self._resident: OrderedDict[Expert, _Place] = OrderedDict()
        self._wanted: list[Expert] = []
        self._failure: DairllmError | None = None
        largest_bytes = max(piece.size_bytes for layer in self._layers.values() for pieces in layer.pieces for piece in pieces)
        self._readers = PieceReaders(threads, meter, largest_bytes)
        self._meter = meter

    def _layer(self, unit: Unit, memory: WeightMemory) -> _Layer:
        offsets, _ = expert_layout(unit)
        stacks = [tensor for tensor in unit.tensors if tensor.is_expert_stack]
        num_experts = stacks[0].shape[0]
        places = ExpertPlaces(num_experts, memory, self.in_memory.place_bytes, self._most, _Keeper(self, unit.index))
        by_role = {one.role: PackedStack(one.packed_format, *one.shape, places=places, offset_bytes=offsets[one.role]) for one in stacks}
        pieces: list[list[MatrixPiece]] = [[] for _ in range(num_experts)]
        for piece in sorted((one for one in pieces_of(unit) if one.tensor.is_expert_stack), key=_is_of_down):
            pieces[piece.matrix].append(piece)
        return _Layer(by_role, places, pieces)

    @property
    def size_bytes(self) -> int:
        return self.in_memory.size_bytes

    def __contains__(self, unit: int) -> bool:
        return unit in self._layers

    def matrices_of(self, unit: int) -> Mapping[str, PackedStack]:
        """By role: those of experts, each of which has its weights while it is wanted and was waited for."""
        return self._layers[unit].stacks

    def place(self, unit: int, place: UnitPlace) -> None:
        """Where it is read from: the bytes there were verified."""
        self._layers[unit].place = place

    # What the kernels ask for.

    def want(self, unit: int, experts: Sequence[int]) -> list[bool]:
        """These experts are wanted until the next call, and have places from now on. Of each, whether it is in memory already."""
        wanted = [Expert(unit, number) for number in experts]
        with self._readers.changed:
            self._readers.wait_while(lambda: any(self._resident[one].left for one in self._wanted if one in self._resident))
            self._forget_what_failed()
            are_there = [one in self._resident for one in wanted]
            for one, is_there in zip(wanted, are_there, strict=True):
                if is_there:
                    self._resident.move_to_end(one)
            missing = [one for one, is_there in zip(wanted, are_there, strict=True) if not is_there]
            for one in missing:
                self._make_resident(one)
            self._wanted = wanted
            self._meter.experts_found += len(wanted) - len(missing)
            self._meter.experts_missed += len(missing)
            orders = [self._orders(one) for one in missing]
        self._readers.submit([order for first, _ in orders for order in first])
        self._readers.submit([order for _, last in orders for order in last])
        return are_there

    def wait(self, *, whole: bool) -> None:
        """Until gate and up of all that are wanted are in memory, or all of them. Raises a DairllmError if they can't be read."""
        with self._readers.changed:
            places = [self._resident[one] for one in self._wanted]
            self._readers.wait_while(lambda: any(place.left if whole else place.left_first for place in places))
            if self._failure is not None:
                raise self._failure

    def _forget_what_failed(self) -> None:
        """Of the last ones nobody knows which are complete."""
        if self._failure is not None:
            self._failure = None
            for one in self._wanted:
                self._leave(one)
            self._wanted = []

    def _make_resident(self, expert: Expert) -> None:
        if not self._free:
            self._leave(next(one for one, place in self._resident.items() if not place.stays))
        place = self._free.pop()
        if self._left_to_pin:
            self._left_to_pin -= 1
            place.stays = True
        self._resident[expert] = place
        self._layers[expert.unit].places.put(expert.number, place.number)

    def _leave(self, expert: Expert) -> None:
        place = self._resident.pop(expert)
        self._layers[expert.unit].places.put(expert.number, None)
        self._left_to_pin += place.stays
        self._free.append(_Place(place.number))

    def _orders(self, expert: Expert) -> tuple[list[Order], list[Order]]:
        """Of gate and up, and of down."""
        pieces, held = self._layers[expert.unit].pieces[expert.number], self._resident[expert]
        held.left, held.left_first = len(pieces), sum(not _is_of_down(piece) for piece in pieces)
        orders = [self._order(expert.unit, piece, held, begins=piece is pieces[0]) for piece in pieces]
        return orders[: held.left_first], orders[held.left_first :]

    def _order(self, unit: int, piece: MatrixPiece, held: _Place, *, begins: bool) -> Order:
        layer = self._layers[unit]
        assert layer.place is not None, "units are placed before experts are wanted"

        def done(failure: DairllmError | None) -> None:
            held.left -= 1
            held.left_first -= not _is_of_down(piece)
            self._failure = self._failure or failure

        return Order(unit, piece, layer.place, layer.stacks[piece.tensor.role], begins, self._goes_well, done)

    def _goes_well(self) -> bool:
        return self._failure is None


def _is_of_down(piece: MatrixPiece) -> bool:
    return piece.tensor.role == "expert_down"
