"""Opening what is named as a model: never anything but a regular file, so that nobody waits for a pipe or a device."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dairllm.model_files.errors import CorruptModelFile


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes; CorruptModelFile if it cannot be read, also for what goes wrong inside the block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise CorruptModelFile(f"{path} cannot be read: it is {kind}")
            yield file, status.st_size
    except OSError as error:
        raise CorruptModelFile(f"{path} cannot be read: {error.strerror or error}") from error


def read_start(path: Path, most_bytes: int) -> tuple[bytes, int]:
    """The first bytes of a file and its size."""
    with opened(path) as (file, size_bytes):
        return file.read(most_bytes), size_bytes


def read_whole(path: Path, most_bytes: int) -> bytes:
    """CorruptModelFile if it has more bytes."""
    with opened(path) as (file, size_bytes):
        if size_bytes > most_bytes:
            raise CorruptModelFile(f"{path} has {size_bytes} bytes; expected at most {most_bytes}")
        return file.read(most_bytes)


def names_in(folder: Path) -> list[str]:
    """Of what lies in a folder, sorted; CorruptModelFile if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise CorruptModelFile(f"{folder} cannot be read: {error.strerror or error}") from error
