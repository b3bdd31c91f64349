"""A model in parts, behind links, in another program's store: the same answers as from one file, and every shard finds what it needs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.answers import PROMPTS, Answer, ask, assert_no_fault
from tests.instruments.clusters import Cluster, ShardSetup, shards
from tests.instruments.golden import TINY, require_golden_logits
from tests.instruments.namespaces import unavailable_reason
from tests.instruments.stored_models import (
    write_distributed_llama,
    write_hub_cache,
    write_ollama_store,
    write_sharded_folder,
    write_split,
)


@pytest.fixture(scope="module")
def expected(tiny_model: Path) -> Answer:
    with Cluster(tiny_model, shards(1)) as cluster:
        return ask(cluster)


def second_part(model: Path, folder: Path) -> Path:
    return write_split(model, folder)[1]


def linked_part(model: Path, folder: Path) -> Path:
    parts = write_split(model, folder / "parts")
    return write_hub_cache(folder / "hub", "somebody", "tiny", parts) / parts[2].name


def blob_of_ollama(model: Path, folder: Path) -> Path:
    return write_ollama_store(folder, model)


@pytest.mark.parametrize("store", [second_part, linked_part, blob_of_ollama])
def test_two_shards_read_their_layers_from_it(
    tiny_model: Path, expected: Answer, tmp_path: Path, store: Callable[[Path, Path], Path]
) -> None:
    with Cluster(store(tiny_model, tmp_path), shards(2)) as cluster:
        assert ask(cluster) == expected
        for shard in cluster.state()["shards"]:
            assert shard["load"]["from_disk_bytes"] == shard["load"]["total_bytes"] > 0
        assert_no_fault(*cluster.processes.values())


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_a_distributed_llama_file_gives_the_golden_logits(tmp_path: Path, name: str) -> None:
    require_golden_logits(name, write_distributed_llama(tmp_path / "model.m", TINY / name))


@pytest.mark.parametrize(
    ("name", "block_format", "tolerated"), [("llama", "q8_0", 0.5), ("llama", "q4_0", 2.0), ("qwen3-moe", "q8_0", 0.5)]
)
def test_matrices_are_quantised_while_they_are_loaded(tmp_path: Path, name: str, block_format: str, tolerated: float) -> None:
    """The same bits however the layers are shared out, and not far from what the float model says. Stacks of experts, too."""
    folder = write_sharded_folder(TINY / name, tmp_path / "folder") if name == "llama" else TINY / name
    quantised = ("--quantize", block_format)
    answers, digests = [], set()
    for count, arguments in ((1, ()), (1, quantised), (2, quantised)):
        with Cluster(folder, shards(count), arguments=arguments) as cluster:
            answers.append(
                cluster.complete(PROMPTS[3], echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]["token_logprobs"][1:]
            )
            digests.add(cluster.state()["model_digest"])
            assert_no_fault(*cluster.processes.values())
    assert answers[1] == answers[2]
    assert 0 < max(abs(one - other) for one, other in zip(answers[0], answers[1], strict=True)) < tolerated
    assert len(digests) == 2


@pytest.mark.namespaces
@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
def test_shards_without_the_folder_read_what_is_in_others_and_fetch_the_rest(tiny_model: Path, expected: Answer, tmp_path: Path) -> None:
    parts = write_split(tiny_model, tmp_path / "served")
    for number, part in enumerate(parts[:2]):
        (tmp_path / f"disk{number}").mkdir()
        shutil.copy(part, tmp_path / f"disk{number}")
    has_some = ("--model-dir", str(tmp_path / "disk0"), "--model-dir", str(tmp_path / "disk1"))
    members = (ShardSetup("a", cache=tmp_path / "a", arguments=has_some), ShardSetup("b", cache=tmp_path / "b"))
    with Cluster(parts[0], members) as cluster:
        assert ask(cluster) == expected
        loads = {shard["name"]: shard["load"] for shard in cluster.state()["shards"]}
        assert loads["b"]["from_network_bytes"] == loads["b"]["total_bytes"]
        assert sum(loads["a"][f"from_{source}_bytes"] for source in ("disk", "network")) == loads["a"]["total_bytes"]
        assert_no_fault(*cluster.processes.values())
