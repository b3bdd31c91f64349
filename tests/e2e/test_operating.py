"""People change a cluster while answers flow, with the commands of `dairllm`: drain, cordon, uncordon and set."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.answers import assert_no_fault
from tests.e2e.test_lost_shards import HEALED_WITHIN_S, disturb_streams, names_in_plan, shard_at_stage
from tests.instruments.clusters import Cluster, ShardSetup, elapsed

pytestmark = pytest.mark.slow

COMMAND_TIMEOUT_S = 60.0
SOON_S = 10.0
"""Twice a lease, and less than the shard is waited for."""


def dairllm(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dairllm.client.cli", *arguments, "--coordinator", cluster.grpc, "--cluster", cluster.name]
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)


def done(cluster: Cluster, *arguments: str) -> str:
    ended = dairllm(cluster, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(cluster: Cluster, *arguments: str) -> str:
    """The one line that says why."""
    ended = dairllm(cluster, *arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    (line,) = ended.stderr.splitlines()
    return line


def units_of(cluster: Cluster, name: str) -> range:
    """That it computes; none if it is not in the plan."""
    shard = next(shard for shard in cluster.state()["shards"] if shard["name"] == name)
    return range(shard["first_unit"], shard["end_unit"])


@contextlib.contextmanager
def cluster_of_three(model: Path) -> Iterator[Cluster]:
    """Two compute."""
    arguments = ("--kv-tokens", "1024", "--context-length", "1024")
    with Cluster(model, [ShardSetup(name, memory="256MiB") for name in "abc"], min_shards=2, arguments=arguments) as cluster:
        cluster.wait_until(lambda state: len(state["shards"]) == 3 and state["phase"] == "serving" and not state["next_epoch"])
        yield cluster
        assert_no_fault(*cluster.processes.values())


def test_a_shard_is_cordoned_and_another_drained(larger_model: Path) -> None:
    with cluster_of_three(larger_model) as cluster:
        resting, leaving = shard_at_stage(cluster, 0), shard_at_stage(cluster, 1)
        disturb_streams(cluster, lambda: done(cluster, "cordon", resting))
        assert resting not in names_in_plan(cluster)
        done(cluster, "uncordon", resting)
        disturb_streams(cluster, lambda: done(cluster, "drain", leaving))
        assert cluster.processes[leaving].wait(HEALED_WITHIN_S) == 0
        assert sorted(shard["name"] for shard in cluster.state()["shards"]) == sorted({"a", "b", "c"} - {leaving})
        assert resting in names_in_plan(cluster)
        assert "could not take over the cache" not in cluster.processes["coordinator"].output()
        assert "cannot be served without" in refused(cluster, "drain", resting)


def test_limits_change_and_the_plan_follows(larger_model: Path) -> None:
    with cluster_of_three(larger_model) as cluster:
        small = shard_at_stage(cluster, 0)

        def shrink() -> None:
            said = done(cluster, "set", small, "--memory", "128MiB", "--threads", "2")
            assert said == f"{small} uses at most 128 MiB of memory and 2 threads\n"

        before = units_of(cluster, small)
        disturb_streams(cluster, shrink)
        assert len(units_of(cluster, small)) < len(before)
        for arguments, words in (
            (("--memory", "1MiB", "--threads", "1"), "a memory budget of 1 MiB is too small; expected at least 128 MiB"),
            (("--threads", "5000"), "num_threads is 5000, expected 1 to 256"),
        ):
            assert f"shard {small!r} keeps its limits: {words}" in refused(cluster, "set", small, *arguments)
        assert done(cluster, "set", small, "--memory", "256MiB") == f"{small} uses at most 256 MiB of memory and 2 threads\n"


def test_who_sets_limits_of_a_frozen_shard_does_not_wait_for_it(larger_model: Path) -> None:
    with cluster_of_three(larger_model) as cluster:
        frozen = cluster.processes["b"]
        frozen.send(signal.SIGSTOP)
        with elapsed() as passed_s:
            assert "the lease of shard 'b' ended before it answered" in refused(cluster, "set", "b", "--threads", "1")
            assert passed_s() < SOON_S
        assert "no shard is named 'b'" in refused(cluster, "set", "b", "--threads", "1")
        frozen.resume()
        cluster.wait_until(lambda state: len(state["shards"]) == 3)
        assert "1 thread" in done(cluster, "set", "b", "--threads", "1")
