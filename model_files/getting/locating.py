"""Where a model is that stands behind `--model`, without fetching it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.known_models import KnownModel, Wheel
from dairllm.model_files.getting.references import HubModel, KnownName, LocalPath, WebFile, parse_reference
from dairllm.model_files.getting.resolve import check_path, find_name
from dairllm.model_files.getting.transfer import RemoteFile
from dairllm.model_files.getting.web import folder_of, is_here, parts_of, size_of
from dairllm.model_files.getting.wheels import is_here as is_wheel_here
from dairllm.model_files.getting.wheels import wheel_file


@dataclass(frozen=True, slots=True)
class Located:
    """path: what is opened, or would be when it is here. missing: its files, if not all of them are on this machine; entry: which of them
    is opened, '' for their folder. licence: as a hub names it. notes: for the user, in sentences."""

    path: Path
    missing: tuple[RemoteFile, ...] = ()
    entry: str = ""
    licence: str | None = None
    notes: tuple[str, ...] = ()


def locate(written: str) -> Located:
    """Raises UnknownModelName if nothing is meant, ModelFetchError if that cannot be found out."""
    match parse_reference(written):
        case LocalPath(path):
            return Located(check_path(path))
        case KnownName(name):
            known = find_name(name)
            return Located(known) if isinstance(known, Path) else _locate_known(known)
        case HubModel() as model:
            return _locate_in_hub(model)
        case WebFile() as file:
            path = folder_of(file) / file.file_name
            if is_here(file):
                return Located(path)
            parts = parts_of(file)
            return Located(path, tuple(RemoteFile(part.file_name, part.url, size_of(part)) for part in parts), file.file_name)


def _locate_known(model: KnownModel) -> Located:
    if isinstance(model.source, HubModel):
        return _locate_in_hub(model.source)
    return _locate_wheel(model, model.source)


def _locate_wheel(model: KnownModel, wheel: Wheel) -> Located:
    if not is_wheel_here(model, wheel):
        raise ModelFetchError(f"{model.name} is not on this machine; expected `dairllm models pull {model.name}` first")
    return Located(wheel_file(wheel), licence=model.licence)


def _locate_in_hub(model: HubModel) -> Located:
    from dairllm.model_files.getting.hub import find, remote_file  # takes a while

    found = find(model)
    missing = tuple(remote_file(found.listing, file) for file in found.choice.files) if found.missing else ()
    return Located(found.entry, missing, found.choice.entry, found.listing.licence, tuple(found.notes))


def urls_of(written: str, paths: Sequence[Path]) -> tuple[str, ...]:
    """Where the files of a model that was fetched can be fetched by others, in their order; nothing if nobody knows."""
    match parse_reference(written):
        case WebFile() as file:
            by_name = {part.file_name: part.url for part in parts_of(file)}
            return tuple(by_name[path.name] for path in paths) if all(path.name in by_name for path in paths) else ()
        case _:
            from dairllm.model_files.getting import hub  # takes a while

            return hub.urls_of(paths)
