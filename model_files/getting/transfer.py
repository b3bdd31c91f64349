"""A file from a URL to the disk: goes on where it stopped, in this process or a later one, and is kept only when it is what was asked
for."""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dairllm.model_files.cache_folder import try_lock
from dairllm.model_files.containers.recognition import START_BYTES, Start, kind_of
from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.getting.http_stream import HttpProblem, HttpStream

CHUNK_BYTES = 1 << 20
LOCK_DEADLINE_S = 1800.0
POLL_INTERVAL_S = 0.2
_TRIES, _TRIES_AT_FIRST = 6, 3
"""In a row, without a byte; fewer where none has come at all."""
_FIRST_PAUSE_S = 0.25
_PAUSE_GROWS_BY = 3

Report = Callable[[int], None]
"""Called with the bytes of the file that are here."""


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """name: for messages. size_bytes, sha256, git_sha1: as in HubFile; the digests are those of the file, if any is known."""

    name: str
    url: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str | None:
        return self.sha256 or (self.git_sha1 if self.size_bytes is not None else None)

    def new_hash(self) -> Hash:
        if self.sha256 is not None or self.digest is None:
            return hashlib.sha256()
        # A blob as git names it (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
        return hashlib.sha1(b"blob %d\0" % (self.size_bytes or 0), usedforsecurity=False)


def download(file: RemoteFile, target: Path, report: Report) -> None:
    """Make `target` the file. What is there of it already, as TARGET.incomplete, is not fetched again.

    Raises ModelFetchError; UnknownModelName for something that no model can be opened from.
    """
    failures, tries = 0, _TRIES_AT_FIRST
    with _Partial.of(file, target) as partial:
        report(partial.size_bytes)
        while not partial.is_complete:
            before_bytes = partial.size_bytes
            try:
                _take_all(file, partial, report)
            except HttpProblem as problem:
                failures, tries = (0, _TRIES) if partial.size_bytes > before_bytes else (failures + 1, tries)
                if problem.wait_s is None or failures == tries:
                    raise ModelFetchError(f"{file.name} cannot be fetched: {problem}{partial.hint}") from problem
                _pause(max(problem.wait_s, _FIRST_PAUSE_S * _PAUSE_GROWS_BY**failures), lambda: report(partial.size_bytes))
        partial.finish()


def _pause(seconds: float, report: Callable[[], None]) -> None:
    """Tells all the while how far it is, so that whoever wants to stop it can."""
    ends_at = time.monotonic() + seconds
    while (left_s := ends_at - time.monotonic()) > 0:
        time.sleep(min(left_s, POLL_INTERVAL_S))
        report()


def _take_all(file: RemoteFile, partial: "_Partial", report: Report) -> None:
    with HttpStream(file.url, file.headers, partial.size_bytes, validator=partial.validator) as stream:
        if stream.start != partial.size_bytes:
            partial.start_anew()
        if partial.size_bytes == 0:
            partial.validator = stream.validator
        partial.expect(stream.total_bytes)
        while data := stream.read(CHUNK_BYTES):
            partial.append(data)
            report(partial.size_bytes)
    partial.end_of_stream()


