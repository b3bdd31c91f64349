"""Shards join by themselves: on one machine, between machines, and without multicast if they are told where."""

import re
import sys
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.answers import PROMPTS, ask, assert_no_fault, assert_sound
from tests.e2e.commands import COORDINATOR, shard_command
from tests.instruments.clusters import Cluster, ShardSetup
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess
from tests.instruments.streamed_answers import completion_body

JOINED_WITHIN_S = 10.0
"""Generous, for a busy machine: 3 s are expected, and the measured times are printed."""

needs_namespaces = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def new_cluster() -> str:
    """Other tests on this machine may announce at the same time."""
    return f"test-{uuid.uuid4().hex[:12]}"


def logged_at(process: ManagedProcess, text: str) -> datetime:
    line = next(line for line in process.output().splitlines() if text in line)
    return datetime.fromisoformat(line.split()[0])


def join_s(coordinator: ManagedProcess, shard: ManagedProcess, name: str) -> float:
    """From both processes being up to the coordinator's word that the shard has joined."""
    shard.wait_output("joined the cluster", JOINED_WITHIN_S + 10.0)
    coordinator.wait_output(f"shard {name} joined")
    up = max(logged_at(coordinator, "no shard has joined yet"), logged_at(shard, "shard started"))
    return (logged_at(coordinator, f"shard {name} joined") - up).total_seconds()


@pytest.mark.slow
def test_shards_started_before_and_after_the_coordinator_find_it(tiny_model: Path) -> None:
    """On loopback and whatever networks this machine has; one of another cluster is left alone."""
    name = new_cluster()
    early = ManagedProcess(shard_command("early", name), name="early")
    foreign = ManagedProcess(shard_command("foreign", new_cluster()), name="foreign")
    with early, foreign:
        early.wait_ready()
        foreign.wait_ready()
        with Cluster(tiny_model, [ShardSetup("late")], min_shards=2, discovery=True, name=name) as cluster:
            coordinator = cluster.processes["coordinator"]
            for shard_name, shard in (("early", early), ("late", cluster.processes["late"])):
                seconds = join_s(coordinator, shard, shard_name)
                print(f"{shard_name} joined after {seconds:.2f} s")
                assert seconds < JOINED_WITHIN_S
            assert_sound(cluster, ask(cluster))
            assert "joined the cluster" not in foreign.output()
            assert "refused" not in coordinator.output()
            assert_no_fault(early, foreign)


def test_the_coordinator_is_found_by_a_dns_name(tiny_model: Path) -> None:
    with Cluster(tiny_model, (), min_shards=1, wait=False) as cluster:
        port = cluster.grpc.rpartition(":")[2]
        command = shard_command("a", "test", "--coordinator", f"localhost:{port}", "--host", "127.0.0.1")
        with ManagedProcess(command, name="a") as shard:
            shard.wait_output("joined the cluster")
            cluster.wait_serving()
            assert_no_fault(shard, *cluster.processes.values())


class Hosts:
    """Machines of a network of their own: a coordinator on `root`, which is asked from there."""

    def __init__(self, network: Namespaces, stack: ExitStack, model: Path, *arguments: str) -> None:
        self._network, self._stack = network, stack
        self.name = new_cluster()
        argv = [sys.executable, "-m", COORDINATOR, "--model", str(model), "--cluster", self.name, "--no-local-shard"]
        argv += ["--http-port", "8080", "--ready-file", "{ready_file}", *arguments]
        self._argv = argv

    def start_coordinator(self, host: str = "root") -> ManagedProcess:
        self.coordinator = self._stack.enter_context(self._network.managed(host, self._argv))
        return self.coordinator

    def start_shard(self, host: str, *arguments: str, name: str = "") -> ManagedProcess:
        """It has the host's name unless told another."""
        return self._stack.enter_context(self._network.managed(host, shard_command(name or host, self.name, *arguments)))

    def answer(self, prompt: Sequence[int], num_tokens: int) -> str:
        """What the coordinator answers a client on its own machine."""
        body = completion_body(prompt, num_tokens)
        code = f"import httpx; print(httpx.post('http://127.0.0.1:8080/v1/completions', json={body}, timeout=60).text)"
        with self._network.managed("root", [sys.executable, "-c", code]) as client:
            assert client.wait() == 0, client.tail()
            return re.sub(r'"(id|created)":[^,]*,', "", client.output())


@pytest.mark.slow
@pytest.mark.namespaces
@needs_namespaces
@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6 alone"])
def test_hosts_of_a_network_find_each_other(tiny_model: Path, ipv6: bool) -> None:
    with ExitStack() as stack:
        network = stack.enter_context(Namespaces(["root", "early", "late"], ipv6=ipv6))
        hosts = Hosts(network, stack, tiny_model, "--min-shards", "2")
        shards = {"early": hosts.start_shard("early")}
        shards["early"].wait_ready()
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        shards["late"] = hosts.start_shard("late")
        for name, shard in shards.items():
            seconds = join_s(coordinator, shard, name)
            print(f"{name}, on a host of its own, joined after {seconds:.2f} s")
            assert seconds < JOINED_WITHIN_S
        coordinator.wait_output("serving with plan")
        with Cluster(tiny_model, [ShardSetup("a")]) as reference:
            expected = ask(reference, PROMPTS[0], 16)
        answer = hosts.answer(PROMPTS[0], 16)
        assert all(str(value) in answer for value in expected.logprobs), answer
        assert_no_fault(coordinator, *shards.values())


@pytest.mark.slow
@pytest.mark.namespaces
@needs_namespaces
def test_where_multicast_is_blocked_an_address_helps(tiny_model: Path) -> None:
    with ExitStack() as stack:
        network = stack.enter_context(Namespaces(["root", "blocked"]))
        network.block_multicast("blocked")
        hosts = Hosts(network, stack, tiny_model, "--grpc-port", "7117")
        coordinator = hosts.start_coordinator()
        coordinator.wait_ready()
        searching = hosts.start_shard("blocked")
        searching.wait_output("`--coordinator HOST:PORT` works without multicast", 40.0)
        assert "joined" not in searching.output()
        assert searching.terminate() == 0
        told = hosts.start_shard("blocked", "--coordinator", f"{network.address('root')}:7117")
        print(f"with --coordinator it joined after {join_s(coordinator, told, 'blocked'):.2f} s")
        coordinator.wait_output("serving with plan")
        assert '"logprobs"' in hosts.answer(PROMPTS[0], 4)
        assert_no_fault(coordinator, searching, told)
