"""Processes that a test starts, and what a test must not leave behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

_POLL_S = 0.02
_TAIL_CHARACTERS = 4000
Starter = Callable[[Sequence[str], Mapping[str, str], int], "subprocess.Popen[bytes]"]
"""Starts argv with an environment and a file descriptor for stdout and stderr."""


class ProcessFailed(AssertionError):
    """A process ended, or was not ready in time. The message has the end of its output."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def hiding(folder: Path, argv: Sequence[str]) -> list[str]:
    """argv for a process that sees an empty folder there. Needs root."""
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}" && exec "$@"', "sh", *argv]


def _start_here(argv: Sequence[str], env: Mapping[str, str], output: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(list(argv), env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output)


class ManagedProcess:
    """A process of its own that ends with the test.

        with ManagedProcess([sys.executable, "-m", "dairllm.shard_service.main", "--ready-file", "{ready_file}"]) as shard:
            shard.wait_ready()

    `{ready_file}` in argv becomes the path of a file that the process is to write when it is ready. env is added to this process's
    environment; a value of None removes a variable. starter: how to start it, e.g. inside a network namespace.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str | None] | None = None,
        *,
        name: str | None = None,
        starter: Starter = _start_here,
        stop_timeout_s: float = 15.0,
    ) -> None:
        self.name = name or Path(argv[0]).name
        self._folder = tempfile.TemporaryDirectory(prefix="dairllm-test-")
        self.ready_file = Path(self._folder.name) / "ready.json"
        self.output_file = Path(self._folder.name) / "output"
        self._argv = [part.replace("{ready_file}", str(self.ready_file)) for part in argv]
        changed = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        self._env = {key: value for key, value in changed.items() if value is not None}
        self._starter = starter
        self._stop_timeout_s = stop_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """May be called again after the process has ended."""
        assert not self.running, f"{self.name} runs already"
        self.ready_file.unlink(missing_ok=True)
        with self.output_file.open("ab") as output:
            self._process = self._starter(self._argv, self._env, output.fileno())

    def wait_ready(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Facts of the ready file. Raises ProcessFailed."""
        deadline_s = time.monotonic() + timeout_s
        while not self.ready_file.exists():
            if not self.running:
                raise ProcessFailed(f"{self.name} ended with code {self.process.returncode} before it was ready:\n{self.tail()}")
            if time.monotonic() > deadline_s:
                raise ProcessFailed(f"{self.name} was not ready within {timeout_s:g} s:\n{self.tail()}")
            time.sleep(_POLL_S)
        facts: dict[str, Any] = json.loads(self.ready_file.read_text())
        return facts

    def wait(self, timeout_s: float = 30.0) -> int:
        """Exit code of a process that ends by itself. Raises ProcessFailed."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{self.name} still runs after {timeout_s:g} s:\n{self.tail()}") from None

    def wait_output(self, text: str, timeout_s: float = 30.0) -> None:
        """Until the process has written this text. Raises ProcessFailed."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.output():
            if not self.running or time.monotonic() > deadline_s:
                raise ProcessFailed(f"{self.name} did not write {text!r}:\n{self.tail()}")
            time.sleep(_POLL_S)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self) -> int:
        """SIGTERM; the exit code. Raises ProcessFailed, after SIGKILL, if it did not end in time."""
        self.send(signal.SIGTERM)
        try:
            return self.wait(self._stop_timeout_s)
        except ProcessFailed:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, to this process only: its children must notice by themselves."""
        if self.running:
            self.process.kill()
        self.process.wait(self._stop_timeout_s)

    def pause(self) -> None:
        """SIGSTOP: alive, but silent."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def output(self) -> str:
        return self.output_file.read_text(errors="replace") if self.output_file.exists() else ""

    def tail(self) -> str:
        return self.output()[-_TAIL_CHARACTERS:]

    def close(self) -> None:
        """The process and all its children are gone afterwards."""
        if self._process is not None:
            family = _family(self._process.pid) if self.running else []
            if self.running:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self._stop_timeout_s / 3)
            for member in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            self._process.wait(self._stop_timeout_s)
        self._folder.cleanup()


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def status_bytes(pid: int, name: str) -> int:
    """A figure of /proc/PID/status, where it stands in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


@dataclass(frozen=True)
class Holdings:
    """What this process holds that it should give back: threads, child processes, open files, internet sockets."""

    threads: frozenset[str]
    children: frozenset[str]
    files: frozenset[str]
    sockets: frozenset[str]

    @classmethod
    def now(cls) -> "Holdings":
        process = psutil.Process()
        return cls(
            frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if not _is_of_a_library(thread)),
            frozenset(str(child.pid) for child in process.children(recursive=True)),
            frozenset(f"{file.path} (fd {file.fd})" for file in process.open_files()),
            frozenset(f"{entry.laddr} to {entry.raddr} {entry.status} (fd {entry.fd})" for entry in process.net_connections("inet")),
        )

    def beyond(self, before: "Holdings") -> dict[str, list[str]]:
        """What is here and was not before, by kind."""
        kinds = ("threads", "children", "files", "sockets")
        more = {kind: sorted(getattr(self, kind) - getattr(before, kind)) for kind in kinds}
        return {kind: names for kind, names in more.items() if names}


def _is_of_a_library(thread: threading.Thread) -> bool:
    """gRPC polls in a thread that lives as long as the process."""
    return "_poller" in thread.name or "_poll_wrapper" in thread.name or thread.name.startswith("pydevd")


@contextlib.contextmanager
def leaving_nothing_behind(timeout_s: float = 15.0) -> Iterator[None]:
    """Fails if threads, child processes, files or internet sockets of the block are still there after it. Closing may take a moment."""
    before = Holdings.now()
    yield
    deadline_s = time.monotonic() + timeout_s
    while (leaked := Holdings.now().beyond(before)) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    assert not leaked, f"left behind: {leaked}"
