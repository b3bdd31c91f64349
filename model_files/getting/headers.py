"""The beginnings of files that are somewhere else, so that it is known what is in them before gigabytes are fetched."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.http_stream import HttpProblem, HttpStream
from dairllm.model_files.getting.transfer import CHUNK_BYTES, RemoteFile

_FIRST_BYTES, _OTHERS_BYTES = 8 << 20, 1 << 20
"""Of the first file with weights, which holds the vocabulary of a model in GGUF, and of each other one."""
_DESCRIPTION_BYTES = 64 << 20
"""Of what says something about the model, such as tokenizer.json: all of it."""
_GROW_BY = 4
_MOST_BYTES = 512 << 20


class RemoteHeaders:
    """A folder with these files, in their sizes, of which only the beginnings are there: the rest are holes, which read as zeros. A context
    manager; with its end the folder is gone."""

    def __init__(self, files: Sequence[RemoteFile]) -> None:
        self._files = files
        self._bytes_here = [0] * len(files)
        self._wanted_bytes = [_wanted_bytes(file.name, index) for index, file in enumerate(files)]
        self._folder = tempfile.TemporaryDirectory(prefix="dairllm-headers-")
        self.folder = Path(self._folder.name)

    def fetch_more(self) -> bool:
        """The beginnings, and with every further call more of them; False if nothing came that could be a header. Raises
        ModelFetchError."""
        if min(self._wanted_bytes) > _MOST_BYTES:
            return False
        before = list(self._bytes_here)
        for index, file in enumerate(self._files):
            end = min(self._wanted_bytes[index], _MOST_BYTES if file.size_bytes is None else file.size_bytes)
            if self._bytes_here[index] < end:
                self._fetch(index, file, end)
        self._wanted_bytes = [wanted * _GROW_BY for wanted in self._wanted_bytes]
        return before != self._bytes_here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def _fetch(self, index: int, file: RemoteFile, end: int) -> None:
        path, start = self.folder / file.name, self._bytes_here[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with HttpStream(file.url, file.headers, start, end) as stream, open(path, "r+b" if start else "wb") as output:
                output.seek(stream.start)
                while output.tell() < end and (data := stream.read(CHUNK_BYTES)):
                    output.write(data)
                self._bytes_here[index] = output.tell()
                output.truncate(max(file.size_bytes or stream.total_bytes or 0, output.tell()))
        except HttpProblem as problem:
            raise ModelFetchError(f"the beginning of {file.name} cannot be fetched: {problem}") from problem
        except OSError as error:
            raise ModelFetchError(f"the beginning of {file.name} cannot be stored in {path.parent}: {error.strerror or error}") from error


def _wanted_bytes(name: str, index: int) -> int:
    if not name.endswith((".gguf", ".safetensors")):
        return _DESCRIPTION_BYTES
    return _OTHERS_BYTES if index else _FIRST_BYTES
