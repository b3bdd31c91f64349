"""Where this user's fetched models and computed manifests are kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`dairllm` in the user's cache folder, by the XDG Base Directory Specification; it need not exist."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The specification demands that relative paths be ignored.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "dairllm"
