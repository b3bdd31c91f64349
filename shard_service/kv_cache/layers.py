"""What the layers of this shard keep of sequences, over changes of plan: keys and values, or states."""

from collections.abc import Collection

from dairllm.kernels_pyx import KvCache, StateMemory
from dairllm.model_files.attention import LatentAttention, LinearAttention, SelfAttention
from dairllm.model_files.memory import state_numbers
from dairllm.model_files.spec import LayerSpec
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.kv_cache.states import LayerStates

LayerCache = KvCache | LayerStates
"""Of one layer: by what it looks back."""


class KvCaches:
    """By unit. All are of one model and of one geometry but for the number of blocks: that is as it was when the layer was computed."""

    def __init__(self) -> None:
        self._caches: dict[int, LayerCache] = {}
        self.model_digest = b""

    @property
    def size_bytes(self) -> int:
        return sum(cache.size_bytes for cache in self._caches.values())

    @property
    def units(self) -> Collection[int]:
        return self._caches.keys()

    def get(self, unit: int) -> LayerCache | None:
        return self._caches.get(unit)

    def keep_only(self, units: Collection[int]) -> None:
        self._caches = {unit: cache for unit, cache in self._caches.items() if unit in units}

    def keep_blocks(self, block_ids: Collection[int]) -> None:
        """States of other blocks are those of sequences that have ended."""
        for cache in self._caches.values():
            if isinstance(cache, LayerStates):
                cache.keep_blocks(block_ids)

    def bytes_with(self, assignment: AssignmentFacts, kept: Collection[int]) -> int:
        """Most bytes while the units `kept` stay as they are until the assignment's layers have their caches beside them."""
        now = sum(self._bytes_of(unit) for unit in kept)
        own = assignment.layer_units if self._can_serve(assignment) else range(0)
        return max(now, assignment.kv_cache_bytes + sum(self._bytes_of(unit) for unit in kept if unit not in own))

    def shrink(self, assignment: AssignmentFacts) -> None:
        """Give back the blocks that the assignment's layers will not have. No run may use them meanwhile."""
        if self._can_serve(assignment):
            for unit in assignment.layer_units:
                cache = self._caches.get(unit)
                if cache is not None and _size_of(cache) > _size_under(cache, assignment):
                    cache.resize(_size_under(cache, assignment))

    def arrange(self, assignment: AssignmentFacts) -> list[LayerCache]:
        """The caches of the assignment's layers, in its size: those that are here keep their content. Others stay as they are.

        No run may use them meanwhile. Raises MemoryError.
        """
        if not self._can_serve(assignment):
            self._caches = {}
        self.model_digest = assignment.model_digest
        arranged = []
        for unit in assignment.layer_units:
            cache = self._caches.get(unit)
            if cache is None:
                cache = self._caches[unit] = make_cache(assignment.model.layers[unit - 1], assignment.geometry, assignment.num_places)
            elif _size_of(cache) != _size_under(cache, assignment):
                cache.resize(_size_under(cache, assignment))
            arranged.append(cache)
        return arranged

    def _bytes_of(self, unit: int) -> int:
        return self._caches[unit].size_bytes if unit in self._caches else 0

    def _can_serve(self, assignment: AssignmentFacts) -> bool:
        return self.model_digest == assignment.model_digest and all(_fits(cache, assignment.geometry) for cache in self._caches.values())


def make_cache(layer: LayerSpec, geometry: CacheGeometry, num_places: int | None = None) -> LayerCache:
    """num_places: None only if no layer keeps states. Raises MemoryError."""
    attention = layer.attention
    if isinstance(attention, LinearAttention):
        assert num_places is not None, "the model has layers with states"
        return LayerStates(num_places, state_numbers(attention), geometry.block_tokens)
    return KvCache(geometry.num_blocks, geometry.block_tokens, *_heads_of(attention), geometry.element_type)


def _heads_of(attention: SelfAttention | LatentAttention) -> tuple[int, int, int]:
    """Key heads, numbers of a key and of a value; latents are keys and values in one."""
    if isinstance(attention, LatentAttention):
        return 1, attention.kv_rank + attention.rope.dim, 0
    return attention.num_kv_heads, attention.key_dim, attention.value_dim


def memory_of(cache: LayerCache) -> KvCache | StateMemory:
    """As the kernels take it."""
    return cache.memory if isinstance(cache, LayerStates) else cache


def _fits(cache: LayerCache, geometry: CacheGeometry) -> bool:
    element_type = geometry.element_type if isinstance(cache, LayerStates) else cache.element_type
    return (cache.block_tokens, element_type) == (geometry.block_tokens, geometry.element_type)


def _size_of(cache: LayerCache) -> int:
    """Of what it is resized by: blocks, or places."""
    return cache.num_places if isinstance(cache, LayerStates) else cache.num_blocks


def _size_under(cache: LayerCache, assignment: AssignmentFacts) -> int:
    return assignment.num_places or 0 if isinstance(cache, LayerStates) else assignment.geometry.num_blocks
