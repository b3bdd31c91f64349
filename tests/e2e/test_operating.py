"""People change a cluster while answers flow, with the commands of `dairllm`: drain, cordon, uncordon and set."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.answers import assert_no_fault
from tests.e2e.test_lost_shards import HEALED_WITHIN_S, disturb_streams, names_in_plan, shard_at_stage
from tests.instruments.clusters import Cluster, ShardSetup, elapsed
from tests.instruments.commands import RunDairllm

pytestmark = pytest.mark.slow

SOON_S = 10.0
"""Twice a lease, and less than the shard is waited for."""


class Person:
    """At a terminal."""

    def __init__(self, cluster: Cluster, dairllm: RunDairllm) -> None:
        self._run = dairllm
        self._which = ("--coordinator", cluster.grpc, "--cluster", cluster.name)

    def does(self, *arguments: str) -> str:
        ended = self._run(*arguments, *self._which)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def is_refused(self, *arguments: str) -> str:
        """The one line that says why."""
        ended = self._run(*arguments, *self._which)
        assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
        (line,) = ended.stderr.splitlines()
        return line


def units_of(state: dict[str, Any], name: str) -> range:
    """That it computes; none if it is not in the plan."""
    shard = next(shard for shard in state["shards"] if shard["name"] == name)
    return range(shard["first_unit"], shard["end_unit"])


@contextlib.contextmanager
def cluster_of_three(model: Path) -> Iterator[Cluster]:
    """Two compute."""
    arguments = ("--kv-tokens", "1024", "--context-length", "1024")
    with Cluster(model, [ShardSetup(name, memory="256MiB") for name in "abc"], min_shards=2, arguments=arguments) as cluster:
        cluster.wait_until(lambda state: len(state["shards"]) == 3 and state["phase"] == "serving" and not state["next_epoch"])
        yield cluster
        assert_no_fault(*cluster.processes.values())


def test_a_shard_is_cordoned_and_another_drained(larger_model: Path, dairllm: RunDairllm) -> None:
    with cluster_of_three(larger_model) as cluster:
        person = Person(cluster, dairllm)
        resting = shard_at_stage(cluster, 0)
        disturb_streams(cluster, lambda: person.does("cordon", resting), until=lambda state: resting not in names_in_plan(state))
        person.does("uncordon", resting)
        # Now it may take another's place, if that one measures slower.
        leaving = next(name for name in names_in_plan(cluster.state()) if name != resting)
        disturb_streams(cluster, lambda: person.does("drain", leaving), until=lambda state: leaving not in names_in_plan(state))
        assert cluster.processes[leaving].wait(HEALED_WITHIN_S) == 0
        assert sorted(shard["name"] for shard in cluster.state()["shards"]) == sorted({"a", "b", "c"} - {leaving})
        assert resting in names_in_plan(cluster.state())
        assert "could not take over the cache" not in cluster.processes["coordinator"].output()
        person.does("drain", resting)
        assert cluster.processes[resting].wait(HEALED_WITHIN_S) == 0
        (last,) = {"a", "b", "c"} - {leaving, resting}
        assert "cannot be served without" in person.is_refused("drain", last)


def test_limits_change_and_the_plan_follows(larger_model: Path, dairllm: RunDairllm) -> None:
    with cluster_of_three(larger_model) as cluster:
        person = Person(cluster, dairllm)
        small = shard_at_stage(cluster, 0)

        def shrink() -> None:
            said = person.does("set", small, "--memory", "128MiB", "--threads", "2")
            assert said == f"{small} uses at most 128 MiB of memory and 2 threads\n"

        before = units_of(cluster.state(), small)
        disturb_streams(cluster, shrink, until=lambda state: len(units_of(state, small)) < len(before))
        for arguments, words in (
            (("--memory", "1MiB", "--threads", "1"), "--memory is 1 MiB; expected at least 128 MiB"),
            (("--threads", "5000"), "num_threads is 5000, expected 1 to 256"),
        ):
            assert f"shard {small!r} keeps its limits: {words}" in person.is_refused("set", small, *arguments)
        assert person.does("set", small, "--memory", "256MiB") == f"{small} uses at most 256 MiB of memory and 2 threads\n"


def test_who_sets_limits_of_a_frozen_shard_does_not_wait_for_it(larger_model: Path, dairllm: RunDairllm) -> None:
    with cluster_of_three(larger_model) as cluster:
        person = Person(cluster, dairllm)
        frozen = cluster.processes["b"]
        frozen.send(signal.SIGSTOP)
        with elapsed() as passed_s:
            assert "the lease of shard 'b' ended before it answered" in person.is_refused("set", "b", "--threads", "1")
            assert passed_s() < SOON_S
        assert "no shard is named 'b'" in person.is_refused("set", "b", "--threads", "1")
        frozen.resume()
        cluster.wait_until(lambda state: len(state["shards"]) == 3)
        assert "1 thread" in person.does("set", "b", "--threads", "1")
