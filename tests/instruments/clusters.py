"""A cluster of real processes: one coordinator and its shards, started as a user would start them."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC
from tests.instruments.namespaces import Namespaces
from tests.instruments.processes import ManagedProcess, ProcessFailed, hiding

POLL_S = 0.02
SERVING_TIMEOUT_S = 60.0
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class ShardSetup:
    """isa: caps the kernels' instruction set; None for the best. cache: its cache folder, with which it sees no model file and must fetch
    weights (needs root); None for the user's. prefix: a command in front of its own."""

    name: str
    isa: str | None = None
    threads: int = 1
    memory: str = "1GiB"
    arguments: tuple[str, ...] = ()
    cache: Path | None = None
    prefix: tuple[str, ...] = ()

    @property
    def environment(self) -> Mapping[str, str | None]:
        return {"DAIRLLM_ISA": self.isa} | ({"XDG_CACHE_HOME": str(self.cache)} if self.cache else {})


def shards(count: int, isas: Sequence[str | None] = (None,), threads: int = 1) -> tuple[ShardSetup, ...]:
    """`count` shards named a, b, c, …; their instruction sets in turn."""
    return tuple(ShardSetup("abcdefgh"[i], isas[i % len(isas)], threads) for i in range(count))


@dataclass
class Cluster:
    """Use as a context manager: all shards have joined and the model is served within the block; every process is gone after it.

    network: each process runs on the host of its name; this thread must be on that of the coordinator.
    min_shards: None means all of `members`, so that the plan uses each. discovery: members find each other by mDNS instead of a flag.
    """

    model: str | Path
    members: Sequence[ShardSetup]
    wire: str = DEFAULT_ARITHMETIC.wire
    min_shards: int | None = None
    arguments: Sequence[str] = ()
    discovery: bool = False
    name: str = "test"
    network: Namespaces | None = None
    wait: bool = True
    processes: dict[str, ManagedProcess] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        try:
            self.start_coordinator()
            for member in self.members:
                self.start_shard(member)
            if self.wait:
                self.wait_serving()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            print(self.tails(), file=sys.stderr)
        self._stack.close()

    def start_coordinator(self) -> None:
        wanted = self.min_shards if self.min_shards is not None else max(1, len(self.members))
        argv = [
            *(sys.executable, "-m", "dairllm.coordinator.main", "--model", str(self.model), "--wire", self.wire),
            *("--http-port", "0", "--grpc-port", "0", "--no-local-shard", "--min-shards", str(wanted)),
            *("--cluster", self.name, "--ready-file", "{ready_file}", *self.arguments),
        ]
        if not self.discovery:
            argv.append("--no-discovery")
            if self.network is None:
                argv += ["--grpc-host", "127.0.0.1"]
        coordinator = self._stack.enter_context(self._managed("coordinator", argv, {}))
        self.processes["coordinator"] = coordinator
        facts = coordinator.wait_ready()
        self.http, self.grpc = f"http://{facts['http']}", facts["grpc"]
        if self.network is not None:
            self.grpc = f"{self.network.address('coordinator')}:{self.grpc.rpartition(':')[2]}"
        self.client = self._stack.enter_context(httpx.Client(base_url=self.http, timeout=REQUEST_TIMEOUT_S, trust_env=False))

    def start_shard(self, member: ShardSetup) -> ManagedProcess:
        argv = [
            *(sys.executable, "-m", "dairllm.shard_service.main", "--name", member.name, "--cluster", self.name),
            *("--threads", str(member.threads), "--memory", member.memory, "--ready-file", "{ready_file}", *member.arguments),
        ]
        if not self.discovery:
            argv += ["--coordinator", self.grpc, "--no-discovery"]
            if self.network is None:
                argv += ["--host", "127.0.0.1"]
        if member.cache is not None:
            argv = hiding(Path(self.model).parent, argv)
        process = self._stack.enter_context(self._managed(member.name, [*member.prefix, *argv], member.environment))
        self.processes[member.name] = process
        return process

    def _managed(self, name: str, argv: Sequence[str], environment: Mapping[str, str | None]) -> ManagedProcess:
        return ManagedProcess(argv, environment, name=name) if self.network is None else self.network.managed(name, argv, environment)

    def wait_serving(self, timeout_s: float = SERVING_TIMEOUT_S) -> dict[str, Any]:
        return self.wait_until(lambda state: state["phase"] == "serving", timeout_s)

    def wait_until(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = SERVING_TIMEOUT_S) -> dict[str, Any]:
        """The first state of /api/cluster for which `condition` holds. Raises ProcessFailed."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            state = self.state()
            if condition(state):
                return state
            if time.monotonic() > deadline_s:
                raise ProcessFailed(f"after {timeout_s:g} s the cluster is {state['phase']}: {state['reason']}\n{self.tails()}")
            time.sleep(POLL_S)

    def state(self) -> dict[str, Any]:
        response = self.client.get("/api/cluster")
        response.raise_for_status()
        state: dict[str, Any] = response.json()
        return state

    def complete(self, prompt: Sequence[int] | str, **body: Any) -> dict[str, Any]:
        """POST /v1/completions; greedy unless told otherwise."""
        response = self.client.post("/v1/completions", json={"prompt": prompt, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def tails(self) -> str:
        return "\n".join(f"--- {name}\n{process.tail()}" for name, process in self.processes.items())


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Until the condition holds; fails, with `what`, when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(POLL_S)


@contextlib.contextmanager
def elapsed() -> Iterator[Callable[[], float]]:
    """Gives a function that says how many seconds have passed since the block began."""
    start_s = time.monotonic()
    yield lambda: time.monotonic() - start_s