class _Partial:
    """What is there of a file, of which only one process may have it (`locked`)."""

    def __init__(self, file: RemoteFile, target: Path) -> None:
        self._file = file
        self._target = target
        self.path = target.with_name(f"{target.name}.incomplete")
        self._validator_path = target.with_name(f"{target.name}.validator")
        self._output = open(self.path, "a+b")  # noqa: SIM115 - closed in `of`
        self._hash = file.new_hash()
        self._ended = False
        self._total_bytes = file.size_bytes
        self.size_bytes = 0
        self._take_over()

    @classmethod
    @contextmanager
    def of(cls, file: RemoteFile, target: Path) -> Iterator["_Partial"]:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = cls(file, target)
        except OSError as error:
            raise cls._unwritable(file, target, error) from error
        with partial._output:
            yield partial

    @property
    def is_complete(self) -> bool:
        return self._ended or (self._total_bytes is not None and self.size_bytes == self._total_bytes)

    @property
    def hint(self) -> str:
        """For who is told that it cannot be fetched now."""
        return f"; what is here of it is kept, and the next try goes on at {self.size_bytes / 1e6:.0f} MB" if self.size_bytes >= 1e6 else ""

    @property
    def validator(self) -> str:
        """Of the file that the bytes are from; '' where its digest says so better."""
        if self._file.digest is not None:
            return ""
        try:
            return self._validator_path.read_text().strip()[:200]
        except (OSError, UnicodeDecodeError):
            return ""

    @validator.setter
    def validator(self, value: str) -> None:
        if self._file.digest is None and value.isascii() and value.isprintable():
            self._written(lambda: self._validator_path.write_text(value))

    def expect(self, total_bytes: int | None) -> None:
        """total_bytes: as the server has it."""
        if total_bytes is None:
            return
        if self._file.size_bytes is not None and total_bytes != self._file.size_bytes:
            raise ModelFetchError(f"{self._file.name} has {total_bytes} bytes where it is fetched from; expected {self._file.size_bytes}")
        self._total_bytes = total_bytes

    def append(self, data: bytes) -> None:
        if self._total_bytes is not None and self.size_bytes + len(data) > self._total_bytes:
            raise ModelFetchError(f"more than the {self._total_bytes} bytes of {self._file.name} come; expected no more")
        self._written(lambda: self._output.write(data))
        self._hash.update(data)
        before_bytes, self.size_bytes = self.size_bytes, self.size_bytes + len(data)
        if before_bytes < START_BYTES <= self.size_bytes:
            self._require_model()

    def end_of_stream(self) -> None:
        if self._total_bytes is None:
            self._ended = True

    def start_anew(self) -> None:
        self._written(lambda: self._output.truncate(0))
        self.size_bytes = 0
        self._hash = self._file.new_hash()

    def finish(self) -> None:
        """Raises UnknownModelName, ModelFetchError, and forgets what was fetched, unless it is what was asked for."""
        self._require_model()
        found = self._hash.hexdigest()
        if self._file.digest is not None and found != self._file.digest:
            self._written(self._forget)
            raise ModelFetchError(f"{self._file.name} was fetched with the digest {found}; expected {self._file.digest}; try again")
        self._written(self._put_in_place)

    def _take_over(self) -> None:
        """What an earlier try left, unless it cannot be the beginning of this file."""
        there_bytes = os.fstat(self._output.fileno()).st_size
        if (self._total_bytes is not None and there_bytes > self._total_bytes) or (self._file.digest is None and not self.validator):
            self.start_anew()
            return
        self._output.seek(0)
        while data := self._output.read(CHUNK_BYTES):
            self._hash.update(data)
            self.size_bytes += len(data)

    def _require_model(self) -> None:
        """Of a file that nobody knows the digest of: raises UnknownModelName, and forgets it, if it begins as nothing that can be
        opened."""
        if self._file.digest is not None:
            return
        self._written(lambda: self._output.seek(0))
        try:
            kind_of(Start(Path(self._file.name), self._output.read(START_BYTES), self._total_bytes or self.size_bytes))
        except UnknownModelName:
            self._written(self._forget)
            raise

    def _put_in_place(self) -> None:
        self._output.flush()
        os.fsync(self._output.fileno())
        os.replace(self.path, self._target)
        self._validator_path.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.path.unlink()
        self._validator_path.unlink(missing_ok=True)

    def _written(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            raise self._unwritable(self._file, self._target, error) from error

    @staticmethod
    def _unwritable(file: RemoteFile, target: Path, error: OSError) -> ModelFetchError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ModelFetchError(f"{file.name} does not fit the disk of {target.parent}; free some room, and the next try goes on")
        return ModelFetchError(f"{file.name} cannot be stored in {target.parent}: {error.strerror or error}")


@contextmanager
def locked(lock: Path, what: str, fetched_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Hold this lock. The system gives it back when its owner dies, so that it never goes stale. fetched_bytes: how far its owner is, who
    may take any time as long as that grows. Raises ModelFetchError, after a long time without."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        known_bytes, ends_at = fetched_bytes(), time.monotonic() + LOCK_DEADLINE_S
        while not try_lock(file.fileno()):
            if (now_bytes := fetched_bytes()) != known_bytes:
                known_bytes, ends_at = now_bytes, time.monotonic() + LOCK_DEADLINE_S
            if time.monotonic() > ends_at:
                raise ModelFetchError(f"another process has been fetching {what} for over {LOCK_DEADLINE_S:g} s; stop it and try again")
            time.sleep(POLL_INTERVAL_S)
        yield
