"""What does not fit together says so in one sentence, where a person will look for it, and heals where it can."""

import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.answers import assert_no_fault
from tests.e2e.commands import COORDINATOR, SHARD, assert_refused, refusals_of
from tests.instruments.clusters import Cluster, ShardSetup, shards
from tests.instruments.processes import ManagedProcess
from tests.tiny_gguf import write_tiny_llama


@contextmanager
def occupied_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_port_of_the_coordinator_is_in_use(tiny_model: Path, flag: str) -> None:
    with occupied_port() as port:
        ports = {"--grpc-port": "0", "--http-port": "0", flag: str(port)}
        arguments = [part for pair in ports.items() for part in pair]
        common = ("--model", str(tiny_model), "--grpc-host", "127.0.0.1", "--no-local-shard", "--no-discovery")
        assert_refused(COORDINATOR, [((*common, *arguments), "in use")])


def test_the_port_of_a_shard_is_in_use() -> None:
    with occupied_port() as port:
        arguments = ("--coordinator", "127.0.0.1:9", "--host", "127.0.0.1", "--port", str(port))
        assert_refused(SHARD, [(arguments, f"port {port} is in use")])


def test_wrong_values_of_the_coordinators_flags(tiny_model: Path) -> None:
    model, ports = ("--model", str(tiny_model)), ("--http-port", "0", "--grpc-port", "0", "--no-discovery")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--model", "nosuch:1b"), "expected a path to a .gguf file, hf:OWNER/NAME or one of "),
        (("--model", "/nowhere/model.gguf"), "/nowhere/model.gguf cannot be read"),
        ((*model, "--wire", "Q9"), "'Q9'"),
        ((*model, "--context-length", "9999999"), "--context-length is 9999999"),
        ((*model, *ports, "--grpc-host", "203.0.113.9"), "203.0.113.9"),
        ((*model, *ports, "--http-host", "203.0.113.9"), "203.0.113.9"),
        ((*model, *ports, "--http-host", "no.such.host.invalid"), "no.such.host.invalid"),
        ((*model, *ports, "--cluster", ""), "name is empty"),
        ((*model, *ports, "--memory", "5x"), "'5x'"),
        ((*model, *ports, "--log-level", "loud"), "'loud'"),
        ((*model, *ports, "--config", "/nowhere.toml"), "/nowhere.toml"),
        ((*model, *ports, "--ready-file", "/nowhere/ready.json"), "/nowhere/ready.json"),
    ]
    assert_refused(COORDINATOR, cases)


def test_wrong_values_of_the_shards_flags() -> None:
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--coordinator", "host:port:1"), "host:port:1"),
        (("--coordinator", "host:0"), "host:0"),
        (("--cluster", " "), "name is empty"),
        (("--memory", "1"), "--memory is 1 B"),
        (("--memory", "a lot"), "'a lot'"),
        (("--model-dir", "/nowhere"), "/nowhere"),
        (("--host", "203.0.113.9"), "203.0.113.9"),
        (("--no-discovery",), "--coordinator HOST:PORT"),
        (("--ready-file", "/nowhere/ready.json"), "/nowhere/ready.json"),
    ]
    assert_refused(SHARD, cases)


@pytest.mark.parametrize(
    ("module", "cases"),
    [
        (
            COORDINATOR,
            [
                *(("--http-port", "many"), ("--http-port", "70000"), ("--min-shards", "0"), ("--context-length", "-1")),
                *(("--recovery-limit", "0"), ("--recovery-limit", "1e9"), ("--nonsense",)),
            ],
        ),
        (SHARD, [("--threads", "0"), ("--port", "-1"), ("--nonsense",)]),
    ],
)
def test_values_that_are_no_numbers_in_range_name_their_flag(module: str, cases: list[tuple[str, ...]]) -> None:
    model = ("--model", "x") if module == COORDINATOR else ()
    for case, refusal in zip(cases, refusals_of(module, [(*case, *model) for case in cases]), strict=True):
        assert refusal.code == 2
        assert case[0] in refusal.text


@contextmanager
def shard_process(cluster: Cluster, *arguments: str) -> Iterator[ManagedProcess]:
    argv = (sys.executable, "-m", SHARD, "--coordinator", cluster.grpc, "--host", "127.0.0.1", "--memory", "1GiB", *arguments)
    with ManagedProcess(argv, name="refused shard") as process:
        yield process
        assert_no_fault(process)


@pytest.mark.slow
def test_shards_that_do_not_belong_here_say_why(tiny_model: Path) -> None:
    """Another cluster's name, a name that is taken or reserved or no name: refused with a sentence, and the cluster does not mind."""
    refused = {
        ("--cluster", "another"): "start both with the same --cluster",
        ("--cluster", "test", "--name", "a"): "a living shard is named 'a'",
        ("--cluster", "test", "--name", "coordinator"): "'coordinator' is the coordinator's name",
        ("--cluster", "test", "--name", "x" * 100): "expected at most 64 printable characters",
    }
    with Cluster(tiny_model, shards(1)) as cluster:
        for arguments, expected in refused.items():
            with shard_process(cluster, *arguments) as shard:
                shard.wait_output("the coordinator refuses this shard")
                assert expected in shard.output(), shard.output()
                assert shard.output().count("\n") <= 3, "one sentence, once"
                assert shard.running, "it asks again: the cause may go away"
        assert [shard["name"] for shard in cluster.state()["shards"]] == ["a"]
        assert cluster.state()["epoch"] == 1
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_a_name_that_was_taken_is_free_when_its_owner_has_left(tiny_model: Path) -> None:
    with Cluster(tiny_model, shards(1)) as cluster, shard_process(cluster, "--cluster", "test", "--name", "a") as second:
        second.wait_output("a living shard is named 'a'")
        first = cluster.processes["a"]
        first.send(signal.SIGTERM)
        first.wait_output("told once more, it ends at once")  # nobody else could take over what it holds
        first.terminate()
        second.wait_output("joined the cluster")
        cluster.wait_serving()


@pytest.mark.slow
def test_too_little_memory_names_what_is_missing_and_heals(tmp_path: Path) -> None:
    """Each of these shards has 28 MiB for the model besides its reserve of 100 MiB; the model needs two of them."""
    shape: dict[str, Any] = {
        "num_layers": 6,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_heads": 8,
        "num_kv_heads": 8,
        "vocab_size": 8192,
    }
    model = write_tiny_llama(tmp_path / "large.gguf", **shape)
    small = [ShardSetup(name, memory="128MiB") for name in "abc"]
    arguments = ("--context-length", "256", "--kv-tokens", "256")
    with Cluster(model, small[:1], min_shards=1, arguments=arguments, wait=False) as cluster:
        state = cluster.wait_until(lambda state: state["missing_bytes"] > 0)
        assert "of memory are missing" in state["reason"]
        ready, answer = cluster.client.get("/readyz"), cluster.client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})
        for response in (ready, answer):
            assert response.status_code == 503
            assert "MiB of memory are missing" in response.text, response.text
        print(f"one shard of two: {state['reason']}")
        for member in small[1:]:
            cluster.start_shard(member)
        cluster.wait_serving()
        assert cluster.client.get("/readyz").status_code == 200
        cluster.complete([1, 2, 3], max_tokens=4, ignore_eos=True)
        assert_no_fault(*cluster.processes.values())
