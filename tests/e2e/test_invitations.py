"""Where multicast passes in one direction only, the other side finds; and who is seen but no member is listed with the reason."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.answers import assert_no_fault
from tests.e2e.commands import shard_command
from tests.e2e.test_joining import Hosts, join_s, new_cluster
from tests.faults.lossy_network import inside
from tests.instruments.clusters import POLL_S
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess

PATIENCE_S = 40.0
"""Generous, for a busy machine. Measured times are printed."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]


@contextlib.contextmanager
def machines(model: Path, *others: str, arguments: tuple[str, ...] = ()) -> Iterator[tuple[Namespaces, Hosts]]:
    """A network with a host `root` for the coordinator; nothing runs yet."""
    with ExitStack() as stack:
        network = stack.enter_context(Namespaces(["root", *others]))
        yield network, Hosts(network, stack, model, "--grpc-port", "7117", *arguments)


def wait_state(network: Namespaces, condition: Callable[[dict[str, Any]], bool], host: str = "root") -> dict[str, Any]:
    """The first state of the coordinator on this host for which the condition holds."""
    deadline_s = time.monotonic() + PATIENCE_S
    with inside(network.namespace(host)), httpx.Client(base_url="http://127.0.0.1:8080", trust_env=False) as client:
        while not condition(state := client.get("/api/cluster").json()):
            assert time.monotonic() < deadline_s, {key: state[key] for key in ("phase", "shards", "seen")}
            time.sleep(POLL_S)
    found: dict[str, Any] = state
    return found


def is_member(state: dict[str, Any], name: str, address: str) -> bool:
    return any(shard["name"] == name and shard["addresses"][0].startswith(f"{address}:") for shard in state["shards"])


def test_multicast_from_the_shard_to_the_coordinator_suffices(tiny_model: Path) -> None:
    """The shard is there first: that it repeats its announcement is what lets the coordinator find it."""
    with machines(tiny_model, "b") as (network, hosts):
        network.block_multicast_to("b")
        shard = hosts.start_shard("b")
        shard.wait_output("shard started")
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        print(f"from shard to coordinator only: joined after {join_s(coordinator, shard, 'b'):.2f} s")
        assert "invited by a coordinator" in shard.output()
        assert wait_state(network, lambda state: state["phase"] == "serving")["seen"] == []
        assert_no_fault(coordinator, shard)


def test_multicast_from_the_coordinator_to_the_shard_suffices(tiny_model: Path) -> None:
    """The coordinator is there first: that it repeats its announcement is what lets the shard find it."""
    with machines(tiny_model, "b") as (network, hosts):
        network.block_multicast_to("root")
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        shard = hosts.start_shard("b")
        print(f"from coordinator to shard only: joined after {join_s(coordinator, shard, 'b'):.2f} s")
        assert "invited by a coordinator" not in shard.output()
        assert_no_fault(coordinator, shard)


def test_a_shard_that_returns_with_another_address_is_invited_there(tiny_model: Path) -> None:
    """It goes on running, hears no multicast, and must not be called at its old address."""
    with machines(tiny_model, "b") as (network, hosts):
        network.block_multicast_to("b")
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        hosts.start_shard("b")
        wait_state(network, lambda state: is_member(state, "b", network.address("b")))
        network.move("b", 77)
        started_s = time.monotonic()
        wait_state(network, lambda state: is_member(state, "b", network.address("b")))
        print(f"a member again at another address after {time.monotonic() - started_s:.2f} s")
        wait_state(network, lambda state: state["phase"] == "serving")


def test_machines_that_are_no_members_are_listed_with_the_reason(tiny_model: Path) -> None:
    with machines(tiny_model, "told", "walled", "foreign") as (network, hosts):
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        elsewhere = f"{network.address('root').rpartition('.')[0]}.99:7117"
        hosts.start_shard("told", "--coordinator", elsewhere)
        # What it answers to the coordinator is lost; its multicast is not.
        assert network.run("walled", ["ip", "route", "add", "blackhole", f"{network.address('root')}/32"]).wait(10) == 0
        hosts.start_shard("walled")
        with network.managed("foreign", shard_command("foreign", new_cluster())):
            state = wait_state(network, lambda state: len({shard["phase"] for shard in state["seen"]} - {"invited"}) == 3)
        seen = {shard["name"]: shard for shard in state["seen"]}
        assert {name: shard["phase"] for name, shard in seen.items()} == {
            "told": "refused",
            "walled": "unreachable",
            "foreign": "other_cluster",
        }
        assert f"told to join {elsewhere}" in seen["told"]["reason"]
        assert f"{network.address('walled')}:" in seen["walled"]["reason"]
        assert state["shards"] == []
        assert network.run("walled", ["ip", "route", "delete", "blackhole", f"{network.address('root')}/32"]).wait(10) == 0
        state = wait_state(network, lambda state: is_member(state, "walled", network.address("walled")))
        assert "walled" not in {shard["name"] for shard in state["seen"]}


def test_two_clusters_on_one_network_leave_each_other_alone(tiny_model: Path) -> None:
    with machines(tiny_model, "one", "other") as (network, hosts):
        coordinator = hosts.start_coordinator()
        with ExitStack() as stack:
            second = Hosts(network, stack, tiny_model, "--grpc-port", "7117")
            rival = second.start_coordinator("other")
            shards: list[ManagedProcess] = [hosts.start_shard("one"), second.start_shard("other", name="mate")]
            for process in (coordinator, rival, *shards):
                process.wait_ready()
            mine = wait_state(network, lambda state: len(state["shards"]) == 1)
            theirs = wait_state(network, lambda state: len(state["shards"]) == 1, host="other")
            assert [shard["name"] for shard in mine["shards"]] == ["one"]
            assert [shard["name"] for shard in theirs["shards"]] == ["mate"]
            assert mine["seen"] == theirs["seen"] == []
            assert_no_fault(coordinator, rival, *shards)
