"""A coordinator with its local shard: at the address that was named, with a log that nobody reads, and its end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dairllm.mesh.shard_names import default_shard_name
from tests.instruments.clusters import wait_for
from tests.instruments.pipes import full_pipe
from tests.instruments.processes import ManagedProcess


def coordinator(model: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "dairllm.coordinator.main", "--model", str(model), "--http-port", "0", "--grpc-port", "0"]
    return [*command, "--no-discovery", "--memory", "400MiB", "--threads", "1", "--ready-file", "{ready_file}", *arguments]


def serve_and_stop(process: ManagedProcess) -> dict[str, Any]:
    base_url = f"http://{process.wait_ready()['http']}"
    with httpx.Client(base_url=base_url, timeout=60, trust_env=False) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "the model is served")
        assert client.get("/healthz").status_code == 200
        answer = client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 4})
        assert answer.status_code == 200
        cluster: dict[str, Any] = client.get("/api/cluster").json()
        assert "lost" not in {event["kind"] for event in cluster["events"]}
    children = psutil.Process(process.pid).children()
    assert process.terminate() == 0
    assert children
    assert not any(child.is_running() for child in children)
    assert not process.ready_file.exists()
    return cluster


@pytest.mark.slow
@pytest.mark.parametrize("host", ["::1", "127.0.0.2"])
def test_a_machine_alone_serves_and_ends_in_order(tiny_model: Path, host: str) -> None:
    with ManagedProcess(coordinator(tiny_model, "--grpc-host", host)) as process:
        state = serve_and_stop(process)
        assert "killed" not in process.output()
    assert [shard["name"] for shard in state["shards"]] == [default_shard_name()]


@pytest.mark.slow
def test_a_path_that_is_no_utf_8_is_shown_with_its_bytes(tiny_model: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9\x1b.gguf"
    shutil.copyfile(tiny_model, path)
    with ManagedProcess(coordinator(Path(os.fsdecode(path)))) as process:
        assert serve_and_stop(process)["model"] == "caf\\xe9\\x1b"


@pytest.mark.parametrize(("module", "flag"), [("coordinator.main", "--model"), ("shard_service.main", "--coordinator=127.0.0.1:1")])
def test_without_a_home_it_ends_with_one_sentence(tiny_model: Path, clean_environment: dict[str, str], module: str, flag: str) -> None:
    homeless = {name: value for name, value in clean_environment.items() if name != "HOME" and not name.startswith("XDG_")}
    arguments = [flag, str(tiny_model)] if flag == "--model" else [flag]
    begin = f"import pwd, sys; pwd.getpwuid = {{}}.__getitem__; sys.argv = ['x', *{arguments!r}]"
    program = f"{begin}; from dairllm.{module} import main; main()"
    result = subprocess.run([sys.executable, "-c", program], env=homeless, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2, result.stderr
    assert "XDG_CACHE_HOME" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_log_that_nobody_reads_holds_nobody_up(tiny_model: Path) -> None:
    def start(argv: Sequence[str], env: Mapping[str, str], _: int) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(list(argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)

    with full_pipe() as pipe, ManagedProcess(coordinator(tiny_model, "--log-level", "debug"), starter=start) as process:
        serve_and_stop(process)
