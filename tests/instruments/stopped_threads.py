"""Stopping single threads of a process, as a debugger does: the rest of it goes on."""

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH, _GET_REGISTERS = 0x4206, 0x4207, 17, 0x4204
_WALL = 0x40000000
_GENERAL_REGISTERS = 1
_PROGRAM_COUNTERS = {"x86_64": 16, "aarch64": 32}
"""Which of a machine's general registers, as Linux lays them out, is the program counter."""
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


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _program_counter(tid: int) -> int:
    """Of a thread that this one has stopped."""
    registers = (ctypes.c_uint64 * 64)()
    vector = _Vector(ctypes.addressof(registers), ctypes.sizeof(registers))
    if _libc.ptrace(_GET_REGISTERS, tid, _GENERAL_REGISTERS, ctypes.addressof(vector)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(registers[_PROGRAM_COUNTERS[platform.machine()]])


def code_of(pid: int, library: str) -> list[range]:
    """Where the machine code of a library stands in the process. library: part of its file's name."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, *_, path = line.split(maxsplit=5)
        if "x" in permissions and library in Path(path).name:
            first, _, end = addresses.partition("-")
            found.append(range(int(first, 16), int(end, 16)))
    return found


def unavailable_reason() -> str | None:
    """Why threads can't be stopped here; None if they can."""
    if not hasattr(_libc, "ptrace") or not Path("/proc/self/task").is_dir():
        return "there is no ptrace"
    if platform.machine() not in _PROGRAM_COUNTERS:
        return f"where {platform.machine()} keeps its program counter is not known"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    may_only_trace_children = scope.exists() and scope.read_text().strip() in ("2", "3") and os.geteuid() != 0
    return "ptrace is not allowed" if may_only_trace_children else None


class StoppedThreads:
    """Only the thread that has begun to trace may end it, so that is one of its own."""

    def __init__(self, tids: Collection[int]) -> None:
        """program_counters: where they stand, one each, once they do."""
        self._tids = tids
        self.program_counters: list[int] = []
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
                self.program_counters.append(_program_counter(tid))
        except OSError as error:
            self._error = error
        self._stopped.set()
        if self._error is None:
            self._over.wait()
            for tid in self._tids:
                with contextlib.suppress(OSError):  # its process has ended
                    _ptrace(_DETACH, tid)


@contextlib.contextmanager
def stopped(tids: Collection[int]) -> Iterator[StoppedThreads]:
    """Within the block these threads stand still."""
    threads = StoppedThreads(tids)
    threads.stop()
    try:
        yield threads
    finally:
        threads.resume()
