"""A cluster of real processes with a tiny model that has a tokenizer and a chat template, for all tests of clients."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from dairllm.client import Client
from tests.instruments.clusters import Cluster, shards
from tests.tiny_gguf import write_tiny_llama

COMMAND_TIMEOUT_S = 60


class RunDairllm(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]: ...


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


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment without settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAIRLLM_")}
    return kept | {"XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "200", "TERM": "dumb"}


@pytest.fixture
def dairllm(clean_environment: dict[str, str]) -> RunDairllm:
    """Runs the `dairllm` command to its end; nobody ever sees a traceback."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dairllm.client.cli", *arguments]
        result = subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=clean_environment, timeout=COMMAND_TIMEOUT_S, check=False
        )
        assert "Traceback" not in result.stdout + result.stderr
        return result

    return run
