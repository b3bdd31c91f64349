"""Four shards, a fault every 1 to 6 s, and clients that compare every answer with the undisturbed one.

    python -m tests.endurance.chaos [--seconds 900] [--seed 1] [--model smollm2:135m]     # root and iproute2

The seed decides which faults come, where, when and for how long, and what the clients ask. Nothing may cost an answer: the coordinator
freezes and loses its links, but is not ended. Exit status 1: an answer was different or failed, or a process said what it never should.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from dairllm.mesh.settings import parse_size
from dairllm.model_files.getting.resolve import resolve_model
from tests.endurance.memory import MemoryWatch
from tests.endurance.questions import Question, Receipt, ask, questions
from tests.endurance.tables import memory_table, percentile, table
from tests.endurance.tally import Tally
from tests.faults.cases import Fault
from tests.faults.fleet import HTTP, MEMORY, Fleet
from tests.faults.runner import SIGNS_OF_A_FAULT

ISAS = (None, "avx2", None, "avx2")
NUM_CLIENTS = 6
PAUSE_S = (1.0, 6.0)
HOLD_S = {
    Fault.KILLED: (0.5, 4.0),
    Fault.FROZEN: (0.2, 8.0),
    Fault.HUNG: (0.2, 12.0),
    Fault.TERMINATED: (0.5, 4.0),
    Fault.LINK_DOWN: (0.2, 8.0),
    Fault.BAD_LINK: (1.0, 8.0),
}
"""How long each fault lasts, at least and at most; what has ended is started again then."""
ENDS_A_PROCESS = frozenset({Fault.KILLED, Fault.TERMINATED})
ONLY_SHARDS = ENDS_A_PROCESS | {Fault.HUNG}
MOST_BROKEN = 2
COORDINATOR = "coordinator"
COORDINATOR_SHARE, COORDINATOR_LONGEST_S = 0.1, 3.0
REQUEST_TIMEOUT_S = 300.0


class Askers:
    """Clients that ask one thing after the other until the block ends; the last answers are awaited."""

    def __init__(self, seed: int, asked: Sequence[Question], whole: Mapping[int, Receipt]) -> None:
        self._asked, self._whole = asked, whole
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.tallies = {question.kind: Tally() for question in asked}
        self._threads = [threading.Thread(target=self._run, args=(random.Random(f"{seed} client {i}"),)) for i in range(NUM_CLIENTS)]

    def __enter__(self) -> "Askers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random) -> None:
        with httpx.Client(base_url=HTTP, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
            while not self._is_over.is_set():
                number = chance.randrange(len(self._asked))
                receipt = ask(client, self._asked[number])
                with self._lock:
                    self.tallies[self._asked[number].kind].take(receipt, self._whole[number])


class Storm:
    """Breaks things and mends them until its time is over; in the end all is mended. One host has one fault at a time."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._chance = random.Random(f"{seed} faults")
        self._broken: dict[str, tuple[float, Fault, str]] = {}
        self.counts: Counter[str] = Counter()

    def rage(self, seconds: float) -> None:
        next_s = time.monotonic()
        end_s = next_s + seconds
        while (now_s := time.monotonic()) < end_s:
            self._mend(now_s)
            if now_s >= next_s:
                self._break(now_s)
                next_s = now_s + self._chance.uniform(*PAUSE_S)
            time.sleep(0.02)
        self._mend(float("inf"))

    def _break(self, now_s: float) -> None:
        chance, fleet = self._chance, self._fleet
        fault = chance.choice(list(HOLD_S))
        hold_s = chance.uniform(*HOLD_S[fault])
        whole = [name for name in fleet.hosts if name not in self._broken]
        hits_coordinator = chance.random() < COORDINATOR_SHARE
        host = chance.choice(whole)
        if hits_coordinator and fault not in ONLY_SHARDS and COORDINATOR not in self._broken:
            host, hold_s = COORDINATOR, min(hold_s, COORDINATOR_LONGEST_S)
        elif len(self._broken) >= MOST_BROKEN:
            return
        name = host if host == COORDINATOR else fleet.hosts[host].shard
        print(f"{time.strftime('%H:%M:%S')} {fault}: {name}, for {hold_s:.1f} s", file=sys.stderr)
        fleet.inflict(fault, [name])
        self._broken[host] = (now_s + hold_s, fault, name)
        self.counts[f"{fault}, {'coordinator' if host == COORDINATOR else 'a shard'}"] += 1

    def _mend(self, now_s: float) -> None:
        for host, (until_s, fault, name) in list(self._broken.items()):
            if until_s <= now_s:
                self._fleet.mend(fault, [name])
                if fault in ENDS_A_PROCESS:
                    self._fleet.revive_host(host)
                del self._broken[host]


