"""The models that were fetched to this machine, and removing them: in dairllm's cache folder, and in the hub's, which other programs
share."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.getting.choosing import HubFile, choose, labels_of
from dairllm.model_files.getting.known_models import KnownModel, Wheel, find_known_model, known_models
from dairllm.model_files.getting.references import HubModel, KnownName, LocalPath, WebFile, parse_reference
from dairllm.model_files.getting.web import folder_of, is_here, kept_web_files, parts_of
from dairllm.model_files.getting.wheels import wheel_file

_PARTIAL = ".incomplete"


@dataclass(frozen=True, slots=True)
class KeptModel:
    """name: what to write behind --model. path: what is opened, or where the parts lie. used_s: when it was read last, in seconds since
    1970, as far as the file system keeps that."""

    name: str
    size_bytes: int
    path: Path
    is_complete: bool
    used_s: float


def kept_models() -> list[KeptModel]:
    return [*_kept_wheels(), *_kept_web_models(), *_kept_hub_models()]


def remove_model(written: str) -> int:
    """Delete what was fetched of a model, which is named as behind --model, and tell how many bytes that freed.

    Raises UnknownModelName if nothing of it is here, or if it is a file of the user's own; ModelFetchError if it cannot be deleted.
    """
    try:
        match parse_reference(written):
            case LocalPath(path):
                raise UnknownModelName(
                    f"{path} was not fetched by dairllm, which deletes nothing else; expected a name of `dairllm models list`"
                )
            case KnownName(name):
                return _remove_known(find_known_model(name))
            case HubModel() as model:
                return _remove_hub_model(model)
            case WebFile() as file:
                return _remove_web_model(file)
    except OSError as error:
        raise ModelFetchError(f"{written} cannot be deleted: {error.strerror or error}") from error


def _kept_wheels() -> Iterator[KeptModel]:
    for model in known_models().values():
        path = wheel_file(model.source) if isinstance(model.source, Wheel) else None
        if path is not None and path.is_file():
            status = path.stat()
            yield KeptModel(model.name, status.st_size, path, status.st_size == model.size_bytes, status.st_atime)


def _kept_web_models() -> Iterator[KeptModel]:
    for file in kept_web_files():
        paths = [
            path for path in folder_of(file).iterdir() if path.name.removesuffix(_PARTIAL) in {part.file_name for part in parts_of(file)}
        ]
        if paths:
            yield KeptModel(file.url, _size_of(paths), folder_of(file) / file.file_name, is_here(file), _used_s(paths))


def _kept_hub_models() -> Iterator[KeptModel]:
    from dairllm.model_files.getting.hub import cache  # takes a while

    for folder in sorted(cache().glob("models--*--*")):
        repository = folder.name.removeprefix("models--").replace("--", "/", 1)
        main = _main_commit(folder)
        for snapshot in _snapshots(folder):
            revision = "" if snapshot.name == main else f"@{snapshot.name}"
            for label, choice in labels_of(_files_of(snapshot)).items():
                paths = [snapshot / file.name for file in choice.files]
                yield KeptModel(f"hf:{repository}{revision}:{label}", choice.size_bytes, snapshot / choice.entry, True, _used_s(paths))
        partial = list((folder / "blobs").glob(f"*{_PARTIAL}"))
        if partial:
            yield KeptModel(f"hf:{repository}", _size_of(partial), folder, False, _used_s(partial))


def _main_commit(folder: Path) -> str:
    try:
        return (folder / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "snapshots").glob("*") if path.is_dir())


def _files_of(snapshot: Path) -> list[HubFile]:
    """Those that are there: a link may lead nowhere."""
    paths = (path for path in sorted(snapshot.rglob("*")) if path.is_file())
    return [HubFile(path.relative_to(snapshot).as_posix(), path.stat().st_size) for path in paths]


def _remove_known(model: KnownModel) -> int:
    if isinstance(model.source, HubModel):
        return _remove_hub_model(model.source)
    path = wheel_file(model.source)
    if not path.is_file():
        raise UnknownModelName(f"{model.name} is not on this machine")
    freed_bytes = _size_of([path])
    path.unlink()
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    return freed_bytes


def _remove_web_model(file: WebFile) -> int:
    folder = folder_of(file)
    if not folder.is_dir():
        raise UnknownModelName(f"nothing of {file.url} is on this machine")
    freed_bytes = _size_of(folder.iterdir())
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
    return freed_bytes


def _remove_hub_model(model: HubModel) -> int:
    """Without a choice all of the repository, else the files of that choice, in all revisions unless one is named."""
    from dairllm.model_files.getting.hub import cache, repository_folder  # takes a while

    folder = repository_folder(model.repository)
    snapshots = [one for one in _snapshots(folder) if model.revision in (None, one.name)]
    if not folder.is_dir() or (model.revision is not None and not snapshots):
        raise UnknownModelName(f"nothing of {model} is in {cache()}")
    before_bytes = _blob_bytes(folder)
    if model.choice is not None or model.revision is not None:
        _remove_files(model, snapshots)
    if (model.choice is None and model.revision is None) or not any(labels_of(_files_of(one)) for one in _snapshots(folder)):
        shutil.rmtree(folder)
        shutil.rmtree(cache() / ".locks" / folder.name, ignore_errors=True)
        return before_bytes
    _remove_unused_blobs(folder)
    return before_bytes - _blob_bytes(folder)


def _remove_files(model: HubModel, snapshots: Iterable[Path]) -> None:
    """Their names in the snapshots; UnknownModelName if there are none."""
    found, problem = False, None
    for snapshot in snapshots:
        files = _files_of(snapshot)
        try:
            chosen = files if model.choice is None else choose(model.repository, files, model.choice).files
        except UnknownModelName as error:
            problem = error
            continue
        found = True
        for file in chosen:
            (snapshot / file.name).unlink()
    if not found:
        raise problem or UnknownModelName(f"nothing of {model} is on this machine")


def _remove_unused_blobs(folder: Path) -> None:
    used = {os.path.realpath(path) for snapshot in _snapshots(folder) for path in snapshot.rglob("*") if path.is_symlink()}
    for blob in (folder / "blobs").iterdir():
        if blob.suffix != _PARTIAL and os.path.realpath(blob) not in used:
            blob.unlink()


def _blob_bytes(folder: Path) -> int:
    """On the disk: of a cache without links, of the files themselves."""
    return _size_of(path for path in folder.rglob("*") if not path.is_symlink())


def _size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


def _used_s(paths: Iterable[Path]) -> float:
    return max((path.stat().st_atime for path in paths if path.exists()), default=0.0)
