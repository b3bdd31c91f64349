"""AirLLM as it decodes a folder layer by layer from disk, within a memory cgroup: what `streaming.py` is compared with.

    .venv/bin/python benchmarks/synthetic_checkpoint.py 1b-bf16
    .venv/bin/python benchmarks/layered_peer.py 1b-bf16 --peer-python PYTHON

PYTHON has the package airllm. It keeps a copy of the model, split by layers, in the folder. Once as released, and once without the
collection of garbage after every module. What it reads has no room in the page cache: so it comes from the disk. Needs root.
"""

from pathlib import Path
from typing import Annotated

import typer
from command import run, show
from limited_memory import memory_limit
from peer import last_json
from rich.table import Table

from dairllm.mesh.settings import parse_size

PROGRAM = """
import json, sys, time
import torch
import airllm.airllm_base as base, airllm.utils as utils
from airllm import AutoModel

path, threads, tokens, collects = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads)
base.AirLLMBaseModel.get_tokenizer = lambda self, hf_token=None: None
if not collects:
    base.clean_memory = utils.clean_memory = lambda *_, **__: None
model = AutoModel.from_pretrained(path, device="cpu", dtype=torch.bfloat16)
ids, cache, times = torch.tensor([[5, 6, 7, 8]]), None, []
with torch.no_grad():
    for _ in range(tokens + 1):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        times.append(time.perf_counter())
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print()
print(json.dumps({"tok_s": tokens / (times[-1] - times[0]), "peak_mib": int(peak) / 1024}))
"""


def main(
    model: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    peer_python: Annotated[Path, typer.Option(exists=True, help="A Python that has the package airllm.")],
    limit: Annotated[str, typer.Option(metavar="SIZE", help="Of the memory cgroup.")] = "1100MiB",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    tokens: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Decode with AirLLM."""
    table = Table("garbage", "tok/s", "peak, MiB", title=model.name)
    for collects in (True, False):
        with memory_limit(parse_size(limit)) as held:
            arguments = [str(model), str(threads), str(tokens), str(int(collects))]
            facts = last_json([*held.prefix, str(peer_python), "-c", PROGRAM, *arguments])
        table.add_row("as released" if collects else "not collected", f"{facts['tok_s']:.3f}", f"{facts['peak_mib']:.0f}")
    show(table)


if __name__ == "__main__":
    run(main)
