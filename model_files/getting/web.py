"""Model files of the web, kept in the cache folder by their URL. One that is there is not asked for again."""

import hashlib
from pathlib import Path
from urllib.parse import quote, urlsplit

from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.containers.split_gguf import part_names
from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.getting.disk_space import require_space
from dairllm.model_files.getting.http_stream import HttpProblem, HttpStream
from dairllm.model_files.getting.references import WebFile
from dairllm.model_files.getting.transfer import RemoteFile, download, locked
from dairllm.model_files.progress import ProgressCallback

_URL = "url"
"""Name of the file that says where the others in its folder are from."""


def web_folder() -> Path:
    return cache_folder() / "models" / "web"


def folder_of(file: WebFile) -> Path:
    """One for all parts of a model."""
    return web_folder() / hashlib.sha256(parts_of(file)[0].url.encode()).hexdigest()[:16]


def parts_of(file: WebFile) -> list[WebFile]:
    """The file, or of a split model all of its parts, which lie beside it. Raises UnknownModelName."""
    names = part_names(file.file_name)
    if len(names) < 2:
        return [file]
    if file.sha256 is not None:
        raise UnknownModelName(f"{file.url} is one of {len(names)} parts, which one #sha256= cannot be of; expected the URL without it")
    parts = urlsplit(file.url)
    folder = parts.path.rpartition("/")[0]
    return [WebFile(parts._replace(path=f"{folder}/{quote(name)}").geturl()) for name in names]


def is_here(file: WebFile) -> bool:
    folder = folder_of(file)
    return all((folder / part.file_name).is_file() for part in parts_of(file))


def fetch_web_file(file: WebFile, progress: ProgressCallback | None = None) -> Path:
    """The file, or its first part, in the cache folder, fetched if it is not there. Raises UnknownModelName, ModelFetchError."""
    folder = folder_of(file)
    try:
        if not is_here(file):
            with locked(folder.with_name(f"{folder.name}.lock"), file.url):
                folder.mkdir(exist_ok=True)
                (folder / _URL).write_text(parts_of(file)[0].url)
                for part in parts_of(file):
                    if not (folder / part.file_name).is_file():
                        _fetch_part(part, folder, progress)
    except OSError as error:
        raise ModelFetchError(f"{file.url} cannot be stored in {folder}: {error.strerror or error}") from error
    return folder / file.file_name


def kept_web_files() -> list[WebFile]:
    """Of which something is in the cache folder."""
    found = []
    for note in sorted(web_folder().glob(f"*/{_URL}")):
        try:
            found.append(WebFile(note.read_text()))
        except (OSError, UnicodeDecodeError):
            continue
    return [file for file in found if folder_of(file).is_dir()]


def _fetch_part(part: WebFile, folder: Path, progress: ProgressCallback | None) -> None:
    target = folder / part.file_name
    size_bytes = size_of(part)
    if size_bytes is not None:
        partial = target.with_name(f"{target.name}.incomplete")
        there_bytes = partial.stat().st_size if partial.is_file() else 0
        require_space(part.file_name, size_bytes - there_bytes, folder, "let XDG_CACHE_HOME name a folder on another disk")

    def report(done_bytes: int) -> None:
        if progress is not None:
            progress(f"Downloading {part.file_name}", done_bytes, max(size_bytes or 0, done_bytes))

    download(RemoteFile(part.file_name, part.url, size_bytes, part.sha256), target, report)


def size_of(part: WebFile) -> int | None:
    """As the server has it, asked for with the first byte; None if it does not tell."""
    try:
        with HttpStream(part.url, {}, 0, 1) as stream:
            return stream.total_bytes
    except HttpProblem as problem:
        if problem.wait_s is not None:
            return None  # `download` tries again
        raise ModelFetchError(f"{part.url} cannot be fetched: {problem}") from problem
