"""`dairllm doctor` on networks of several hosts that do not find each other, each for another reason."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess
from tests.tiny_gguf import write_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]

SCRIPTED = Path(__file__).parent / "scripted_coordinator.py"
PORT = 7117
LONGEST_S = 15.0
"""The doctor's 10 s, and the start of a Python program on a busy machine."""


class Diagnosis:
    """What the doctor said on one host, for people and for programs."""

    def __init__(self, result: "subprocess.CompletedProcess[str]") -> None:
        assert "Traceback" not in result.stderr, result.stderr
        self.exit_code = result.returncode
        self.said: dict[str, Any] = json.loads(result.stdout)
        self.findings: list[dict[str, str]] = self.said["findings"]

    @property
    def reason(self) -> dict[str, str]:
        reason: dict[str, str] = self.said["most_likely_reason"]
        assert reason is not None, self.findings
        return reason

    def finding(self, check: str) -> dict[str, str]:
        found = [finding for finding in self.findings if finding["check"] == check]
        assert found, f"no finding of {check} among {self.findings}"
        return found[0]


def diagnose(network: Namespaces, host: str, *arguments: str, cache: Path) -> Diagnosis:
    argv = ["env", f"XDG_CACHE_HOME={cache}", f"XDG_CONFIG_HOME={cache}", sys.executable, "-m", "dairllm.client.cli", "doctor", "--json"]
    command = ["ip", "netns", "exec", network.namespace(host), *argv, *arguments]
    return Diagnosis(subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S, check=False))


@contextlib.contextmanager
def scripted(network: Namespaces, host: str, **script: Any) -> Iterator[ManagedProcess]:
    facts: dict[str, Any] = {"cluster": "dairllm", "protocol": f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}", "software": software_version()}
    facts |= {"port": PORT, "announce": True, **script}
    with network.managed(host, [sys.executable, str(SCRIPTED), "{ready_file}", json.dumps(facts)]) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("served") / "tiny.gguf")


@contextlib.contextmanager
def serving(network: Namespaces, host: str, model: Path) -> Iterator[ManagedProcess]:
    """A coordinator of cluster 'dairllm' with one shard."""
    program = [sys.executable, "-m", "dairllm.coordinator.main", "--model", str(model), "--memory", "256MiB", "--threads", "1"]
    with network.managed(host, [*program, "--ready-file", "{ready_file}"]) as coordinator:
        coordinator.wait_ready()
        coordinator.wait_output("serving with plan")
        yield coordinator


@pytest.fixture(scope="module")
def network(model: Path) -> Iterator[Namespaces]:
    """A coordinator on host a; nothing on host b."""
    with Namespaces(["a", "b"]) as hosts, serving(hosts, "a", model):
        yield hosts


def test_hosts_that_find_each_other(network: Namespaces, tmp_path: Path) -> None:
    found = diagnose(network, "b", cache=tmp_path)
    assert found.exit_code == 0, found.findings
    assert found.said["coordinator"] == f"{network.address('a')}:{PORT}"
    assert found.said["took_s"] < 10
    assert network.address("a") in found.finding("multicast")["seen"]
    assert all(found.finding(check)["status"] == "ok" for check in ("discovery", "coordinator_port", "version", "clock", "shard_port"))
    assert "multicast_one_way" not in {finding["check"] for finding in found.findings}


def test_wrong_cluster_name_found_by_multicast(network: Namespaces, tmp_path: Path) -> None:
    found = diagnose(network, "b", "--cluster", "kitchen", cache=tmp_path)
    assert found.exit_code == 1
    assert found.reason["check"] == "cluster_name"
    assert cluster_hash("dairllm") in found.reason["seen"]
    assert cluster_hash("kitchen") in found.reason["seen"]
    assert "--cluster" in found.reason["advice"]


def test_wrong_cluster_name_at_a_given_address(network: Namespaces, tmp_path: Path) -> None:
    found = diagnose(network, "b", "--cluster", "kitchen", "--coordinator", network.address("a"), cache=tmp_path)
    assert (found.exit_code, found.reason["check"]) == (1, "cluster_name")
    assert network.address("a") in found.reason["seen"]


def test_port_closed(network: Namespaces, tmp_path: Path) -> None:
    found = diagnose(network, "b", "--coordinator", f"{network.address('a')}:1234", cache=tmp_path)
    assert (found.exit_code, found.reason["check"]) == (1, "coordinator_port")
    assert "refuses connections" in found.reason["seen"]
    assert f"use {network.address('a')}:{PORT} instead" in found.reason["advice"]


def test_firewall_that_drops(network: Namespaces, tmp_path: Path) -> None:
    """The neighbour's hardware address is known, but none of its packets come back."""
    route = ["ip", "route", "add", "blackhole", f"{network.address('b')}/32"]
    assert network.run("a", route).wait(10) == 0
    try:
        found = diagnose(network, "b", "--coordinator", network.address("a"), cache=tmp_path)
    finally:
        assert network.run("a", ["ip", "route", "delete", *route[3:]]).wait(10) == 0
    assert (found.exit_code, found.reason["check"]) == (1, "coordinator_port")
    assert "does not answer at all" in found.reason["seen"]
    assert "instead" not in found.reason["advice"]


