"""Which files were found to have their digest, so that they are read for it once and not at every start."""

import hashlib
import json
import os
import time
from pathlib import Path

from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.file_identity import FileIdentity, identity_of, is_certain

_CHUNK_BYTES = 4 << 20
_MAX_RECORD_BYTES = 4096


def has_digest(path: Path, size_bytes: int, sha256: str) -> bool:
    """Whether it is the file of this size and SHA-256: by a note of the last time it was read, if it has certainly not changed since."""
    try:
        before, began_ns = identity_of(path.stat()), time.time_ns()
        if before.size_bytes != size_bytes:
            return False
        record = _record_path(path, sha256)
        if _noted(record) == before:
            return True
        with open(path, "rb") as file:
            is_right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
    if is_right and is_certain(before, began_ns):
        _note(record, before)
    return is_right


def _record_path(path: Path, sha256: str) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(path)) + b"\0" + sha256.encode()).hexdigest()
    return cache_folder() / "verified" / f"{key}.json"


def _noted(record: Path) -> FileIdentity | None:
    try:
        with open(record, "rb") as file:
            fields = json.loads(file.read(_MAX_RECORD_BYTES))
        return FileIdentity(*fields) if all(type(number) is int for number in fields) else None
    except (OSError, ValueError, TypeError):
        return None


def _note(record: Path, identity: FileIdentity) -> None:
    """A note that cannot be written costs time, never correctness."""
    partial = record.with_name(f"{record.name}.{os.getpid()}")
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(identity))
        os.replace(partial, record)
    except OSError:
        return
