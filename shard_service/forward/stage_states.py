"""The states of a stage's layers, as its runs go on from them and leave others behind."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from dairllm.kernels_pyx import StageSlice
from dairllm.shard_service.kv_cache.layers import LayerCache
from dairllm.shard_service.kv_cache.state_book import NO_SLOT, SlotPair
from dairllm.shard_service.kv_cache.states import LayerStates

_Open = list[tuple[LayerStates, StageSlice, SlotPair]]


class StageStates:
    """caches: of the stage's layers, whose units are layer_units. What has no states is passed over."""

    def __init__(self, caches: Sequence[LayerCache], layer_units: range) -> None:
        self._num_layers = len(caches)
        self._by_unit = {unit: cache for unit, cache in zip(layer_units, caches, strict=True) if isinstance(cache, LayerStates)}
        self._first_unit = layer_units.start

    def has(self, units: range, block_table: npt.NDArray[np.int32], position: int) -> bool:
        """Whether these units may go on at this position of a sequence."""
        return all(states.has(block_table, position) for unit, states in self._by_unit.items() if unit in units)

    @contextmanager
    def used_by(self, slices: Sequence[StageSlice], units: range) -> Iterator[Sequence[StageSlice]]:
        """The slices with slots of states to read and to write. What was written counts if the body ends without an error.

        Raises LookupError for a frame that needs more slots than there are.
        """
        used = [unit for unit in units if unit in self._by_unit]
        if not used:
            yield slices
            return
        opened: _Open = []
        try:
            yield [self._with_slots(slice_, used, opened) for slice_ in slices]
        except BaseException:
            for states, _, slots in opened:
                states.abandon(slots)
            raise
        for states, slice_, slots in opened:
            first = slice_.first_position
            states.finish(slice_.block_table, first, first + slice_.num_rows, slots)

    def drop_blocks(self, block_ids: Collection[int]) -> None:
        """Sequences with these blocks have ended."""
        if block_ids:
            for states in self._by_unit.values():
                states.drop_blocks(block_ids)

    def _with_slots(self, slice_: StageSlice, units: Sequence[int], opened: _Open) -> StageSlice:
        table = np.full((self._num_layers, 2), NO_SLOT, np.int32)
        for unit in units:
            states, first = self._by_unit[unit], slice_.first_position
            slots = states.begin(slice_.block_table, first, first + slice_.num_rows)
            opened.append((states, slice_, slots))
            table[unit - self._first_unit] = slots
        return slice_._replace(state_slots=table)
