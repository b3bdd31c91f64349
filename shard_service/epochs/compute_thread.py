"""The one thread that computes, and what can be told about it from outside: whether it gets any further."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ComputeThread(ThreadPoolExecutor):
    """given, done: pieces of work since the start. Given by one thread only."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="compute", initializer=self._begin)
        self.given = 0
        self._open: set[Future[Any]] = set()
        self._clock: int | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = super().submit(fn, *args, **kwargs)
        self.given += 1
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    @property
    def done(self) -> int:
        return self.given - len(self._open)

    @property
    def cpu_us(self) -> int:
        """Its processor time; where the system does not tell that, simply the time, so that it never seems to stand still."""
        if self._clock is None:
            return round(time.monotonic() * 1e6)
        try:
            return round(time.clock_gettime(self._clock) * 1e6)
        except OSError:  # the thread has ended
            return 0

    def _begin(self) -> None:
        name_thread("compute")
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())


def name_thread(name: str) -> None:
    """As `top -H` shows it, where the system has such names."""
    if sys.platform == "linux":
        try:
            Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        except OSError:
            return
