"""A file that tells whoever started a process that it is ready, and where it listens."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from dairllm.mesh.errors import InvalidSetting


def write_ready_file(path: Path, facts: Mapping[str, object]) -> None:
    """Write the facts as one JSON object. It appears whole or not at all. Raises InvalidSetting if it can't be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(dict(facts)) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidSetting(f"ready file {path} can't be written: {error.strerror}") from error


def remove_ready_file(path: Path) -> None:
    """By the process that wrote it, when it ends."""
    path.unlink(missing_ok=True)
