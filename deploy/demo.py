"""`make demo`: a coordinator and two shards on this machine find each other by mDNS and answer a question together.

Every process is started as a user would start it, every wait has a deadline, and whatever happens all of them are ended.
"""

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.getting.resolve import resolve_model
from dairllm.model_files.progress import progress_bar

START_TIMEOUT_S = 60.0
SERVE_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 25
QUESTION = "Explain in three short sentences why the sky is blue."

console = Console(highlight=False, soft_wrap=True)
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DemoFailed(Exception):
    """The message says which step failed."""


@dataclass(frozen=True, slots=True)
class Program:
    """A started process. log: what it prints. ready_file: appears when its ports listen."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_file: Path

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(it printed nothing)"


class Demo:
    """The programs of one cluster, in the folder where their logs are."""

    def __init__(self, folder: Path, model: str) -> None:
        self._folder = folder
        self._model = model
        self._cluster = f"demo-{secrets.token_hex(4)}"
        self._programs: list[Program] = []

    def start(self, name: str, *command: str) -> Program:
        ready_file, log = self._folder / f"{name}.json", self._folder / f"{name}.log"
        arguments = [sys.executable, "-m", *command, "--cluster", self._cluster, "--ready-file", str(ready_file)]
        with log.open("wb") as output:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        program = Program(name, process, log, ready_file)
        self._programs.append(program)
        return program

    def start_coordinator(self) -> Program:
        return self.start(
            "coordinator",
            *("dairllm.coordinator.main", "--model", self._model, "--no-local-shard", "--min-shards", "2"),
            *("--http-port", "0", "--grpc-port", "0"),
        )

    def start_shard(self, name: str) -> Program:
        return self.start(name, "dairllm.shard_service.main", "--name", name, "--threads", "1", "--memory", "1GiB")

    def wait(self, what: str, timeout_s: float, probe: Callable[[], Any]) -> Any:
        """Ask `probe` until it gives something other than None, as long as every program runs."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for program in self._programs:
                if program.process.poll() is not None:
                    raise DemoFailed(f"{program.name} ended with status {program.process.returncode} while waiting until {what}")
            if (result := probe()) is not None:
                return result
            time.sleep(0.05)
        raise DemoFailed(f"waited {timeout_s:.0f} s in vain until {what}")

    def print_logs(self) -> None:
        for program in self._programs:
            console.rule(f"last lines of {program.name}", align="left")
            console.print(program.log_tail(), markup=False)

    def stop(self) -> None:
        for program in reversed(self._programs):
            if program.process.poll() is None:
                program.process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for program in self._programs:
            try:
                program.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                console.print(f"[yellow]{program.name} did not end by itself and is killed[/]")
                program.process.kill()
                program.process.wait()


