"""Model files that are broken, differ between machines, or change while they are served: never a wrong token."""

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import grpc
import pytest

from dairllm.v1 import weights_pb2, weights_pb2_grpc
from tests.e2e.answers import ask, assert_no_fault, assert_sound
from tests.e2e.commands import COORDINATOR, assert_refused, shard_command, without_folder
from tests.instruments.clusters import Cluster, shards
from tests.instruments.namespaces import unavailable_reason
from tests.instruments.processes import ManagedProcess
from tests.tiny_gguf import write_tiny_llama

needs_root = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def with_bytes_at(data: bytes, position: int, new: bytes) -> bytes:
    return data[:position] + new + data[position + len(new) :]


def entry_of(data: bytes, tensor: str) -> int:
    """Where a tensor's entry goes on after its name: the number of dimensions, the dimensions, type and offset."""
    name = struct.pack("<Q", len(tensor)) + tensor.encode()
    return data.index(name) + len(name)


def with_type(data: bytes, kind: int) -> bytes:
    return with_bytes_at(data, entry_of(data, "output.weight") + 4 + 16, struct.pack("<I", kind))


def with_offset(data: bytes, offset: int) -> bytes:
    return with_bytes_at(data, entry_of(data, "output.weight") + 4 + 16 + 4, struct.pack("<Q", offset))


def with_dimension(data: bytes, size: int) -> bytes:
    return with_bytes_at(data, entry_of(data, "output.weight") + 4, struct.pack("<Q", size))


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is empty"),
    "wrong magic": (lambda data: b"GGML" + data[4:], "GGML"),
    "text": (lambda data: b"<!DOCTYPE html><html>404</html>\n" * 10, "a web page"),
    "another version": (lambda data: with_bytes_at(data, 4, struct.pack("<I", 77)), "version 77"),
    "huge number of tensors": (lambda data: with_bytes_at(data, 8, struct.pack("<Q", 1 << 60)), "number of tensors"),
    "huge number of keys": (lambda data: with_bytes_at(data, 16, struct.pack("<Q", 1 << 60)), "metadata keys"),
    "cut in the header": (lambda data: data[:200], "ends"),
    "cut in the tensors": (lambda data: data[:-1000], "ends at byte"),
    "overlapping tensors": (lambda data: with_offset(data, 0), "overlap"),
    "tensor out of range": (lambda data: with_offset(data, 1 << 40), "output.weight"),
    "huge dimension": (lambda data: with_dimension(data, 1 << 62), "output.weight"),
    "unsupported type": (lambda data: with_type(data, 22), "IQ2_S"),
    "unknown type": (lambda data: with_type(data, 999), "type 999"),
    "unsupported architecture": (lambda data: data.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"gemma", 1), "gemma"),
}


def test_the_coordinator_names_what_is_wrong_with_a_file(tiny_model: Path, tmp_path: Path) -> None:
    data = tiny_model.read_bytes()
    (tmp_path / "folder").mkdir()
    cases = [(tmp_path / "folder", "is an empty folder")]
    for name, (damage, expected) in DAMAGES.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(damage(data))
        cases.append((path, expected))
    assert_refused(COORDINATOR, [(("--model", str(path)), expected) for path, expected in cases])


def test_files_of_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert_refused(COORDINATOR, [(("--model", str(path)), "mamba")])


def model_in(folder: Path) -> Path:
    folder.mkdir()
    return write_tiny_llama(folder / "model.gguf", with_tokenizer=True, num_layers=4)


def serves_alone(name: str, state: dict[str, Any]) -> bool:
    return [shard["name"] for shard in state["shards"]] == [name] and state["phase"] == "serving"


def with_one_byte_changed(data: bytes) -> bytes:
    """Within the weights of the last tensor, where a header still promises the same."""
    return with_bytes_at(data, len(data) - 500, bytes([data[-500] ^ 0x40]))


@pytest.mark.slow
@pytest.mark.namespaces
@needs_root
def test_shards_that_lack_the_file_or_have_another_fetch_what_they_need(tmp_path: Path) -> None:
    model = model_in(tmp_path / "models")
    other = tmp_path / "other"
    other.mkdir()
    (other / "renamed.gguf").write_bytes(with_one_byte_changed(model.read_bytes()))
    with Cluster(model, shards(1)) as cluster:
        expected = ask(cluster)
        last = cluster.processes.pop("a")
        common = ("--coordinator", cluster.grpc, "--host", "127.0.0.1", "--no-discovery")
        for name, arguments in (("lacking", ()), ("differing", ("--model-dir", str(other)))):
            command = without_folder(model.parent, shard_command(name, "test", *common, *arguments))
            cluster.processes[name] = cluster._stack.enter_context(ManagedProcess(command, name=name))
            cluster.processes[name].wait_ready()
            last.kill()
            cluster.wait_until(partial(serves_alone, name))
            assert_sound(cluster, expected)
            load = cluster.state()["shards"][0]["load"]
            print(f"{name}: {load}")
            assert load["from_network_bytes"] > 0
            assert name != "lacking" or load["from_network_bytes"] == load["total_bytes"]
            last = cluster.processes.pop(name)
        assert "renamed.gguf" in last.output(), "it says which file differs"
        assert "the next source is tried" in last.output()


@pytest.mark.slow
def test_a_file_that_changes_while_it_is_served_gives_no_wrong_answer(tmp_path: Path) -> None:
    model = model_in(tmp_path / "models")
    sound = model.read_bytes()
    with Cluster(model, shards(1)) as cluster:
        expected = ask(cluster)
        model.write_bytes(with_one_byte_changed(sound))
        assert ask(cluster) == expected, "weights in memory do not change"
        digest = bytes.fromhex(cluster.state()["model_digest"])
        first, second = shards(2)
        cluster.start_shard(second).wait_ready()
        cluster.processes.pop(first.name).kill()
        state = cluster.wait_until(lambda state: not state["can_answer"] and "replaced or changed" in state["reason"])
        print(f"the file was changed: {state['reason']}")
        response = cluster.client.get("/readyz")
        assert (response.status_code, "replaced or changed" in response.text) == (503, True), response.text

        request = weights_pb2.FetchUnitRequest(model_digest=digest, unit_index=state["num_layers"] + 1)
        for spoil, status in ((lambda: model.write_bytes(sound[:-600]), "DATA_LOSS"), (model.unlink, "DATA_LOSS")):
            spoil()
            with grpc.insecure_channel(cluster.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
                list(weights_pb2_grpc.WeightsServiceStub(channel).FetchUnit(request, timeout=10.0))
            assert caught.value.code().name == status
            assert "changed while the coordinator serves it" in str(caught.value.details())

        model.write_bytes(sound)
        assert_no_fault(cluster.processes["b"])
        cluster.processes["b"].terminate()
        cluster.processes["b"].start()
        assert_sound(cluster, expected)
