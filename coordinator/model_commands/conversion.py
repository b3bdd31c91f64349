"""`dairllm models convert`: any model as one GGUF file."""

from pathlib import Path
from typing import Annotated

import typer

from dairllm.coordinator.model_commands.inspection import MODEL_HELP
from dairllm.coordinator.model_commands.inventory import as_invalid_model
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile, format_size
from dairllm.mesh.terminal import console


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    output: Annotated[Path, typer.Argument(metavar="OUT.gguf", help="The file to be written; it must not exist.")],
    block_format: Annotated[
        str | None,
        typer.Option("--type", help="Element type of the matrices: F32, F16, BF16, Q8_0, Q4_0 or Q4_K. Default: as they are stored."),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Write a model (a folder of safetensors files, a distributed-llama file, parts of a GGUF file) as one GGUF file."""
    # Imported here so that `dairllm chat` does not load it.
    from dairllm.model_files.converting.writing import convert_model
    from dairllm.model_files.getting.resolve import resolve_model
    from dairllm.model_files.progress import progress_bar

    notes = console(stderr=True)
    with as_invalid_model(), progress_bar(notes) as progress:
        path = resolve_model(model, progress, lambda note: notes.print(on_one_line(note), soft_wrap=True))
        lacks = convert_model(path, output, None if block_format is None else block_format.upper(), progress)
    for sentence in lacks:
        notes.print(on_one_line(sentence), soft_wrap=True)
    print(f"{on_one_line(str(output))} is written, {format_size(output.stat().st_size)}")
