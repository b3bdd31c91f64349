"""Where this user's fetched models and computed manifests are kept, and how processes keep out of each other's way there."""

import fcntl
import os
from pathlib import Path

from dairllm.model_files.errors import NoCacheFolder


def cache_folder() -> Path:
    """`dairllm` in the user's cache folder, by the XDG Base Directory Specification; it need not exist.

    Raises NoCacheFolder for a user without a home.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification demands that relative paths be ignored.
    return (Path(configured) if os.path.isabs(configured) else _home() / ".cache") / "dairllm"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise NoCacheFolder("this user has no home folder to keep files in; expected XDG_CACHE_HOME or HOME to name one") from error


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process alone, unless another has it. It is free again when the file is closed or its owner dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
