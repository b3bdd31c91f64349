"""The client for Node.js, made from the .proto files at run time, against a real cluster."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dairllm.client import Client, Message
from dairllm.mesh.sampling import SamplingParams
from tests.instruments.clusters import Cluster

ROOT = Path(__file__).parent.parent.parent
INSTALL_TIMEOUT_S = 110
RUN_TIMEOUT_S = 30
RunNode = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the client beside a copy of the protos, with its dependencies installed as its lock file says."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"the Node client needs {program}, which is not installed")
    copy = tmp_path_factory.mktemp("node")
    folder = copy / "deploy" / "clients" / "node"
    ignored = shutil.ignore_patterns("node_modules", "__pycache__")
    shutil.copytree(ROOT / "deploy/clients/node", folder, ignore=ignored)
    shutil.copytree(ROOT / "protos", copy / "protos", ignore=ignored)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if installed.returncode != 0:
        pytest.skip(f"npm can't install the client's dependencies: {installed.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture
def node(node_client: Path, cluster: Cluster) -> RunNode:
    def run(*arguments: str, address: str | None = None) -> "subprocess.CompletedProcess[str]":
        command = ["node", "cli.js", address or cluster.grpc, *arguments]
        return subprocess.run(command, cwd=node_client, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)

    return run


def test_models(node: RunNode, cluster: Cluster) -> None:
    result = node("models")
    assert result.returncode == 0, result.stderr
    (model,) = json.loads(result.stdout)
    assert model["name"] == cluster.state()["model"]
    assert (model["architecture"], model["context_length"], model["ready"]) == ("llama", 256, True)


def test_tokenize_gives_the_ids_that_the_python_client_gets(node: RunNode, client: Client) -> None:
    text = "the tiny llama: ä€😀"
    assert json.loads(node("tokenize", text).stdout) == client.tokenize(text)


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_answers_are_those_that_the_python_client_gets(node: RunNode, client: Client, command: str) -> None:
    greedy = SamplingParams(temperature=0)
    answer = (
        client.generate("an and", max_tokens=20, sampling=greedy)
        if command == "generate"
        else client.chat([Message("user", "an and")], max_tokens=20, sampling=greedy)
    )
    result = node(command, "an and", "20")
    assert result.returncode == 0, result.stderr
    assert result.stdout == answer.read() + "\n"
    assert answer.finish is not None
    finish = json.loads(result.stderr)
    assert finish["completion_tokens"] == answer.finish.completion_tokens
    assert finish["reason"] == f"FINISH_REASON_{answer.finish.reason.upper()}"


def test_leaving_the_loop_cancels(node_client: Path, cluster: Cluster) -> None:
    script = """
        import { Client } from "./client.js";
        const client = new Client(process.argv[1]);
        for await (const response of client.generate({ text: "in", max_tokens: 200, ignore_eos: true })) {
          console.log(response.tokens.length);
          break;
        }
        client.close();
    """
    command = ["node", "--input-type=module", "-e", script, cluster.grpc]
    result = subprocess.run(command, cwd=node_client, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 1


def test_a_reader_that_leaves_is_no_defect(node_client: Path, cluster: Cluster) -> None:
    command = ["node", "cli.js", cluster.grpc, "generate", "an and", "150"]
    with subprocess.Popen(command, cwd=node_client, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(RUN_TIMEOUT_S) == 1


def test_errors_have_one_sentence(node: RunNode) -> None:
    result = node("chat", "x " * 400)
    assert result.returncode == 1
    assert "256" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    nobody = node("models", address="127.0.0.1:1")
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("dairllm: ")
