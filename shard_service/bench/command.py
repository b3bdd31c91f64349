"""`dairllm bench`: what one stage reaches on this machine. A command of the entry point group `dairllm.commands`."""

import json
import os
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dairllm.mesh.errors import InvalidModel
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile, format_size
from dairllm.mesh.terminal import console
from dairllm.mesh.words import counted


def bench(
    model: Annotated[str, typer.Option(metavar="PATH|NAME|URL", help="As of dairllm-coordinator.")] = "smollm2:135m",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute. Default: the cores that this process may use.")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    generate: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 64,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences that are decoded at the same time.")] = 1,
    depth: Annotated[int, typer.Option(min=0, help="Tokens that are in the cache when decoding begins.")] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; their median is reported.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
    config: ConfigFile = None,
) -> None:
    """Measure prefill and decode speed of one machine that holds the whole model, without network."""
    # Imported here so that `dairllm chat` does not load the kernels.
    from dairllm.model_files.containers import open_container
    from dairllm.model_files.errors import ModelFileError
    from dairllm.model_files.getting.resolve import resolve_model
    from dairllm.model_files.manifest_builder import build_manifest
    from dairllm.model_files.progress import progress_bar
    from dairllm.shard_service.bench.measurement import StageSpeed, Workload, measure_stage

    workload = Workload(prompt=prompt, generate=generate, sequences=sequences, depth=depth, repeat=repeat)
    try:
        with progress_bar(console(stderr=True, quiet=as_json)) as progress:
            path = resolve_model(model, progress)
            manifest = build_manifest(path, progress)
            paths = open_container(path).paths
    except ModelFileError as error:
        raise InvalidModel(str(error)) from error
    speed: StageSpeed = measure_stage(paths, manifest, workload, threads)
    facts = {"model": model, "name": manifest.spec.name, "prompt": prompt, "generate": generate}
    facts |= {"sequences": sequences, "depth": depth, "repeat": repeat, "cores": os.cpu_count()}
    if as_json:
        print(json.dumps(facts | speed.to_json()))
        return
    table = Table("", "median", "lowest", "highest", "", box=None, header_style="bold", pad_edge=False)
    for name, spread, unit, scale in (
        (f"prefill, {prompt} tokens", speed.prefill_tok_s, "tok/s", 1.0),
        (f"decode, {generate} tokens, {sequences} at once", speed.decode_tok_s, "tok/s", 1.0),
        ("memory, reading", speed.memory_bytes_per_s, "GB/s", 1e-9),
    ):
        table.add_row(name, *(f"{value * scale:.1f}" for value in spread), unit)
    screen = console()
    about = f" with {counted(speed.threads, 'thread')}, {speed.isa}; {repeat} runs after one to warm up"
    screen.print(Text.assemble((on_one_line(manifest.spec.name), "bold"), about), soft_wrap=True)
    screen.print(table)
    screen.print(
        f"{speed.bytes_per_token / 1e6:.1f} MB of weights per token, read at {speed.share_of_bandwidth:.0%} of the memory bandwidth; "
        f"loaded {format_size(speed.weights_bytes)} in {speed.load_s:.2f} s; resident {format_size(speed.resident_bytes)}",
        soft_wrap=True,
    )
