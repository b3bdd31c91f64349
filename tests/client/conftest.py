"""A cluster of real processes with a tiny model that has a tokenizer and a chat template, for all tests of clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dairllm.client import Client
from tests.instruments.clusters import Cluster, shards
from tests.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny-chat.gguf", with_tokenizer=True)


@pytest.fixture(scope="session")
def cluster(chat_model: Path) -> Iterator[Cluster]:
    with Cluster(chat_model, shards(2), name="client-tests") as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.grpc) as connected:
        yield connected
