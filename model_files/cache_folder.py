"""Where this user's fetched models and computed manifests are kept, and how processes keep out of each other's way there."""

import fcntl
import os
from pathlib import Path


def cache_folder() -> Path:
    """`dairllm` in the user's cache folder, by the XDG Base Directory Specification; it need not exist."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification demands that relative paths be ignored.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "dairllm"


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process alone, unless another has it. It is free again when the file is closed or its owner dies."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