def read_ready_file(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def get_json(url: str) -> dict[str, Any] | None:
    """None while the server does not answer with 200."""
    with contextlib.suppress(OSError, HTTPException), http.open(url, timeout=ANSWER_TIMEOUT_S) as response:
        state: dict[str, Any] = json.load(response)
        return state
    return None


def shards_of(state: dict[str, Any] | None, wanted: int) -> list[dict[str, Any]] | None:
    shards = (state or {}).get("shards", [])
    return shards if len(shards) >= wanted else None


def fetch_model(model: str) -> None:
    """Here, so that its progress is seen; the coordinator finds it in the cache folder."""
    step(f"model {model}")
    try:
        with progress_bar(console) as progress:
            path = resolve_model(model, progress)
    except ModelFileError as error:
        raise DemoFailed(str(error)) from None
    console.print(f"    {path}, {path.stat().st_size / 1e6:.1f} MB")


def step(text: str) -> None:
    console.print(f"[bold cyan]==>[/] {text}")


def run(demo: Demo, model: str, question: str) -> None:
    fetch_model(model)
    step("a coordinator that computes nothing itself, and two shards with one thread each")
    began = time.monotonic()
    coordinator = demo.start_coordinator()
    shards = [demo.start_shard("north"), demo.start_shard("south")]
    facts = demo.wait("the coordinator listens", START_TIMEOUT_S, partial(read_ready_file, coordinator.ready_file))
    for shard in shards:
        demo.wait(f"{shard.name} listens", START_TIMEOUT_S, partial(read_ready_file, shard.ready_file))
    console.print(f"    coordinator: gRPC {facts['grpc']}, HTTP http://{facts['http']}")
    url = f"http://{facts['http']}"
    step("they find each other by mDNS (nobody was told an address)")
    joined = demo.wait("both shards have joined", START_TIMEOUT_S, lambda: shards_of(get_json(f"{url}/api/cluster"), 2))
    names = " and ".join(sorted(shard["name"] for shard in joined))
    console.print(f"    {names} joined, {time.monotonic() - began:.1f} s after the start")
    step("the planner divides the model; the shards load their parts")
    demo.wait("the model is served", SERVE_TIMEOUT_S, lambda: get_json(f"{url}/readyz"))
    state = get_json(f"{url}/api/cluster")
    if state is None:
        raise DemoFailed("/api/cluster does not answer")
    print_plan(state)
    step(f"POST /v1/chat/completions: {question}")
    answer(url, state["model"], question)


def print_plan(state: dict[str, Any]) -> None:
    table = Table("stage", "shard", "computes", "weights", "planned", box=None, pad_edge=False, header_style="bold")
    planned = [shard for shard in state["shards"] if shard.get("stage") is not None]
    for shard in sorted(planned, key=lambda shard: int(shard["stage"])):
        weights = f"{shard['load']['loaded_bytes'] / 1e6:.1f} MB"
        predicted = f"{shard['predicted_step_s'] * 1000:.2f} ms a token"
        units = describe_units(range(shard["first_unit"], shard["end_unit"]), state["num_layers"])
        table.add_row(str(shard["stage"]), shard["name"], units, weights, predicted)
    console.print(Padding(table, (0, 0, 0, 4)))
    console.print(f"    planned in total: {state['predicted_decode_tok_s']:.1f} tok/s")


def describe_units(units: range, num_layers: int) -> str:
    layers = [unit - 1 for unit in units if 1 <= unit <= num_layers]
    parts = ["embedding"] if 0 in units else []
    parts += [f"layers {layers[0]}-{layers[-1]}"] if layers else []
    parts += ["head"] if num_layers + 1 in units else []
    return ", ".join(parts)


def answer(url: str, model: str, question: str) -> None:
    """Stream the answer to the terminal and say how fast it came, as a client sees it."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0, "max_tokens": 96}
    body["stream_options"] = {"include_usage": True}
    began, arrivals, tokens = time.monotonic(), [], 0
    sys.stdout.write("\n    ")
    for chunk in stream(url, body):
        tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
        for text in (choice["delta"].get("content") for choice in chunk["choices"]):
            if text:
                arrivals.append(time.monotonic())
                sys.stdout.write(text.replace("\n", "\n    "))
                sys.stdout.flush()
    sys.stdout.write("\n\n")
    sys.stdout.flush()
    if len(arrivals) < 2 or tokens < 2:
        raise DemoFailed(f"the answer has {tokens} tokens; expected some")
    speed = (tokens - 1) / (arrivals[-1] - arrivals[0])
    console.print(f"    [bold green]{tokens} tokens, {speed:.1f} tok/s[/], first token after {arrivals[0] - began:.2f} s")


def stream(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        response: HTTPResponse = http.open(request, timeout=ANSWER_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise DemoFailed(f"the coordinator answered {error.code}: {error.read().decode(errors='replace')}") from None
    with response:
        for line in response:
            data = line.decode().strip().removeprefix("data: ")
            if line.startswith(b"data: ") and data != "[DONE]":
                yield json.loads(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m", help="known name or path of a GGUF file (default: %(default)s)")
    parser.add_argument("--question", default=QUESTION)
    arguments = parser.parse_args()
    os.environ.setdefault("DAIRLLM_LOG_LEVEL", "info")
    with tempfile.TemporaryDirectory(prefix="dairllm-demo-") as folder:
        demo = Demo(Path(folder), arguments.model)
        try:
            run(demo, arguments.model, arguments.question)
            step("everything worked")
            return 0
        except (DemoFailed, OSError, HTTPException) as error:
            demo.print_logs()
            console.print(f"[bold red]the demo failed:[/] {error}", markup=True)
            return 1
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130
        finally:
            demo.stop()


if __name__ == "__main__":
    raise SystemExit(main())
