"""Shards that lack the model's file, in a cluster that serves: they take the weights from those that have them, once."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dairllm.client.client import Client
from tests.e2e.answers import ask, assert_sound
from tests.e2e.commands import shard_command, without_folder
from tests.instruments.clusters import Cluster, shards
from tests.instruments.namespaces import unavailable_reason
from tests.instruments.processes import ManagedProcess
from tests.tiny_gguf import write_tiny_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]


def serves_alone(name: str, state: dict[str, Any]) -> bool:
    return [shard["name"] for shard in state["shards"]] == [name] and state["phase"] == "serving"


def start_without_file(cluster: Cluster, name: str, folder: Path, cache: Path) -> ManagedProcess:
    common = ("--coordinator", cluster.grpc, "--host", "127.0.0.1", "--no-discovery", "--log-level", "debug", "--weights-cache", "1GiB")
    environment = {"XDG_CACHE_HOME": str(cache)}
    process = ManagedProcess(without_folder(folder, shard_command(name, "test", *common)), environment, name=name)
    cluster.processes[name] = cluster._stack.enter_context(process)
    process.wait_ready()
    return process


def damage_one_unit(cache: Path) -> int:
    """One bit in the middle of the largest file; the number of its bytes."""
    largest = max((path for path in (cache / "dairllm" / "units").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return len(content)


def test_whoever_takes_over_takes_the_weights_too_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    model = write_tiny_llama(tmp_path / "models" / "model.gguf", with_tokenizer=True, num_layers=4)
    with Cluster(model, shards(1)) as cluster:
        expected = ask(cluster)
        second = start_without_file(cluster, "b", model.parent, tmp_path / "cache")
        cluster.wait_until(lambda state: len(state["shards"]) == 2)
        with Client(cluster.grpc) as client:
            client.drain_shard("a")
        state = cluster.wait_until(partial(serves_alone, "b"))
        assert cluster.processes.pop("a").wait() == 0
        load = state["shards"][0]["load"]
        assert load["from_network_bytes"] == load["total_bytes"]
        fetched = [line for line in second.output().splitlines() if "fetched" in line and "unit=" in line]
        assert len(fetched) == 6
        assert all("senders=a" in line for line in fetched), fetched
        assert_sound(cluster, expected)
        cluster.processes.pop("b").kill()
        start_without_file(cluster, "c", model.parent, tmp_path / "cache")
        load = cluster.wait_until(partial(serves_alone, "c"))["shards"][0]["load"]
        assert (load["from_disk_bytes"], load["from_network_bytes"]) == (load["total_bytes"], 0)
        assert_sound(cluster, expected)
        cluster.processes.pop("c").kill()
        damaged_bytes = damage_one_unit(tmp_path / "cache")
        fourth = start_without_file(cluster, "d", model.parent, tmp_path / "cache")
        load = cluster.wait_until(partial(serves_alone, "d"))["shards"][0]["load"]
        assert load["from_network_bytes"] == damaged_bytes
        assert load["from_disk_bytes"] == load["total_bytes"] - damaged_bytes
        assert "damaged" in fourth.output()
        assert_sound(cluster, expected)
