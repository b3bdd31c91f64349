"""`dairllm models pull`, `list` and `remove`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from dairllm.mesh.errors import InvalidModel
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile
from dairllm.mesh.terminal import console

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="As behind --model: a short name, hf:OWNER/NAME[:FILE or type], or a URL of a GGUF file.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]


@contextmanager
def as_invalid_model() -> Iterator[None]:
    """What is wrong with a model, as an error of this command."""
    from dairllm.model_files.errors import ModelFileError

    try:
        yield
    except ModelFileError as error:
        raise InvalidModel(str(error)) from error


def pull(model: ModelArgument, as_json: JsonOption = False, config: ConfigFile = None) -> None:
    """Fetch a model to this machine; what is there of it already is not fetched again."""
    # Imported here so that `dairllm chat` does not load it.
    from dairllm.model_files.getting.resolve import resolve_model
    from dairllm.model_files.progress import progress_bar

    screen = console(stderr=True, quiet=as_json)
    with as_invalid_model(), progress_bar(screen) as progress:
        path = resolve_model(model, progress, lambda note: screen.print(on_one_line(note), soft_wrap=True))
    print(json.dumps({"model": model, "path": str(path)}) if as_json else f"{on_one_line(model)} is here: {on_one_line(str(path))}")


def list_models(as_json: JsonOption = False, config: ConfigFile = None) -> None:
    """List the models that were fetched to this machine, and the short names that can be asked for."""
    from dairllm.model_files.getting.choosing import describe_size
    from dairllm.model_files.getting.inventory import kept_models
    from dairllm.model_files.getting.known_models import known_models

    with as_invalid_model():
        kept, known = kept_models(), known_models()
    if as_json:
        here = [
            {"name": model.name, "size_bytes": model.size_bytes, "complete": model.is_complete, "path": str(model.path)} for model in kept
        ]
        names = [{"name": model.name, "size_bytes": model.size_bytes, "licence": model.licence} for model in known.values()]
        print(json.dumps({"models": here, "known": names}))
        return
    screen = console()
    table = Table("model", "size", "state", "last used", box=None, header_style="bold", pad_edge=False)
    for model in kept:
        state = "complete" if model.is_complete else "a part of it"
        used = datetime.fromtimestamp(model.used_s).strftime("%Y-%m-%d")
        table.add_row(on_one_line(model.name), describe_size(model.size_bytes), state, used)
    screen.print(table if kept else "no model was fetched to this machine")
    others = [model for model in known.values() if model.name not in {one.name for one in kept}]
    if others:
        screen.print("\nShort names that `dairllm models pull` and --model know:")
        table = Table("model", "size", "licence", box=None, header_style="bold", pad_edge=False)
        for one in others:
            table.add_row(one.name, describe_size(one.size_bytes), one.licence)
        screen.print(table)


def remove(model: ModelArgument, as_json: JsonOption = False, config: ConfigFile = None) -> None:
    """Delete what was fetched of a model; hf:OWNER/NAME without a type deletes all of that repository in the hub's cache."""
    from dairllm.model_files.getting.choosing import describe_size
    from dairllm.model_files.getting.inventory import remove_model

    with as_invalid_model():
        freed_bytes = remove_model(model)
    freed = json.dumps({"model": model, "freed_bytes": freed_bytes})
    print(freed if as_json else f"{on_one_line(model)} is deleted; {describe_size(freed_bytes)} are free again")
