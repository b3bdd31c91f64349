"""Which shard has the KV cache of each layer, and up to which block: of all that was computed up to the end of the last ring that opened.

A switch moves the cache of layers that change hands, and may be interrupted at any point. A shard that has been told to activate a
stage without a layer still has that layer's cache for a while, so that others can fetch it, but it no longer counts on it itself.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from typing import NamedTuple

from dairllm.coordinator.cluster.identities import Holder

NO_LIMIT = 1 << 62


class Fetch(NamedTuple):
    units: range
    holder: Holder


class Intact(NamedTuple):
    """Layers whose owner has their cache: since before the switch, or by a transfer."""

    kept: frozenset[int]
    transferred: frozenset[int]


class CachePlaces:
    def __init__(self) -> None:
        self._owners: Mapping[int, Holder] = {}
        self._holders: dict[int, Holder] = {}
        self._given_up: set[int] = set()
        self._intact_blocks = NO_LIMIT

    @property
    def intact_blocks(self) -> int:
        """Blocks from this one on are empty on some shard."""
        return self._intact_blocks

    def limit_blocks(self, num_blocks: int) -> None:
        """A shard gives back the blocks beyond."""
        self._intact_blocks = min(self._intact_blocks, num_blocks)

    def clear(self) -> None:
        """What was computed is of no use: another model is served, or a shard has computed nonsense, which the others went on from."""
        self._intact_blocks = NO_LIMIT
        self._owners = {}
        self._holders.clear()
        self._given_up.clear()

    def serve(self, owners: Mapping[int, Holder], num_blocks: int) -> None:
        """A ring of these owners opened: from now on the cache is made where it belongs."""
        self._intact_blocks = num_blocks
        self._owners = owners
        self._holders = dict(owners)
        self._given_up.clear()

    def fetches(self, holder: Holder, layers: Iterable[int], living: Collection[Holder]) -> list[Fetch]:
        """What this shard, as the new owner of the layers, can fetch and where."""
        elsewhere = [unit for unit in layers if self._holders.get(unit, holder) != holder and self._holders[unit] in living]
        runs = groupby(enumerate(elsewhere), key=lambda item: (item[1] - item[0], self._holders[item[1]]))
        return [Fetch(range(units[0], units[-1] + 1), source) for (_, source), run in runs for units in [[unit for _, unit in run]]]

    def narrow(self, holder: Holder, units: range) -> None:
        """The shard was told to hold only these units."""
        for unit in [unit for unit, present in self._holders.items() if present == holder]:
            if unit not in units:
                self._given_up.add(unit)
            elif unit in self._given_up:
                del self._holders[unit]

    def transfer(self, holder: Holder, units: Iterable[int]) -> None:
        for unit in units:
            self._holders[unit] = holder
            self._given_up.discard(unit)

    def forget(self, holder: Holder) -> None:
        """It is lost, or was told to free everything."""
        self._holders = {unit: present for unit, present in self._holders.items() if present != holder}

    def intact(self, owners: Mapping[int, Holder]) -> Intact:
        there = {unit for unit, owner in owners.items() if self._holders.get(unit) == owner and unit not in self._given_up}
        kept = frozenset(unit for unit in there if self._owners.get(unit) == owners[unit])
        return Intact(kept, frozenset(there - kept))
