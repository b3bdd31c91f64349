"""One stage of dairllm beside llama.cpp on the same file and machine, interleaved run by run: prefill and decode, as ratios of medians.

llama.cpp is not part of this project: --peer-python names a Python that has the package llama-cpp-python. Each run is a process of its own
that loads the model, warms up, prefills a prompt of random tokens and decodes without sampling. Run on a machine that does nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer
from command import run, show
from rich.table import Table

from dairllm.mesh.errors import PeerUnreachable
from dairllm.model_files.getting.resolve import resolve_model

RUN_TIMEOUT_S = 600.0
SPEEDS = ("prefill_tok_s", "decode_tok_s")

PEER_PROGRAM = """
import ctypes, json, random, sys, time
import llama_cpp as peer

path, threads, prompt, generate = sys.argv[1], *map(int, sys.argv[2:5])
peer.llama_backend_init()
model = peer.llama_model_load_from_file(path.encode(), peer.llama_model_default_params())
params = peer.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch = max(prompt, generate) + 8, 512, 512
params.n_threads = params.n_threads_batch = threads
context = peer.llama_init_from_model(model, params)
vocab_size = peer.llama_vocab_n_tokens(peer.llama_model_get_vocab(model))
numbers = random.Random(1)
ids = [numbers.randrange(vocab_size) for _ in range(max(prompt, generate) + 1)]

def compute(part):
    array = (ctypes.c_int32 * len(part))(*part)
    assert peer.llama_decode(context, peer.llama_batch_get_one(array, len(part))) == 0
    peer.llama_synchronize(context)

def seconds(work):
    peer.llama_memory_clear(peer.llama_get_memory(context), True)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

def prefill():
    for first in range(0, prompt, 512):
        compute(ids[first : min(first + 512, prompt)])

def decode():
    for one in ids[:generate]:
        compute([one])

seconds(prefill), seconds(decode)
print(json.dumps({"prefill_tok_s": prompt / seconds(prefill), "decode_tok_s": generate / seconds(decode)}))
"""


def peer_run(python: Path, model: Path, threads: int, prompt: int, generate: int) -> dict[str, float]:
    return last_json([str(python), "-c", PEER_PROGRAM, str(model), str(threads), str(prompt), str(generate)])


def own_run(model: Path, threads: int, prompt: int, generate: int) -> dict[str, float]:
    options = {"--model": model, "--threads": threads, "--prompt": prompt, "--generate": generate, "--repeat": 1}
    arguments = [str(word) for option in options.items() for word in option]
    return last_json([sys.executable, "-m", "dairllm.client.cli", "bench", *arguments, "--json"])


def last_json(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise PeerUnreachable(f"{Path(command[0]).name} ended with status {done.returncode}: {last}")
    facts: dict[str, float] = json.loads(lines[-1])
    return facts


def compare(
    peer_python: Annotated[Path, typer.Option(help="A Python with the package llama-cpp-python.")],
    model: Annotated[str, typer.Option(help="Path of a GGUF file, or a known name.")] = "smollm2:135m",
    threads: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 1 and 2.")] = None,
    prompt: Annotated[int, typer.Option(min=1)] = 512,
    generate: Annotated[int, typer.Option(min=1)] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Pairs of runs.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare with llama.cpp."""
    path = resolve_model(model)
    results = [_compare_with(path, peer_python, count, prompt, generate, repeat) for count in threads or [1, 2]]
    if as_json:
        facts = {"model": model, "prompt": prompt, "generate": generate, "results": [one._asdict() for one in results]}
        print(json.dumps(facts))
        return
    title = f"{path.name}: {prompt} tokens in, {generate} out"
    table = Table("threads", "what", "dairllm tok/s", "llama.cpp tok/s", "ratio of medians", title=title)
    for result in results:
        for speed in SPEEDS:
            ours, theirs = result.speeds["dairllm"][speed], result.speeds["llama.cpp"][speed]
            ratio = median(ours) / median(theirs)
            table.add_row(str(result.threads), speed.split("_")[0], _spread(ours), _spread(theirs), f"{ratio:.2f}")
    show(table)


class Comparison(NamedTuple):
    """speeds: program -> speed -> tokens per second of each run."""

    threads: int
    speeds: dict[str, dict[str, list[float]]]


def _compare_with(path: Path, peer_python: Path, threads: int, prompt: int, generate: int, repeat: int) -> Comparison:
    speeds: dict[str, dict[str, list[float]]] = {name: {speed: [] for speed in SPEEDS} for name in ("dairllm", "llama.cpp")}
    for _ in range(repeat):
        ours, theirs = own_run(path, threads, prompt, generate), peer_run(peer_python, path, threads, prompt, generate)
        for name, done in (("dairllm", ours), ("llama.cpp", theirs)):
            for speed in SPEEDS:
                speeds[name][speed].append(done[speed])
    return Comparison(threads, speeds)


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    run(compare)
