"""The KV caches that this shard holds, one per layer, over changes of plan."""

from collections.abc import Collection

from dairllm.kernels_pyx import KvCache
from dairllm.model_files.attention import SelfAttention
from dairllm.model_files.spec import LayerSpec
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry


class KvCaches:
    """By unit. All are of one model and of one geometry but for the number of blocks: that is as it was when the layer was computed."""

    def __init__(self) -> None:
        self._caches: dict[int, KvCache] = {}
        self.model_digest = b""

    @property
    def size_bytes(self) -> int:
        return sum(cache.size_bytes for cache in self._caches.values())

    @property
    def units(self) -> Collection[int]:
        return self._caches.keys()

    def get(self, unit: int) -> KvCache | None:
        return self._caches.get(unit)

    def keep_only(self, units: Collection[int]) -> None:
        self._caches = {unit: cache for unit, cache in self._caches.items() if unit in units}

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
                if cache is not None and cache.num_blocks > assignment.geometry.num_blocks:
                    cache.resize(assignment.geometry.num_blocks)

    def arrange(self, assignment: AssignmentFacts) -> list[KvCache]:
        """The caches of the assignment's layers, in its size: those that are here keep their content. Others stay as they are.

        No run may use them meanwhile. Raises MemoryError.
        """
        if not self._can_serve(assignment):
            self._caches = {}
        self.model_digest = assignment.model_digest
        geometry, arranged = assignment.geometry, []
        for unit in assignment.layer_units:
            cache = self._caches.get(unit)
            if cache is None:
                cache = self._caches[unit] = make_cache(assignment.model.layers[unit - 1], geometry)
            elif cache.num_blocks != geometry.num_blocks:
                cache.resize(geometry.num_blocks)
            arranged.append(cache)
        return arranged

    def _bytes_of(self, unit: int) -> int:
        return self._caches[unit].size_bytes if unit in self._caches else 0

    def _can_serve(self, assignment: AssignmentFacts) -> bool:
        if self.model_digest != assignment.model_digest:
            return False
        wanted = assignment.geometry.block_tokens, assignment.geometry.element_type
        return all((cache.block_tokens, cache.element_type) == wanted for cache in self._caches.values())


def make_cache(layer: LayerSpec, geometry: CacheGeometry) -> KvCache:
    """Raises MemoryError."""
    attention = layer.attention
    assert isinstance(attention, SelfAttention), "the features of the model were checked when it was assigned"
    return KvCache(
        geometry.num_blocks, geometry.block_tokens, attention.num_kv_heads, attention.key_dim, attention.value_dim, geometry.element_type
    )
