"""Many clients at once for minutes: as many as may run, more that wait, and some that read slowly, stall or vanish.

    python -m tests.endurance.load [--seconds 300] [--running 100] [--waiting 500] [--shards 2] [--model smollm2:135m]

Every whole answer is compared with the one that a client alone got. Only 429 may refuse, since more clients ask than may run and wait; such
a client asks again when it was told to. Exit status 1: an answer was different, or something else failed.
"""

import argparse
import asyncio
import random
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import httpx

from dairllm.mesh.settings import parse_size
from dairllm.model_files.getting.resolve import resolve_model
from tests.endurance.memory import MemoryWatch
from tests.endurance.questions import Question, Receipt, ask, chat, text
from tests.endurance.tables import memory_table, percentile, table
from tests.endurance.tally import Tally
from tests.faults.runner import SIGNS_OF_A_FAULT
from tests.instruments.clusters import Cluster, shards

MORE_THAN_ALLOWED = 20
ODD_SHARE = 30
"""One in so many, of each odd manner."""
SLOW_READ_S, STALL_S, VANISH_WITHIN = 0.5, 30.0, 20
SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)]
REQUEST_TIMEOUT_S = 600.0


class Manner(StrEnum):
    """How a client reads. Stalling: it reads nothing for half a minute, and what it asked for is too long for buffers. Vanishing: it
    closes the connection in the middle of an answer."""

    EAGER = "eager"
    SLOW = "slow"
    STALLING = "stalling"
    VANISHING = "vanishing"


SHORT = [chat(text(10 + 11 * i), i, 24 + 4 * i) for i in range(8)]
LONG = [chat(text(10), 0, 700, logprobs=True, top_logprobs=5)]


class Crowd:
    """All clients. Each asks one thing after the other until the end."""

    def __init__(self, http: str, end_s: float, whole: Mapping[str, Receipt], stall_s: float) -> None:
        self._http, self._end_s, self._whole, self._stall_s = http, end_s, whole, stall_s
        self.tallies = {manner: Tally() for manner in Manner}

    async def run(self, counts: Mapping[Manner, int]) -> None:
        manners = [manner for manner, count in counts.items() for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for number, manner in enumerate(manners):
                group.create_task(self._live(random.Random(number), manner))

    async def _live(self, chance: random.Random, manner: Manner) -> None:
        transport = httpx.AsyncHTTPTransport(socket_options=SMALL_BUFFER if manner is Manner.STALLING else None)
        async with httpx.AsyncClient(base_url=self._http, timeout=REQUEST_TIMEOUT_S, trust_env=False, transport=transport) as client:
            while time.monotonic() < self._end_s:
                question = chance.choice(LONG if manner is Manner.STALLING else SHORT)
                pause_s = await self._ask(client, question, manner, chance.randrange(1, VANISH_WITHIN))
                await asyncio.sleep(pause_s)

    async def _ask(self, client: httpx.AsyncClient, question: Question, manner: Manner, vanish_after: int) -> float:
        """Seconds until it may ask again."""
        tally, receipt, began_s = self.tallies[manner], Receipt(), time.monotonic()
        try:
            async with client.stream("POST", question.path, json=dict(question.body)) as response:
                if response.status_code == 429:
                    tally.refused += 1
                    return float(response.headers["retry-after"])
                if response.status_code != 200:
                    await response.aread()
                    receipt.refuse(response)
                else:
                    async for line in response.aiter_lines():
                        receipt.take_line(line, time.monotonic() - began_s)
                        if manner is Manner.VANISHING and receipt.num_events >= vanish_after:
                            tally.left += 1
                            return 0.0
                        await asyncio.sleep(self._pause_s(manner, receipt) if line else 0.0)
        except httpx.TransportError as error:
            receipt.failure = f"{type(error).__name__}: {error}"
        tally.take(receipt, self._whole[_key(question)])
        return 0.0

    def _pause_s(self, manner: Manner, receipt: Receipt) -> float:
        if manner is Manner.STALLING and receipt.num_events == 1:
            return self._stall_s
        return SLOW_READ_S if manner is Manner.SLOW else 0.0


def _key(question: Question) -> str:
    return repr(question.body)


def run(model: Path, seconds: float, running: int, waiting: int, num_shards: int, stall_s: float = STALL_S) -> int:
    limits = ("--max-running", str(running), "--max-waiting", str(waiting))
    number = running + waiting + MORE_THAN_ALLOWED
    odd = dict.fromkeys((Manner.SLOW, Manner.STALLING, Manner.VANISHING), number // ODD_SHARE)
    counts = {Manner.EAGER: number - sum(odd.values()), **odd}
    setups = shards(num_shards)
    with Cluster(model, setups, arguments=limits, name="load") as cluster:
        whole = _alone(cluster.http)
        with MemoryWatch(lambda: [(name, process.pid) for name, process in cluster.processes.items() if process.running]) as memory:
            began_s = time.monotonic()
            crowd = Crowd(cluster.http, began_s + seconds, whole, stall_s)
            asyncio.run(crowd.run(counts))
            took_s = time.monotonic() - began_s
        outputs = {name: process.output() for name, process in cluster.processes.items()}
    signs = [f"{name}: {sign}" for name, output in outputs.items() for sign in SIGNS_OF_A_FAULT if sign in output]
    _report(crowd.tallies, counts)
    print(memory_table(memory.seen, {setup.name: parse_size(setup.memory) for setup in setups}, 0.0, seconds))
    print(f"\n{seconds:.0f} s of questions, the last answer after {took_s:.0f} s. Signs of a fault: {signs or 'none'}.")
    is_well = not signs and all(tally.is_well for tally in crowd.tallies.values())
    return 0 if is_well else 1


def _alone(http: str) -> Mapping[str, Receipt]:
    with httpx.Client(base_url=http, timeout=REQUEST_TIMEOUT_S, trust_env=False) as client:
        whole = {_key(question): ask(client, question) for question in (*SHORT, *LONG)}
    for receipt in whole.values():
        assert not receipt.failure, receipt.failure
    return whole


def _report(tallies: Mapping[Manner, Tally], counts: Mapping[Manner, int]) -> None:
    header = ("clients", "number", "finished", "different", "left", "429", "failed", *_times("first token"), *_times("between tokens"))
    rows = [
        (
            *(manner, counts[manner], tally.finished, tally.different, tally.left, tally.refused, tally.failures.total()),
            *(f"{percentile(values, share):.2f} s" for values in (tally.first_s, tally.gaps_s) for share in (0.5, 0.99)),
        )
        for manner, tally in tallies.items()
    ]
    print(table(header, rows), "\n")
    for manner, tally in tallies.items():
        for reason, number in tally.failures.items():
            print(f"- {manner}, {number} times: {reason}")


def _times(what: str) -> Sequence[str]:
    return (f"{what}, median", "p99")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.load")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--running", type=int, default=100)
    parser.add_argument("--waiting", type=int, default=500)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--model", default="smollm2:135m")
    arguments = parser.parse_args()
    return run(resolve_model(arguments.model), arguments.seconds, arguments.running, arguments.waiting, arguments.shards)


if __name__ == "__main__":
    sys.exit(main())
