"""`dairllm models inspect`: what would run of a model, as a table or as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dairllm.coordinator.model_commands.inventory import JsonOption, as_invalid_model
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile, format_size
from dairllm.mesh.terminal import console
from dairllm.mesh.words import counted

if TYPE_CHECKING:
    from dairllm.model_files.inspection import Inspection

MODEL_HELP = "As behind --model of dairllm-coordinator: a path, a short name, hf:OWNER/NAME[:FILE or type], or a URL of a GGUF file."


def inspect_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    context_length: Annotated[int, typer.Option(min=1, help="Tokens of the sequence whose memory is told.")] = 8192,
    kv_cache: Annotated[str, typer.Option(help="What keys and values are kept in: F16, F32 or Q8_0.")] = "F16",
    as_json: JsonOption = False,
    config: ConfigFile = None,
) -> None:
    """Show what would run of a model, without reading its weights; one that is elsewhere is not fetched, but for its headers."""
    # Imported here so that `dairllm chat` does not load the kernels.
    from dairllm.coordinator.engine.facts import SchedulerLimits
    from dairllm.mesh.cache_types import parse_cache_type
    from dairllm.model_files.inspection import inspect

    with as_invalid_model():
        found = inspect(model, context_length, parse_cache_type(kv_cache), SchedulerLimits(context_length).max_batch_rows)
    if as_json:
        print(json.dumps(as_object(found)))
        return
    for note in found.notes:
        console(stderr=True).print(on_one_line(note), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _rows(found):
        table.add_row(name, on_one_line(value))
    console().print(table)


def as_object(found: "Inspection") -> dict[str, object]:
    """For programs: the fields of Inspection, with sums."""
    stored = asdict(found.stored) | {"parameters": found.stored.parameters}
    running = None if found.running is None else asdict(found.running) | {"memory_bytes": found.running.memory_bytes}
    about = {"path": str(found.path), "is_here": found.is_here, "problem": found.problem, "notes": list(found.notes)}
    return about | {"stored": stored, "running": running}


def _rows(found: "Inspection") -> Iterator[tuple[str, str]]:
    stored = found.stored
    yield "name", stored.name
    yield "lies in", f"{found.path}{'' if found.is_here else ' (not fetched yet)'}"
    yield "container", f"{stored.kind}, {counted(stored.num_files, 'file')}, {format_size(stored.size_bytes)}"
    yield "architecture", stored.architecture
    yield "licence", stored.licence or "not known"
    yield "parameters", f"{stored.parameters / 1e9:.3g} billion" if stored.parameters >= 1e8 else f"{stored.parameters / 1e6:.3g} million"
    total_bytes = max(sum(share.size_bytes for share in stored.by_type.values()), 1)
    yield "stored as", ", ".join(f"{name} {share.size_bytes / total_bytes:.1%}" for name, share in stored.by_type.items())
    yield "tokenizer", stored.tokenizer
    yield "chat template", "yes" if stored.has_chat_template else "no"
    running = found.running
    if running is None:
        yield "runs", f"no: {found.problem}"
        return
    yield "runs", f"yes, with {', '.join(running.features)}"
    yield "context", f"{running.context_length} tokens"
    embedding, *layers, head = running.unit_bytes
    sizes = format_size(min(layers)) if min(layers) == max(layers) else f"{format_size(min(layers))} to {format_size(max(layers))}"
    yield "units", f"embedding {format_size(embedding)}, {counted(len(layers), 'layer')} of {sizes}, head {format_size(head)}"
    yield "read per token", format_size(running.bytes_read_per_token)
    sizes_of = {"weights": running.weights_bytes, "cache": running.cache_bytes, "scratch": running.scratch_bytes}
    parts = ", ".join(f"{part} {format_size(size_bytes)}" for part, size_bytes in sizes_of.items())
    yield f"memory for {running.sequence_tokens} tokens", f"{format_size(running.memory_bytes)}: {parts}"
