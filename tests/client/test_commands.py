"""The `dairllm` command as people and scripts use it."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dairllm.client.chat import describe_speed
from dairllm.client.status import describe_units
from dairllm.mesh.protocol import software_version
from tests.instruments.clusters import Cluster
from tests.instruments.commands import RunDairllm

pytestmark = pytest.mark.wheel


def test_status_for_programs_has_what_the_http_api_has(dairllm: RunDairllm, cluster: Cluster) -> None:
    result = dairllm("status", "--json", "--coordinator", cluster.grpc)
    assert result.returncode == 0, result.stderr
    state, by_http = json.loads(result.stdout), cluster.state()
    steady = ("model", "model_digest", "num_layers", "model_size_bytes", "wire", "phase", "epoch", "kv_blocks_total", "system_fingerprint")
    assert {name: state[name] for name in steady} == {name: by_http[name] for name in steady}
    assert [shard["name"] for shard in state["shards"]] == ["a", "b"]
    assert set(state["shards"][0]) == set(by_http["shards"][0])
    assert state["events"] == by_http["events"]
    assert set(by_http) - set(state) == {"engine", "stage_loads", "event_loop_delay"}
    assert set(state) <= set(by_http)


def test_status_for_people_names_every_shard_and_what_it_computes(dairllm: RunDairllm, cluster: Cluster) -> None:
    result = dairllm("status", "--coordinator", cluster.grpc)
    assert result.returncode == 0
    assert "serving" in result.stdout
    assert f"{cluster.state()['system_fingerprint']} · model {cluster.state()['model_digest'][:12]} · arithmetic rules=" in result.stdout
    assert "embedding, layer" in result.stdout
    assert "head" in result.stdout


def test_the_environment_and_the_settings_file_name_the_coordinator(
    clean_environment: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dairllm.client.cli", "models", "--json"]
    settings = tmp_path / "dairllm" / "config.toml"
    settings.parent.mkdir()
    settings.write_text(f'[client]\ncoordinator = "{cluster.grpc}"\nthreads = 1\n')
    by_file = subprocess.run(command, capture_output=True, text=True, env=clean_environment, timeout=60, check=False)
    assert by_file.returncode == 0, by_file.stderr
    assert json.loads(by_file.stdout)["models"][0]["ready"] is True
    wrong = clean_environment | {"DAIRLLM_COORDINATOR": "127.0.0.1:1"}
    by_environment = subprocess.run(command, capture_output=True, text=True, env=wrong, timeout=60, check=False)
    assert by_environment.returncode == 2
    assert "127.0.0.1:1" in by_environment.stderr


def test_one_question_prints_the_answer_and_nothing_else_to_stdout(dairllm: RunDairllm, cluster: Cluster) -> None:
    options = ("--coordinator", cluster.grpc, "--temperature", "0", "--max-tokens", "8")
    by_argument = dairllm("chat", "what?", *options)
    by_pipe = dairllm("chat", *options, stdin="what?\n")
    assert by_argument.returncode == by_pipe.returncode == 0
    assert by_argument.stdout == by_pipe.stdout
    assert "first token after" in by_argument.stderr


def test_tokenize_prints_ids(dairllm: RunDairllm, cluster: Cluster) -> None:
    ids = json.loads(dairllm("tokenize", "the an", "--json", "--coordinator", cluster.grpc).stdout)["token_ids"]
    assert dairllm("tokenize", "the an", "--coordinator", cluster.grpc).stdout.split() == [str(token) for token in ids]


def test_models_lists_the_model(dairllm: RunDairllm, cluster: Cluster) -> None:
    result = dairllm("models", "--coordinator", cluster.grpc)
    assert cluster.state()["model"] in result.stdout
    assert "ready" in result.stdout


def test_the_version_is_the_package_version(dairllm: RunDairllm) -> None:
    assert dairllm("--version").stdout.strip() == f"dairllm {software_version()}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("status", "--coordinator", "127.0.0.1:1"), "127.0.0.1:1"),
        (("models", "--coordinator", "no spaces here"), "no spaces here"),
        (("chat", "hi", "--coordinator", "127.0.0.1:99999"), "99999"),
        (("chat", "hi", "--temperature", "-1", "--coordinator", "127.0.0.1:1"), "temperature"),
        (("chat", " ", "--coordinator", "127.0.0.1:1"), "empty"),
        (("chat", "hi", "--seed", "many"), "--seed"),
        (("nosuch",), "nosuch"),
        (("status", "--config", "/nonexistent.toml"), "/nonexistent.toml"),
        (("bench", "--model", "nosuch:1b"), "nosuch:1b"),
        (("bench", "--threads", "0"), "threads"),
    ],
)
def test_mistakes_end_with_status_2_and_name_what_is_wrong(dairllm: RunDairllm, arguments: tuple[str, ...], words: str) -> None:
    result = dairllm(*arguments)
    assert result.returncode == 2
    assert words in result.stderr


def test_a_model_that_is_not_served_is_named(dairllm: RunDairllm, cluster: Cluster) -> None:
    result = dairllm("chat", "hi", "--model", "nosuch", "--coordinator", cluster.grpc)
    assert result.returncode == 2
    assert result.stderr.startswith("dairllm: ") or "nosuch" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bench_prints_one_object(dairllm: RunDairllm, chat_model: Path) -> None:
    result = dairllm(
        *("bench", "--model", str(chat_model), "--threads", "1", "--prompt", "32", "--generate", "8", "--sequences", "2"),
        *("--depth", "40", "--repeat", "2", "--json"),
    )
    assert result.returncode == 0, result.stderr
    speed = json.loads(result.stdout)
    assert (speed["threads"], speed["prompt"], speed["generate"], speed["sequences"], speed["repeat"]) == (1, 32, 8, 2, 2)
    for name in ("prefill_tok_s", "decode_tok_s", "memory_bytes_per_s"):
        lowest, highest = speed[f"{name}_spread"]
        assert 0 < lowest <= speed[name] <= highest
    assert 0 < speed["bytes_per_token"] < speed["weights_bytes"]
    expected_share = speed["bytes_per_token"] * speed["decode_tok_s"] / speed["sequences"] / speed["memory_bytes_per_s"]
    assert speed["share_of_bandwidth"] == pytest.approx(expected_share)


def test_bench_refuses_more_than_the_context(dairllm: RunDairllm, chat_model: Path) -> None:
    result = dairllm("bench", "--model", str(chat_model), "--prompt", "1000")
    assert result.returncode == 2
    assert "1000" in result.stderr


def test_a_reader_that_leaves_is_no_defect(clean_environment: dict[str, str], cluster: Cluster) -> None:
    command = [sys.executable, "-m", "dairllm.client.cli", "chat", "hi", "--max-tokens", "150", "--coordinator", cluster.grpc]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(30) == 1
    assert errors == ""


# A shell starts what runs in its background with SIGINT ignored, and that is inherited.
CHAT_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from dairllm.client.cli import main
main()
"""


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.fd, other = pty.openpty()
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True)
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        """Until the text has come since the last call."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.seen:
            readable, _, _ = select.select([self.fd], [], [], max(0.0, deadline_s - time.monotonic()))
            assert readable, f"waited for {text!r}, seen: {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def interrupt_until(self, text: str) -> None:
        """Python's input() does not see a signal that comes in the instant between its last look and its waiting."""
        for _ in range(20):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(text, 1.0)
        raise AssertionError(f"interrupted 20 times, waited for {text!r}, seen: {self.seen!r}")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.fd)


