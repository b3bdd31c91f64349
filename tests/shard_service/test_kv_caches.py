"""Caches over changes of plan: what they hold, and what they take while they change."""

from dataclasses import replace
from typing import Any

import pytest

from dairllm.kernels_pyx import KvCache
from dairllm.mesh.peers import Peer
from dairllm.model_files.manifest import Unit
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.kv_cache.layers import KvCaches
from tests.instruments.descriptions import spec_of

MODEL = spec_of(6)
GEOMETRY = CacheGeometry(num_blocks=4, block_tokens=16, context_length=64, max_batch_rows=8)
BLOCK_BYTES = 2 * 2 * 16 * 32


def assignment(units: range, num_blocks: int = 4, **changes: object) -> AssignmentFacts:
    facts = tuple(Unit(index=index, tensors=(), size_bytes=0, digest=b"") for index in units)
    geometry = replace(GEOMETRY, num_blocks=num_blocks)
    whole = AssignmentFacts(1, b"model", MODEL, facts, "", (), Peer("next", ()), geometry, "F32")
    return replace(whole, **changes)  # type: ignore[arg-type]


def arranged(caches: KvCaches, units: range, num_blocks: int = 4, **changes: object) -> list[KvCache]:
    return [cache for cache in caches.arrange(assignment(units, num_blocks, **changes)) if isinstance(cache, KvCache)]


def filled(units: range) -> KvCaches:
    caches = KvCaches()
    for unit, cache in zip(units, arranged(caches, units), strict=True):
        cache.write_block(3, bytes([unit]) * cache.block_bytes)
    return caches


def test_layers_that_stay_keep_their_content_and_others_their_cache() -> None:
    caches = filled(range(1, 4))
    kept, added = arranged(caches, range(3, 5), num_blocks=8)
    assert kept.read_block(3) == bytes([3]) * BLOCK_BYTES
    assert added.read_block(3) == bytes(BLOCK_BYTES)
    assert (kept.num_blocks, added.num_blocks) == (8, 8)
    lost = caches.get(1)
    assert isinstance(lost, KvCache)
    assert lost.read_block(3) == bytes([1]) * BLOCK_BYTES
    assert caches.size_bytes == (8 + 8 + 4 + 4) * BLOCK_BYTES
    caches.keep_only([3])
    assert list(caches.units) == [3]


@pytest.mark.parametrize(
    ("changes", "num_blocks"), [({"model_digest": b"other"}, 4), ({"geometry": replace(GEOMETRY, block_tokens=32, num_blocks=2)}, 2)]
)
def test_nothing_is_kept_for_another_model_or_geometry(changes: dict[str, Any], num_blocks: int) -> None:
    caches = filled(range(1, 4))
    [cache] = arranged(caches, range(1, 2), **changes)
    assert cache.num_blocks == num_blocks
    assert not any(cache.read_block(1))
    assert list(caches.units) == [1]


@pytest.mark.parametrize(
    ("units", "num_blocks", "kept", "blocks"),
    [
        (range(1, 4), 4, range(1, 4), 12),
        (range(3, 5), 4, range(1, 4), 16),
        (range(3, 5), 4, range(0), 8),
        (range(3, 5), 1, range(1, 4), 12),
        (range(1, 3), 8, range(1, 4), 20),
    ],
)
def test_what_a_change_takes(units: range, num_blocks: int, kept: range, blocks: int) -> None:
    assert filled(range(1, 4)).bytes_with(assignment(units, num_blocks), kept) == blocks * BLOCK_BYTES


def test_blocks_that_a_smaller_plan_lacks_are_given_back() -> None:
    caches = filled(range(1, 4))
    caches.shrink(assignment(range(3, 6), num_blocks=2))
    assert caches.size_bytes == (4 + 4 + 2) * BLOCK_BYTES
