"""Many shards at once hold their leases at one coordinator, over real connections."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.answers import assert_no_fault
from tests.instruments.clusters import Cluster
from tests.instruments.light_shards import LightFleet
from tests.tiny_gguf import write_tiny_llama

NUM_SHARDS = 50
HOLD_S = 3.0
JOIN_TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a unit for every shard."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "long.gguf", num_layers=NUM_SHARDS - 2)


def assert_nothing_dropped(fleet: LightFleet) -> None:
    assert fleet.ended == {}
    assert fleet.unacknowledged == 0
    assert all(shard.beats >= HOLD_S for shard in fleet.shards)


@pytest.mark.slow
async def test_shards_without_room_stay_members(long_model: Path) -> None:
    with Cluster(long_model, (), min_shards=NUM_SHARDS, wait=False) as cluster:
        async with LightFleet(cluster.grpc, cluster.name, NUM_SHARDS, room_bytes=0) as fleet:
            await fleet.joined(JOIN_TIMEOUT_S)
            await asyncio.sleep(HOLD_S)
            await fleet.fall_quiet()
            state = await asyncio.to_thread(cluster.state)
            assert_nothing_dropped(fleet)
        assert (state["phase"], len(state["shards"])) == ("waiting", NUM_SHARDS)
        assert state["missing_bytes"] > 0
        assert 0 < state["event_loop_delay"]["median_s"] <= state["event_loop_delay"]["p99_s"]
        assert_no_fault(cluster.processes["coordinator"])


@pytest.mark.slow
async def test_a_ring_of_many_shards_stays_as_it_was_planned(long_model: Path) -> None:
    with Cluster(long_model, (), min_shards=NUM_SHARDS, wait=False) as cluster:
        async with LightFleet(cluster.grpc, cluster.name, NUM_SHARDS, room_bytes=1 << 28) as fleet:
            await fleet.activated(JOIN_TIMEOUT_S)
            before = await asyncio.to_thread(cluster.wait_serving)
            await asyncio.sleep(HOLD_S)
            await fleet.fall_quiet()
            after = await asyncio.to_thread(cluster.state)
            assert_nothing_dropped(fleet)
        assert (after["phase"], after["epoch"]) == ("serving", before["epoch"])
        assert sorted(shard["stage"] for shard in after["shards"]) == list(range(NUM_SHARDS))
        assert all(shard.activations == 1 for shard in fleet.shards)
        assert_no_fault(cluster.processes["coordinator"])