def run(model: Path, seconds: float, seed: int, log: Path | None) -> int:
    asked = questions()
    with (
        tempfile.TemporaryDirectory(prefix="dairllm-chaos-") as folder,
        Fleet(model, Path(folder), ISAS, without_files=False, lossy=True) as fleet,
    ):
        whole = _undisturbed(asked)
        fleet.new_output()
        with MemoryWatch(lambda: _pids(fleet)) as memory:
            with Askers(seed, asked, whole) as askers:
                storm = Storm(fleet, seed)
                began_s = time.monotonic()
                storm.rage(seconds)
            fleet.wait_whole()
            took_s = time.monotonic() - began_s
        codes = fleet.wait_left()
        signs = [f"{name}: {sign}" for name, output in fleet.new_output().items() for sign in SIGNS_OF_A_FAULT if sign in output]
        if log is not None:
            log.write_text("\n".join(f"--- {process.name}\n{process.output()}" for process in fleet.processes))
    _report(storm, askers.tallies)
    print(memory_table(memory.seen, dict.fromkeys(fleet.hosts, parse_size(MEMORY)), 0.0, took_s))
    bad_codes = [code for code in codes if code not in (0, -signal.SIGTERM)]  # SIGTERM may come while a process only begins
    print(f"\nSeed {seed}, {took_s:.0f} s. Wrong exit codes: {bad_codes or 'none'}. Signs of a fault: {signs or 'none'}.")
    is_well = not signs and not bad_codes and all(tally.is_well for tally in askers.tallies.values())
    return 0 if is_well else 1


def _undisturbed(asked: Sequence[Question]) -> Mapping[int, Receipt]:
    with httpx.Client(base_url=HTTP, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        whole = {number: ask(client, question) for number, question in enumerate(asked)}
    for number, receipt in whole.items():
        assert not receipt.failure, f"{asked[number]}: {receipt.failure}"
        assert receipt.answer, f"{asked[number]}: nothing was answered"
    return whole


def _pids(fleet: Fleet) -> list[tuple[str, int]]:
    """By host: its processes come and go."""
    processes = {host.name: host.process for host in fleet.hosts.values() if host.process is not None} | {COORDINATOR: fleet.coordinator}
    return [(name, process.pid) for name, process in processes.items() if process.running]


def _report(storm: Storm, tallies: Mapping[str, Tally]) -> None:
    print(table(("fault", "times"), sorted(storm.counts.items())), "\n")
    header = ("question", "finished", "different", "failed", "first token, median", "p99", "longest silence")
    rows = [
        (
            kind,
            tally.finished,
            tally.different,
            tally.failures.total(),
            f"{percentile(tally.first_s, 0.5):.1f} s",
            f"{percentile(tally.first_s, 0.99):.1f} s",
            f"{max(tally.gaps_s, default=0.0):.1f} s",
        )
        for kind, tally in tallies.items()
    ]
    print(table(header, rows), "\n")
    for kind, tally in tallies.items():
        for reason, number in tally.failures.items():
            print(f"- {kind}, {number} times: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.chaos")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--log", type=Path, help="write what the processes have said to this file")
    arguments = parser.parse_args()
    return run(resolve_model(arguments.model), arguments.seconds, arguments.seed, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
