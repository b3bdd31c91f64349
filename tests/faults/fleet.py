"""A coordinator and up to five shards on hosts of their own, whose processes and links can be broken and mended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.faults.cases import Fault
from tests.faults.lossy_network import LossyNetwork, inside
from tests.instruments.namespaces import Namespaces
from tests.instruments.processes import ManagedProcess, ProcessFailed, hiding
from tests.instruments.stopped_threads import StoppedThreads, threads_named

HOSTS = ("a", "b", "c", "d", "e")
RING_SHARDS = 3
"""Of five: two may be lost and the rest suffices."""
MIXED_ISAS = (None, "scalar", "avx2", None, "avx2")
SAME_ISAS = (None,) * 5
HTTP, GRPC_PORT = "http://127.0.0.1:8080", 7117
POLL_S = 0.005
HEALED_WITHIN_S = 60.0
KV_TOKENS = 16384
MEMORY = "512MiB"
"""Of each shard."""
CACHE_DISK = "256k"
DELAY_S, LOSS = 0.2, 0.2
WORKING_THREADS = ("compute", "loader")
State = dict[str, Any]


@dataclass(slots=True)
class Host:
    """A machine that runs one shard. leaving: shards that were told to stop, while the next one has begun already."""

    name: str
    isa: str | None
    cache: Path
    generation: int = 0
    process: ManagedProcess | None = None
    leaving: list[ManagedProcess] = field(default_factory=list)

    @property
    def shard(self) -> str:
        return self.name if self.generation == 0 else f"{self.name}{self.generation}"


class Fleet:
    """Use as a context manager, in one thread: within the block this thread is on the coordinator's host. All are gone after it.

    isas: of the shards, one for each. without_files: shards see no model file and must fetch weights from the coordinator; their cache
    folders are small disks.
    lossy: links can delay and lose packets.
    """

    def __init__(self, model: Path, folder: Path, isas: Sequence[str | None], *, without_files: bool, lossy: bool) -> None:
        self._model, self._folder = model, folder
        self._without_files = without_files
        self._network = (LossyNetwork if lossy else Namespaces)(["root", *HOSTS[: len(isas)]])
        self.hosts = {name: Host(name, isa, folder / f"cache-{name}") for name, isa in zip(HOSTS, isas, strict=False)}
        self._stack = contextlib.ExitStack()
        self._client = httpx.Client(base_url=HTTP, timeout=30.0, trust_env=False)
        self._paused: dict[str, ManagedProcess] = {}
        self._hung: dict[str, StoppedThreads] = {}
        self._log_read: dict[Path, int] = {}
        self.coordinator: ManagedProcess

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._client.close)
            stack.enter_context(self._network)
            if self._without_files:
                for name in ("coordinator", *self.hosts):
                    self._make_cache(name, stack)
            stack.enter_context(inside(self._network.namespace("root")))
            self._stack = stack.pop_all()
        try:
            self._start_coordinator()
            for host in self.hosts.values():
                self._start(host)
            self.wait_whole()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for threads in self._hung.values():
            threads.resume()
        for host in self.hosts.values():
            for process in (*host.leaving, *filter(None, [host.process])):
                if process.running:
                    process.resume()
                    process.kill()
        self._stack.close()

    # What there is

    def state(self) -> State:
        response = self._client.get("/api/cluster")
        response.raise_for_status()
        state: State = response.json()
        return state

    def wait_until(self, condition: Callable[[State], bool], what: str, timeout_s: float = HEALED_WITHIN_S) -> State:
        """The first state for which the condition holds. Raises ProcessFailed."""
        deadline_s = time.monotonic() + timeout_s
        state: State = {"phase": "silent", "reason": "", "epoch": 0}
        while time.monotonic() < deadline_s:
            with contextlib.suppress(httpx.TransportError):
                state = self.state()
                if condition(state):
                    return state
            time.sleep(POLL_S)
        raise ProcessFailed(f"waited {timeout_s:g} s in vain for {what}; the cluster is {state['phase']}: {state['reason']}")

    def wait_whole(self) -> State:
        """Until it serves with all shards joined and no move ahead."""
        names = {host.shard for host in self.hosts.values()}

        def is_whole(state: State) -> bool:
            ended = [process.name for process in self.processes if not process.running and process not in self._leaving]
            assert not ended, f"ended: {ended}"
            joined = {shard["name"] for shard in state["shards"]}
            return state["phase"] == "serving" and not state.get("next_epoch") and joined == names

        return self.wait_until(is_whole, f"a cluster of {sorted(names)} that serves")

    def new_output(self) -> dict[str, str]:
        """What each process has written since this was asked last."""
        written = {}
        for process in self.processes:
            output = process.output()
            written[process.name] = output[self._log_read.get(process.output_file, 0) :]
            self._log_read[process.output_file] = len(output)
        return written

    def tails(self) -> str:
        return "\n".join(f"--- {process.name}\n{process.tail()}" for process in self.processes)

    @property
    def processes(self) -> list[ManagedProcess]:
        return [self.coordinator, *(host.process for host in self.hosts.values() if host.process is not None), *self._leaving]

    @property
    def _leaving(self) -> list[ManagedProcess]:
        return [process for host in self.hosts.values() for process in host.leaving]

    # What goes wrong, and what mends it

    def inflict(self, fault: Fault, names: Sequence[str]) -> None:
        """names: of shards or 'coordinator'."""
        for name in names:
            self._inflict[fault](self, name)

    def mend(self, fault: Fault, names: Sequence[str]) -> None:
        for name in names:
            mend = self._mend.get(fault)
            if mend is not None:
                mend(self, name)

    def revive(self) -> None:
        """Start what has ended: shards under their old names, after SIGTERM under a new one."""
        if not self.coordinator.running:
            self._restart(self.coordinator)
        for name in self.hosts:
            self.revive_host(name)

    def revive_host(self, name: str) -> None:
        host = self.hosts[name]
        if host.process is None:
            host.generation += 1
            self._start(host)
        elif not host.process.running:
            host.process.start()

    def kill_shards(self) -> None:
        for host in self.hosts.values():
            if host.process is not None:
                host.process.kill()

    def terminate(self, name: str) -> None:
        """SIGTERM; a shard may take its time to hand over."""
        if name == "coordinator":
            self.coordinator.send(signal.SIGTERM)
            return
        host = self._host(name)
        if host.process is not None:
            host.process.send(signal.SIGTERM)
            host.leaving.append(host.process)
            host.process = None

    def wait_left(self, timeout_s: float = 30.0) -> list[int]:
        """Exit codes of the shards that were told to stop."""
        codes = []
        for host in self.hosts.values():
            codes += [process.wait(timeout_s) for process in host.leaving]
            host.leaving.clear()
        return codes

    def _process(self, name: str) -> ManagedProcess:
        if name == "coordinator":
            return self.coordinator
        host = self._host(name)
        return host.process if host.process is not None else host.leaving[-1]

    def _pause(self, name: str) -> None:
        self._paused[name] = self._process(name)
        self._paused[name].pause()

    def _resume(self, name: str) -> None:
        process = self._paused.pop(name, None)
        if process is not None and process.running:
            process.resume()

    def _hang(self, name: str) -> None:
        pid = self._process(name).pid
        self._hung[name] = StoppedThreads([tid for thread in WORKING_THREADS for tid in threads_named(pid, thread)])
        self._hung[name].stop()

    def _let_go(self, name: str) -> None:
        threads = self._hung.pop(name, None)
        if threads is not None:
            threads.resume()

    def _host(self, name: str) -> Host:
        return self.hosts[name[0]]

    def _host_name(self, name: str) -> str:
        return "root" if name == "coordinator" else name[0]

    def _fill_disk(self, name: str) -> None:
        cache = self._cache_of(name)
        with (cache / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert os.statvfs(cache).f_bavail == 0, f"{cache} is not full"
        process = self._process(name)
        if process in [host.process for host in self.hosts.values()]:
            process.kill()
            process.start()

    def _free_disk(self, name: str) -> None:
        (self._cache_of(name) / "filler").unlink(missing_ok=True)

    def _cache_of(self, name: str) -> Path:
        return self._folder / f"cache-{self._host_name(name)}"

    def _impair(self, name: str, delay_s: float, loss: float) -> None:
        assert isinstance(self._network, LossyNetwork)
        self._network.impair(self._host_name(name), delay_s=delay_s, loss=loss)

    _inflict: Mapping[Fault, Callable[["Fleet", str], None]] = {
        Fault.KILLED: lambda self, name: self._process(name).kill(),
        Fault.FROZEN: lambda self, name: self._pause(name),
        Fault.HUNG: lambda self, name: self._hang(name),
        Fault.TERMINATED: lambda self, name: self.terminate(name),
        Fault.LINK_DOWN: lambda self, name: self._network.link_down(self._host_name(name)),
        Fault.BAD_LINK: lambda self, name: self._impair(name, DELAY_S, LOSS),
        Fault.FULL_DISK: lambda self, name: self._fill_disk(name),
    }
    _mend: Mapping[Fault, Callable[["Fleet", str], None]] = {
        Fault.FROZEN: lambda self, name: self._resume(name),
        Fault.HUNG: lambda self, name: self._let_go(name),
        Fault.LINK_DOWN: lambda self, name: self._network.link_up(self._host_name(name)),
        Fault.BAD_LINK: lambda self, name: self._impair(name, 0.0, 0.0),
        Fault.FULL_DISK: lambda self, name: self._free_disk(name),
    }

    # How it starts

    def _make_cache(self, name: str, stack: contextlib.ExitStack) -> None:
        folder = self._cache_of(name)
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={CACHE_DISK}", "dairllm-test", str(folder)], check=True)
        stack.callback(subprocess.run, ["umount", str(folder)], check=True)

    def _start_coordinator(self) -> None:
        argv = [
            *(sys.executable, "-m", "dairllm.coordinator.main", "--model", str(self._model), "--no-local-shard"),
            *("--http-port", "8080", "--grpc-port", str(GRPC_PORT), "--min-shards", str(RING_SHARDS), "--no-discovery"),
            *("--cluster", "faults", "--kv-tokens", str(KV_TOKENS), "--ready-file", "{ready_file}"),
        ]
        environment = {"XDG_CACHE_HOME": str(self._cache_of("coordinator"))} if self._without_files else {}
        self.coordinator = self._stack.enter_context(self._network.managed("root", argv, environment))
        self.coordinator.name = "coordinator"
        self.coordinator.wait_ready()

    def _start(self, host: Host) -> None:
        argv = [
            *(sys.executable, "-m", "dairllm.shard_service.main", "--name", host.shard, "--cluster", "faults", "--threads", "1"),
            *("--memory", MEMORY, "--coordinator", f"{self._network.address('root')}:{GRPC_PORT}", "--no-discovery"),
        ]
        environment: dict[str, str | None] = {"DAIRLLM_ISA": host.isa}
        if self._without_files:
            argv = hiding(self._model.parent, argv)
            environment["XDG_CACHE_HOME"] = str(host.cache)
        host.process = self._stack.enter_context(self._network.managed(host.name, argv, environment))
        host.process.name = host.shard

    def _restart(self, process: ManagedProcess) -> None:
        process.start()
        process.wait_ready()
