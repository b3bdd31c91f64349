"""From a path to the container that it stands for, by what is there and not by its name."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dairllm.model_files.containers.bounded_json import MAX_JSON_BYTES, parse_json_object
from dairllm.model_files.containers.container import Container
from dairllm.model_files.containers.distributed_llama import read_distributed_llama
from dairllm.model_files.containers.hugging_face import COMPANIONS, CONFIG, INDEX, has_weights, read_hugging_face
from dairllm.model_files.containers.ollama import is_ollama_manifest, name_of_blob, read_ollama_manifest
from dairllm.model_files.containers.recognition import FileKind, recognise
from dairllm.model_files.containers.regular_files import names_in, read_start, read_whole
from dairllm.model_files.containers.split_gguf import part_names, read_all_parts
from dairllm.model_files.errors import UnknownModelName

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_REVISION = re.compile(rb"[0-9a-f]{7,64}")


def open_container(path: Path) -> Container:
    """The model that a file or folder is. Any file of a model in several stands for all of it.

    Raises UnknownModelName for something else, with what it is and what to do about it; CorruptModelFile for a model that is damaged, not
    complete, or cannot be read; UnsupportedModel for one of a kind that is not known.
    """
    if "\0" in str(path):
        raise UnknownModelName(f"{str(path)[:200]!r} contains a NUL character; expected a path")
    path = Path(os.path.abspath(path))
    return _open_folder(path) if os.path.isdir(path) else _open_file(path)


def _open_file(path: Path) -> Container:
    match recognise(path):
        case FileKind.GGUF:
            container = read_all_parts(path)
            return replace(container, name=name_of_blob(path) or container.name)
        case FileKind.DISTRIBUTED_LLAMA:
            return read_distributed_llama(path)
        case FileKind.SAFETENSORS:
            return read_hugging_face(path.parent)
        case FileKind.JSON if path.name in (CONFIG, INDEX, *COMPANIONS):
            return read_hugging_face(path.parent)
        case FileKind.JSON if is_ollama_manifest(parse_json_object(read_whole(path, MAX_JSON_BYTES), str(path))):
            return read_ollama_manifest(path)
    raise UnknownModelName(f"{path} is a JSON file; expected a model file, or the folder of one")


def _open_folder(folder: Path) -> Container:
    names = names_in(folder)
    if has_weights(names):
        return read_hugging_face(folder)
    if "snapshots" in names and "refs" in names:
        return open_container(_snapshot(folder))
    models = _models_in(folder, names)
    if len(models) == 1:
        return open_container(folder / models[0])
    if models:
        raise UnknownModelName(f"{folder} has {len(models)} models, {', '.join(models)[:200]}; expected the path of one of them")
    raise UnknownModelName(_no_weights(folder, names))


def _models_in(folder: Path, names: Sequence[str]) -> list[str]:
    """One file of each model, by name: of one in several parts the first; without projectors of images, which are no models."""
    files = [name for name in names if name.endswith((".gguf", ".m")) and not name.startswith("mmproj")]
    return sorted({(part_names(name) or [name])[0] for name in files})


def _snapshot(repository: Path) -> Path:
    """Of a repository in a hub's cache: the revision that `main` is, else the only one."""
    main, snapshots = repository / "refs" / "main", repository / "snapshots"
    if os.path.isfile(main):
        revision = read_start(main, 100)[0].strip()
        if _REVISION.fullmatch(revision) and os.path.isdir(snapshots / revision.decode()):
            return snapshots / revision.decode()
    found = names_in(snapshots)
    if len(found) != 1:
        raise UnknownModelName(f"{repository} has {len(found)} revisions in snapshots; expected the path of one of them")
    return snapshots / found[0]


def _no_weights(folder: Path, names: Sequence[str]) -> str:
    if not names:
        return f"{folder} is an empty folder; expected a model in it"
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        what = f"{folder} has its weights as {pickles[0]}, a pickle (which may run any program when it is loaded)"
        return f"{what}, which is not read; expected safetensors files or a GGUF file of the same model"
    if CONFIG in names:
        return f"{folder} has a {CONFIG} but no weights; expected safetensors files beside it"
    return f"{folder} has no model in it; expected a GGUF or distributed-llama file, or {CONFIG} with safetensors files"
