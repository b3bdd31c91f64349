"""How long a shard takes from its start until it is a member, where multicast passes both ways or one way. Needs root and iproute2.

    .venv/bin/python benchmarks/discovery.py [--repeat 10] [--json]

Two hosts (network namespaces on a bridge); the bridge passes no multicast on to the host that is not to hear it. Each repetition starts
both programs anew, with a tiny model:

- shard last: the coordinator has announced itself long before the shard starts;
- coordinator last: the shard looks already.

Both times end when the coordinator has admitted the shard. `from start` begins when the operating system starts the later of the two
programs, so that it contains the start of Python and the shard's probe; `up` when the later of the two is up: the coordinator waits for
shards, or the shard looks. What `dairllm doctor` says of multicast on the shard's host stands below.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import psutil
import typer
from command import run, show
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.mesh.errors import InvalidSetting, PeerUnreachable
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.processes import ManagedProcess, ProcessFailed
from tests.tiny_gguf import write_tiny_llama

ROOT, SHARD = "root", "b"
DEAF = {"both ways": (), "shard to coordinator only": (SHARD,), "coordinator to shard only": (ROOT,)}
"""Hosts that no multicast reaches."""
SETTLE_S = 5.0
"""After that the first, quick announcements of whoever was there first are over."""
JOIN_LIMIT_S = 60.0
DOCTOR_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Joined:
    from_start_s: float
    up_s: float


@dataclass(frozen=True, slots=True)
class Case:
    way: str
    last: str
    joins: tuple[Joined, ...]
    doctor: tuple[str, ...]


class Pair:
    """A coordinator and a shard on hosts of their own. model: a file."""

    def __init__(self, network: Namespaces, model: Path) -> None:
        program = [sys.executable, "-m", "dairllm.coordinator.main", "--model", str(model), "--no-local-shard", "--http-port", "0"]
        self.coordinator = network.managed(ROOT, [*program, "--ready-file", "{ready_file}"])
        program = [sys.executable, "-m", "dairllm.shard_service.main", "--name", SHARD, "--threads", "1", "--memory", "512MiB"]
        self.shard = network.managed(SHARD, [*program, "--ready-file", "{ready_file}"])

    @contextlib.contextmanager
    def started(self, last: str) -> Iterator[ManagedProcess]:
        """Yields the process that was started last."""
        first, second = (self.coordinator, self.shard) if last == "shard" else (self.shard, self.coordinator)
        with first:
            first.wait_output(self._up(first))
            time.sleep(SETTLE_S)
            with second:
                yield second

    def joined(self, last: ManagedProcess) -> Joined:
        """Raises ProcessFailed if it takes too long."""
        started_s = psutil.Process(last.pid).create_time()
        last.wait_output(self._up(last))
        self.coordinator.wait_output(f"shard {SHARD} joined", JOIN_LIMIT_S)
        joined_s = _logged_s(self.coordinator, f"shard {SHARD} joined")
        return Joined(joined_s - started_s, joined_s - _logged_s(last, self._up(last)))

    def _up(self, process: ManagedProcess) -> str:
        return "no shard has joined yet" if process is self.coordinator else "shard started"


def _logged_s(process: ManagedProcess, text: str) -> float:
    line = next(line for line in process.output().splitlines() if text in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()


def measure(way: str, last: str, repeat: int, model: Path) -> Case:
    joins: list[Joined] = []
    doctor: tuple[str, ...] = ()
    for _ in range(repeat):
        with Namespaces([ROOT, SHARD]) as network:
            for host in DEAF[way]:
                network.block_multicast_to(host)
            pair = Pair(network, model)
            with pair.started(last) as process:
                try:
                    joins.append(pair.joined(process))
                except ProcessFailed as error:
                    raise PeerUnreachable(f"{way}, {last} last: the shard has not joined within {JOIN_LIMIT_S:g} s; {error}") from error
                doctor = doctor or diagnose(network)
    return Case(way, last, tuple(joins), doctor)


def diagnose(network: Namespaces) -> tuple[str, ...]:
    """What the doctor finds about multicast on the shard's host, without being told where the coordinator is."""
    argv = ["ip", "netns", "exec", network.namespace(SHARD), sys.executable, "-m", "dairllm.client.cli", "doctor", "--json"]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=DOCTOR_LIMIT_S, check=False)
    findings: list[dict[str, Any]] = json.loads(ended.stdout)["findings"]
    told = [finding for finding in findings if finding["group"] == "Finding each other"]
    return tuple(f"{finding['status']}: {'; '.join(filter(None, (finding['seen'], finding['matters'])))}" for finding in told)


def discovery(
    repeat: Annotated[int, typer.Option(min=1, help="Starts for each case.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure how long shards take to become members, depending on which way multicast passes."""
    reason = unavailable_reason()
    if reason is not None:
        raise InvalidSetting(reason)
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_llama(Path(folder) / "tiny.gguf")
        cases = [measure(way, last, repeat, model) for way in DEAF for last in ("shard", "coordinator")]
    if as_json:
        print(json.dumps({"repeat": repeat, "cases": [asdict(case) for case in cases]}))
        return
    table = Table("multicast passes", "started last", "up: median", "longest", "from start: median", "longest", box=None)
    for case in cases:
        times = ([join.up_s for join in case.joins], [join.from_start_s for join in case.joins])
        table.add_row(case.way, case.last, *(f"{value:.2f} s" for each in times for value in (median(each), max(each))))
    show(table)
    for case in cases:
        if case.last == "shard":
            print(f"doctor, {case.way}:", *case.doctor, sep="\n  ")


if __name__ == "__main__":
    run(discovery)
