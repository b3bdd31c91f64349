"""Units whose matrices do not stay in memory: they are read anew for every frame, in order and round and round, ahead of what computes.

    order     3    6    9    12   3 …      the n-th unit lies in slot n modulo their number
    slot      0    1    2    0    0
                   ▲    ▲    ▲
      computed with│    │    │being read, since unit 3 has been computed
                        │read already

The head comes in parts, each of which goes to a slot as a unit does. Frames that need no logits leave it out.

Slots, what stays of the units and what is read at a time (`reading.py`) are all that this takes in memory (`model_files/memory.py`). The
bytes were verified when the unit was loaded; a file that changes afterwards is noticed.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass

from dairllm.kernels_pyx import PackedMatrix, WeightMemory
from dairllm.mesh.errors import DairllmError
from dairllm.model_files.manifest import Unit
from dairllm.model_files.memory import num_slots, output_of, output_parts, slot_layout, streamed_bytes, streamed_size_of
from dairllm.shard_service.weights.reading import MatrixPiece, Order, PieceReaders, StreamMeter, UnitPlace, pieces_of, pieces_of_output
from dairllm.shard_service.weights.writers import Matrices, matrices_for


@dataclass(slots=True)
class _Slot:
    """holds: what is in it, or comes. left: pieces that are under way. turn: counts what it was filled with."""

    memory: WeightMemory
    holds: "UnitPart | None" = None
    left: int = 0
    turn: int = 0
    failure: DairllmError | None = None

    def give_up(self) -> None:
        """What is in it is not wanted any more."""
        self.holds, self.failure = None, None
        self.turn += 1


@dataclass(frozen=True, slots=True, eq=False)
class UnitPart:
    """What is in a slot at a time: a unit, or some rows of the head.

    matrices: by role; they have their weights while the part is in memory. rows: of the head; else none.
    """

    unit: int
    matrices: Mapping[str, Matrices]
    pieces: Sequence[MatrixPiece]
    rows: range
    slot: _Slot


class WeightStream:
    """All units are placed before the first is read; only one thread computes with them."""

    def __init__(self, units: Sequence[Unit], threads: Executor, meter: StreamMeter) -> None:
        sizes = [size for unit in units if (size := streamed_size_of(unit, 1)) is not None]
        self._slot_bytes = max(size.slot_bytes for size in sizes)
        self._slots = [_Slot(WeightMemory(self._slot_bytes)) for _ in range(num_slots(sizes))]
        self._order: list[UnitPart] = []
        for unit in units:
            self._order += self._parts_of_head(unit, len(units) - 1) if output_of(unit) else [self._whole(unit)]
        self._parts = {unit.index: [part for part in self._order if part.unit == unit.index] for unit in units}
        self._places: dict[int, UnitPlace] = {}
        self._left_out: frozenset[int] = frozenset()
        self._next = 0
        self.size_bytes = streamed_bytes(sizes)
        largest_bytes = max(piece.size_bytes for part in self._order for piece in part.pieces)
        self._readers = PieceReaders(threads, meter, largest_bytes)
        self._changed = self._readers.changed

    def _whole(self, unit: Unit) -> UnitPart:
        (offsets, _), slot = slot_layout(unit), self._slots[len(self._order) % len(self._slots)]
        matrices = {one.role: matrices_for(one, slot.memory, offsets[one.role]) for one in unit.tensors if not one.is_numbers}
        return UnitPart(unit.index, matrices, tuple(pieces_of(unit)), range(0), slot)

    def _parts_of_head(self, unit: Unit, num_others: int) -> list[UnitPart]:
        output, parts = output_of(unit), list[UnitPart]()
        assert output is not None
        for rows in output_parts(output, self._slot_bytes, num_others):
            slot = self._slots[(len(self._order) + len(parts)) % len(self._slots)]
            matrix = PackedMatrix(output.packed_format, len(rows), output.shape[-1], memory=slot.memory)
            parts.append(UnitPart(unit.index, {output.role: matrix}, tuple(pieces_of_output(unit, output, rows)), rows, slot))
        return parts

    def __contains__(self, unit: int) -> bool:
        return unit in self._parts

    def parts_of(self, unit: int) -> Sequence[UnitPart]:
        """One, but of the head, in order."""
        return self._parts[unit]

    def matrices_of(self, unit: int) -> Mapping[str, Matrices]:
        """By role; they have the unit's weights within `in_memory`. Of the head those of its first part."""
        return self._parts[unit][0].matrices

    def place(self, unit: int, place: UnitPlace) -> None:
        """Where it is read from: the bytes there were verified."""
        self._places[unit] = place

    def start(self) -> None:
        """Read what comes first before anybody waits for it."""
        with self._changed:
            self._read_ahead()

    def leave_out(self, units: AbstractSet[int]) -> None:
        """These units are not wanted from the next round on: a frame begins. Those that are, are wanted in their order."""
        left_out = frozenset(units & self._parts.keys())
        if left_out == self._left_out or left_out == self._parts.keys():
            return
        with self._changed:
            self._left_out = left_out
            for slot in self._slots:
                if slot.holds is not None and slot.holds.unit in left_out:
                    slot.give_up()
            wanted = (number for number, part in enumerate(self._order) if part.unit not in left_out and part.slot.holds is not part)
            self._next = next(wanted, 0)
            self._read_ahead()

    @contextlib.contextmanager
    def in_memory(self, unit: int) -> Iterator[None]:
        """The unit's matrices are complete within the block. Raises a DairllmError if they can't be read."""
        with self.part_in_memory(self._parts[unit][0]):
            yield

    @contextlib.contextmanager
    def part_in_memory(self, part: UnitPart) -> Iterator[None]:
        """The same of a part."""
        self._wait_for(part)
        try:
            yield
        finally:
            with self._changed:
                part.slot.holds = None
                self._read_ahead()

    def _wait_for(self, part: UnitPart) -> None:
        slot = part.slot
        with self._changed:
            if slot.holds is not part:
                self._go_to(part)
            self._readers.wait_while(lambda: slot.left > 0)
            if slot.failure is not None:
                failure = slot.failure
                slot.give_up()
                raise failure

    def _go_to(self, part: UnitPart) -> None:
        """The next one is another than was expected: what was read ahead is for nothing."""
        for slot in self._slots:
            slot.give_up()
        self._readers.wait_while(lambda: any(slot.left for slot in self._slots))
        self._left_out -= {part.unit}
        self._next = self._order.index(part)
        self._read_ahead()

    def _read_ahead(self) -> None:
        while True:
            part = self._order[self._next]
            if part.unit not in self._left_out:
                if part.slot.holds is not None or part.slot.left:
                    return
                self._read(part)
            self._next = (self._next + 1) % len(self._order)

    def _read(self, part: UnitPart) -> None:
        slot = part.slot
        slot.holds, slot.left = part, len(part.pieces)
        slot.turn += 1
        self._readers.submit([self._order_of(part, piece, slot.turn) for piece in part.pieces])

    def _order_of(self, part: UnitPart, piece: MatrixPiece, turn: int) -> Order:
        place, slot = self._places.get(part.unit), part.slot
        assert place is not None, "units are placed before they are read"

        def is_wanted() -> bool:
            return slot.turn == turn and slot.failure is None

        def done(failure: DairllmError | None) -> None:
            slot.left -= 1
            if failure is not None and slot.turn == turn:
                slot.failure = failure

        return Order(part.unit, piece, place, part.matrices[piece.tensor.role], piece is part.pieces[0], is_wanted, done)