@pytest.fixture
def terminal(clean_environment: dict[str, str], cluster: Cluster) -> Iterator[Terminal]:
    command = [sys.executable, "-c", CHAT_PROGRAM, "chat", "--coordinator", cluster.grpc, "--temperature", "0"]
    opened = Terminal([*command, "--max-tokens", "100"], clean_environment)
    yield opened
    opened.close()


def test_a_conversation_goes_on_until_the_end_of_input(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("one\r")
    terminal.wait_for("first token after")
    terminal.wait_for("> ")
    terminal.type("/nosuch\r")
    terminal.wait_for("/clear")
    terminal.wait_for("> ")
    terminal.type("/exit\r")
    assert terminal.process.wait(20) == 0


def test_ctrl_c_at_the_prompt_drops_the_line_and_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.type("half a li")
    terminal.wait_for("half a li")
    terminal.interrupt_until("> ")
    terminal.type("\x04")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (range(5), "embedding, layers 0-2, head"),
        (range(1, 2), "layer 0"),
        (range(2), "embedding, layer 0"),
        (range(3, 5), "layer 2, head"),
        (range(4, 5), "head"),
        (range(1), "embedding"),
        (range(0), "nothing"),
    ],
)
def test_units_in_words(units: range, words: str) -> None:
    assert describe_units(units, 3) == words


def test_describing_the_speed_of_a_stopped_answer_needs_no_finish() -> None:
    from dairllm.client import Answer

    assert describe_speed(Answer(None, "nobody")) == "stopped after 0 tokens"