@pytest.mark.parametrize(("address", "words"), [("10.99.0.1:7117", "no route"), ("nosuch.invalid:7117", "unknown")])
def test_addresses_that_lead_nowhere(network: Namespaces, tmp_path: Path, address: str, words: str) -> None:
    found = diagnose(network, "b", "--coordinator", address, cache=tmp_path)
    assert (found.exit_code, found.reason["check"]) == (1, "coordinator_port")
    assert words in found.reason["seen"]


def test_an_address_that_nobody_has(network: Namespaces, tmp_path: Path) -> None:
    absent = network.address("a").rpartition(".")[0] + ".99"
    found = diagnose(network, "b", "--coordinator", absent, cache=tmp_path)
    assert found.reason["check"] == "coordinator_port"
    assert "no machine with the address" in found.reason["seen"]


@pytest.mark.parametrize("shape", [{"seed": 1}, {"num_layers": 2}], ids=["content", "size"])
def test_two_different_files_of_one_model(network: Namespaces, tmp_path: Path, model: Path, shape: dict[str, int]) -> None:
    mine = write_tiny_llama(tmp_path / "tiny.gguf", **shape)  # type: ignore[arg-type]
    found = diagnose(network, "b", "--model-dir", str(tmp_path), cache=tmp_path / "cache")
    assert (found.exit_code, found.reason["check"]) == (1, "model_file")
    assert str(mine) in found.reason["seen"]


def test_a_file_with_the_content_that_is_served(network: Namespaces, tmp_path: Path, model: Path) -> None:
    same = diagnose(network, "b", "--model-dir", str(model.parent), cache=tmp_path)
    assert (same.exit_code, same.finding("model_file")["status"]) == (0, "ok")


def test_multicast_blocked(tmp_path: Path) -> None:
    with Namespaces(["a", "b"]) as hosts:
        hosts.block_multicast("a")
        with scripted(hosts, "a"):
            alone = diagnose(hosts, "b", cache=tmp_path)
            told = diagnose(hosts, "b", "--coordinator", hosts.address("a"), cache=tmp_path)
    assert (alone.exit_code, alone.reason["check"]) == (1, "discovery")
    assert "--coordinator" in alone.reason["advice"]
    assert (told.exit_code, told.reason["check"]) == (1, "multicast_blocked")
    assert told.finding("coordinator_answer")["status"] == "ok"
    assert f"--coordinator {hosts.address('a')}:{PORT}" in told.reason["advice"]


def test_multicast_passes_from_this_machine_only(tmp_path: Path) -> None:
    """The coordinator answers a question that reaches it, so nobody has to name it."""
    with Namespaces(["a", "b"]) as hosts, scripted(hosts, "a"):
        hosts.block_multicast_to("b")
        found = diagnose(hosts, "b", cache=tmp_path)
    assert (found.exit_code, found.said["coordinator"]) == (0, f"{hosts.address('a')}:{PORT}"), found.findings
    one_way = found.finding("multicast_one_way")
    assert one_way["status"] == "warning"
    assert "nothing that it sends by multicast arrives here" in one_way["seen"]
    assert "found and invited" in one_way["matters"]


def test_multicast_passes_to_this_machine_only(tmp_path: Path, model: Path) -> None:
    """A whole coordinator, which announces itself and listens: asked alone, it must answer with one voice."""
    with Namespaces(["a", "b"]) as hosts, serving(hosts, "a", model):
        hosts.block_multicast_to("a")
        found = diagnose(hosts, "b", cache=tmp_path)
    assert (found.exit_code, found.finding("discovery")["status"]) == (0, "ok"), found.findings
    assert "does not arrive there" in found.finding("multicast_one_way")["seen"]


def test_a_coordinator_that_does_not_announce_itself_is_no_fault_of_the_network(tmp_path: Path) -> None:
    with Namespaces(["a", "b"]) as hosts, scripted(hosts, "a", announce=False):
        found = diagnose(hosts, "b", "--coordinator", hosts.address("a"), cache=tmp_path)
    assert (found.exit_code, found.finding("discovery")["status"]) == (0, "warning")
    assert "--no-discovery" in found.finding("discovery")["matters"]


def test_version_mismatch(tmp_path: Path) -> None:
    with Namespaces(["a", "b"]) as hosts, scripted(hosts, "a", protocol="2.3", software="9.9.9"):
        found = diagnose(hosts, "b", cache=tmp_path)
    assert (found.exit_code, found.reason["check"]) == (1, "version")
    assert "protocol 2.3, dairllm 9.9.9" in found.reason["seen"]
    assert f"protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}, dairllm {software_version()}" in found.reason["seen"]
    assert "this machine" in found.reason["advice"]


def test_shards_that_cannot_be_reached_and_clocks_that_differ(tmp_path: Path) -> None:
    with Namespaces(["a", "b", "c"]) as hosts:
        shards = [["c", [f"{hosts.address('c')}:9000"]], ["d", ["127.0.0.1:9000", "10.99.0.1:9000"]]]
        with scripted(hosts, "a", shards=shards, ahead_s=3600):
            found = diagnose(hosts, "b", cache=tmp_path)
    unreachable = [finding["seen"] for finding in found.findings if finding["check"] == "shard_port"]
    assert len(unreachable) == 2
    assert "'c'" in unreachable[0]
    assert "refuses" in unreachable[0]
    assert "no route" in unreachable[1]
    clock = found.finding("clock")
    assert clock["status"] == "warning"
    assert "3600" in clock["seen"]
    assert "logs" in clock["matters"]
