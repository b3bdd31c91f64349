"""Stopping single threads of a process, as a debugger does: the rest of it goes on."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def threads_named(pid: int, name: str) -> list[int]:
    """As the process itself has named them."""
    tasks = sorted(Path(f"/proc/{pid}/task").iterdir())
    return [int(task.name) for task in tasks if (task / "comm").read_text().strip() == name]


def _ptrace(request: int, tid: int) -> None:
    if _libc.ptrace(request, tid, None, None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unavailable_reason() -> str | None:
    """Why threads can't be stopped here; None if they can."""
    if not hasattr(_libc, "ptrace") or not Path("/proc/self/task").is_dir():
        return "there is no ptrace"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    may_only_trace_children = scope.exists() and scope.read_text().strip() in ("2", "3") and os.geteuid() != 0
    return "ptrace is not allowed" if may_only_trace_children else None


class StoppedThreads:
    """Only the thread that has begun to trace may end it, so that is one of its own."""

    def __init__(self, tids: Collection[int]) -> None:
        self._tids = tids
        self._stopped = threading.Event()
        self._over = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._hold, name="tracer")

    def stop(self) -> None:
        """They stand still when it returns. Raises OSError."""
        self._thread.start()
        self._stopped.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def resume(self) -> None:
        self._over.set()
        self._thread.join()

    def _hold(self) -> None:
        try:
            for tid in self._tids:
                _ptrace(_SEIZE, tid)
                _ptrace(_INTERRUPT, tid)
                os.waitpid(tid, _WALL)
        except OSError as error:
            self._error = error
        self._stopped.set()
        if self._error is None:
            self._over.wait()
            for tid in self._tids:
                with contextlib.suppress(OSError):  # its process has ended
                    _ptrace(_DETACH, tid)


@contextlib.contextmanager
def stopped(tids: Collection[int]) -> Iterator[None]:
    """Within the block these threads stand still."""
    threads = StoppedThreads(tids)
    threads.stop()
    try:
        yield
    finally:
        threads.resume()
