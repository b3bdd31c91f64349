"""Lines to a pipe, file or terminal, written by a thread of its own: whoever writes never waits for whoever reads."""

import os
import queue
import select
import threading
import time
from collections.abc import Callable

MAX_WAITING_CHARS = 4 << 20
MAX_LINE_BYTES = 64 * 1024
_POLL_S = 0.01


class LineWriter:
    """descriptor: stays open. What can't be written, because nobody reads it or no space is left, is dropped. When something can be written
    again, the line `describe_drop` gives of the number comes first."""

    def __init__(self, descriptor: int, describe_drop: Callable[[int], str], max_waiting_chars: int = MAX_WAITING_CHARS) -> None:
        self._descriptor = descriptor
        self._describe_drop = describe_drop
        self._max_waiting_chars = max_waiting_chars
        # A simple queue may be used while the same thread is in it: objects that are collected write lines, too.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._chars_taken = self._chars_done = self._num_dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """From one thread at a time."""
        if self._chars_taken - self._chars_done + len(line) > self._max_waiting_chars:
            self._num_dropped += 1
            return
        self._chars_taken += len(line)
        self._lines.put(line)
        if self._thread is None or not self._thread.is_alive():  # the first line, or the first one after a fork
            self._thread = threading.Thread(target=self._run, name="line-writer", daemon=True)
            self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Whether all lines so far are written, or dropped, within this time."""
        deadline_s = time.monotonic() + timeout_s
        while self._chars_done < self._chars_taken and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return self._chars_done >= self._chars_taken

    def close(self) -> None:
        """Nothing is written after it; the thread ends as soon as it can."""
        self._lines.put(None)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped = self._num_dropped
            if dropped and self._write(self._describe_drop(dropped)):
                self._num_dropped -= dropped
            if not self._write(line):
                self._num_dropped += 1
            self._chars_done += len(line)

    def _write(self, line: str) -> bool:
        data = line.encode(errors="backslashreplace")[:MAX_LINE_BYTES] + b"\n"
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process that has this terminal made it so
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
