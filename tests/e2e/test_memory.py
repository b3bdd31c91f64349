"""A shard takes what it was told to hold and little more."""

from pathlib import Path

import pytest

from tests.instruments.clusters import Cluster, shards
from tests.instruments.processes import status_bytes

ALLOWANCE_BYTES = 150_000_000
LONG_PROMPT = [1, *range(2, 1200)]


@pytest.mark.slow
def test_peak_is_weights_and_cache_and_a_fixed_allowance(smollm2_path: Path) -> None:
    with Cluster(smollm2_path, shards(2), arguments=("--kv-tokens", "2048", "--context-length", "2048")) as cluster:
        cluster.complete(LONG_PROMPT, max_tokens=16, ignore_eos=True)
        state = cluster.wait_until(lambda state: all(shard["usage"]["weights_bytes"] > 0 for shard in state["shards"]))
        for shard in state["shards"]:
            held = shard["usage"]["weights_bytes"] + shard["usage"]["kv_cache_bytes"]
            peak = status_bytes(cluster.processes[shard["name"]].pid, "VmHWM")
            assert shard["usage"]["weights_bytes"] < peak <= held + ALLOWANCE_BYTES, (shard["name"], held, peak)
