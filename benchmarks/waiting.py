"""How long small requests and a long prompt wait beside greedy clients: in simulated frames, and with real processes over loopback.

    .venv/bin/python benchmarks/waiting.py [--model smollm2:135m] [--simulated] [--json]

Four clients with an API key of their own each ask for 128 answers at once (n=128). When they are under way, ten other clients ask a small
question each, one after the other, and one asks with a long prompt. What counts is the time from a request to its first token.

--simulated: the scheduler alone, with frames that take as long as their rows. It is deterministic, and takes seconds.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from statistics import median
from typing import Annotated

import httpx
import typer
from command import run, show
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.coordinator.engine.facts import SchedulerLimits
from dairllm.coordinator.engine.requests import Asker, SequenceId
from dairllm.mesh.errors import DairllmError
from dairllm.model_files.getting.resolve import resolve_model
from tests.engine.simulated_clients import SimulatedClients
from tests.instruments.clusters import Cluster, ShardSetup

GREEDY_CLIENTS, GREEDY_N, CONCURRENT = 4, 128, 32
GREEDY_PROMPT, GREEDY_ANSWER = 20, 200
SMALL_CLIENTS, SMALL_PROMPT, SMALL_ANSWER = 10, 15, 8
LONG_PROMPT, LONG_ANSWER = 1500, 8
SETTLING_FRAMES, FRAMES_BETWEEN = 60, 40
SETTLING_S, BETWEEN_S = 10.0, 1.0
TIMEOUT_S = 600.0
LIMIT_S = 150.0
"""Who has no token after this time is not waited for any longer."""
CONTEXT_LENGTH = 2048
KV_BLOCKS = (600, 150)


def simulate(num_blocks: int) -> dict[str, list[float]]:
    """Seconds to the first token, of the small ones and of the long one."""
    clients = SimulatedClients(SchedulerLimits(CONTEXT_LENGTH), num_blocks)
    greedy = [Asker(f"greedy {call}", call) for call in range(1, GREEDY_CLIENTS + 1)]
    left = dict.fromkeys(greedy, GREEDY_N - CONCURRENT)
    whose = {clients.ask(one, GREEDY_PROMPT, GREEDY_ANSWER): one for one in greedy for _ in range(CONCURRENT)}
    asked: dict[str, list[SequenceId]] = {"small": [], "long": []}
    for frame in range(SETTLING_FRAMES, 1_000_000):
        for one in [whose[number] for number in clients.frame() if number in whose]:
            if left[one] > 0:
                left[one] -= 1
                whose[clients.ask(one, GREEDY_PROMPT, GREEDY_ANSWER)] = one
        turn, rest = divmod(frame - SETTLING_FRAMES, FRAMES_BETWEEN)
        if rest == SETTLING_FRAMES % FRAMES_BETWEEN and turn < SMALL_CLIENTS:
            asked["small"].append(clients.ask(Asker(f"small {turn}"), SMALL_PROMPT, SMALL_ANSWER))
            if turn == SMALL_CLIENTS // 2:
                asked["long"].append(clients.ask(Asker("long"), LONG_PROMPT, LONG_ANSWER))
        waited = [clients.waited[number].first_s for numbers in asked.values() for number in numbers]
        if clients.is_idle or (len(waited) == SMALL_CLIENTS + 1 and None not in waited):
            break
    return {kind: [clients.waited[number].first_s or 0.0 for number in numbers] for kind, numbers in asked.items()}


def measure(model: Path) -> dict[str, list[float]]:
    with Cluster(model, [ShardSetup("a"), ShardSetup("b")], min_shards=2, name="waiting") as cluster, ThreadPoolExecutor() as pool:
        stop = threading.Event()
        ids = [(7 * position) % 1000 + 300 for position in range(LONG_PROMPT)]
        for number in range(GREEDY_CLIENTS):
            pool.submit(_ask, cluster.http, f"greedy {number}", ids[:GREEDY_PROMPT], GREEDY_ANSWER, GREEDY_N, stop)
        try:
            time.sleep(SETTLING_S)
            small, long = [], []
            for number in range(SMALL_CLIENTS):
                small.append(pool.submit(_ask, cluster.http, f"small {number}", ids[:SMALL_PROMPT], SMALL_ANSWER, 1, stop))
                if number == SMALL_CLIENTS // 2:
                    long.append(pool.submit(_ask, cluster.http, "long", ids, LONG_ANSWER, 1, stop))
                time.sleep(BETWEEN_S)
            wait([*small, *long], LIMIT_S)
            stop.set()
            return {kind: [one.result(TIMEOUT_S) for one in each] for kind, each in (("small", small), ("long", long))}
        finally:
            stop.set()


def _ask(http: str, key: str, prompt: Sequence[int], answer: int, n: int, stop: threading.Event) -> float:
    """Seconds to the first token, or until there was none; the stream is read until its end or `stop`."""
    body = {"prompt": list(prompt), "max_tokens": answer, "n": n, "stream": True, "ignore_eos": True, "return_token_ids": True}
    first_s, began_s = 0.0, time.monotonic()
    headers = {"authorization": f"Bearer {key}"}
    with (
        httpx.Client(base_url=http, timeout=TIMEOUT_S, trust_env=False, headers=headers) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        if response.status_code != 200:
            raise DairllmError(f"a request was refused with {response.status_code}: {response.read().decode()}")
        for line in response.iter_lines():
            if line.startswith("data: ") and not first_s:
                first_s = time.monotonic() - began_s
            if stop.is_set():
                break
    return first_s or time.monotonic() - began_s


def table_of(results: dict[str, dict[str, list[float]]]) -> Table:
    table = Table("time to the first token", box=None, header_style="bold", pad_edge=False)
    for column in ("small, median", "small, longest", "long prompt"):
        table.add_column(column, justify="right")
    for name, times_s in results.items():
        small, long = times_s["small"], times_s["long"]
        table.add_row(name, f"{median(small):.2f} s", f"{max(small):.2f} s", f"{long[0]:.2f} s")
    return table


def waiting(
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    simulated: Annotated[bool, typer.Option("--simulated", help="The scheduler alone, without processes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Measure how long small requests and a long prompt wait beside greedy clients."""
    if simulated:
        results = {f"simulated, {num_blocks} KV blocks": simulate(num_blocks) for num_blocks in KV_BLOCKS}
    else:
        results = {model: measure(resolve_model(model))}
    if as_json:
        print(json.dumps(results))
    else:
        show(table_of(results))


if __name__ == "__main__":
    run(waiting)
