"""How a process of dairllm begins and ends: signals, exit codes, and what stands on the last line of stderr."""

import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from dairllm.mesh.allocator import keep_little
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.telemetry import fields, get_logger, say_last

EXIT_ERROR = 2
_PARENT_POLL_S = 0.5
_DESCRIPTORS_POLL_S = 5.0
_FEW_DESCRIPTORS = 8
_PR_SET_PDEATHSIG = 1

logger = get_logger(__name__)

Main = Callable[[asyncio.Event], Awaitable[None]]
"""The process's work. It ends soon after the event is set."""


def run_until_signal(main: Main, *, parent_pid: int | None = None, stop_timeout_s: float = 30.0) -> int:
    """Run `main(stop)` in a new event loop and return the exit code.

    SIGINT, SIGTERM or SIGHUP (unless nohup made it ignored) sets `stop`; a second one ends the process at once. A `main` that still
    runs `stop_timeout_s` after the first is cancelled. A DairllmError becomes one line on stderr and EXIT_ERROR.

    parent_pid: the process that started this one; when it ends, however it ends, this one gets SIGTERM.
    """
    keep_little()
    try:
        asyncio.run(_supervise(main, parent_pid, stop_timeout_s))
    except DairllmError as error:
        report_error(error)
        return EXIT_ERROR
    return 0


def report_error(error: DairllmError) -> None:
    report_line(str(error))


def report_line(words: str) -> None:
    """For people, on stderr, after the program's name."""
    say_last(on_one_line(f"{Path(sys.argv[0]).name}: {words}"))


async def _supervise(main: Main, parent_pid: int | None, stop_timeout_s: float) -> None:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    work = asyncio.ensure_future(main(stop))
    watchers = [asyncio.create_task(_cancel_when_late(work, stop, stop_timeout_s)), asyncio.create_task(_watch_descriptors())]
    if parent_pid is not None:
        if sys.platform == "linux":
            _end_with_parent(parent_pid)
        else:
            watchers.append(asyncio.create_task(_stop_without_parent(stop, parent_pid)))
    try:
        await work
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        for watcher in watchers:
            watcher.cancel()


def _stop_on_signals(stop: asyncio.Event) -> None:
    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logger.info("stopping", extra=fields(signal=number.name))
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)


async def _cancel_when_late(work: asyncio.Future[None], stop: asyncio.Event, stop_timeout_s: float) -> None:
    await stop.wait()
    await asyncio.sleep(stop_timeout_s)
    logger.warning("not stopped in time, ending now", extra=fields(stop_timeout_s=stop_timeout_s))
    work.cancel()


async def _watch_descriptors() -> None:
    """Whoever accepts connections when none is left can only wait; gRPC says nothing of it."""
    while True:
        await asyncio.sleep(_DESCRIPTORS_POLL_S)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            is_short = len(os.listdir("/dev/fd")) > limit - _FEW_DESCRIPTORS
        except OSError:  # counting takes one, too
            is_short = True
        if is_short:
            logger.warning("file descriptors run out: connections wait; `ulimit -n` before the start raises it", extra=fields(limit=limit))


def _end_with_parent(parent_pid: int) -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends: prctl(2), PR_SET_PDEATHSIG.

    The kernel sends it at the end of the parent's *thread* that forked, so the parent must start its children from the main thread.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


async def _stop_without_parent(stop: asyncio.Event, parent_pid: int) -> None:
    """For systems other than Linux."""
    while os.getppid() == parent_pid:
        await asyncio.sleep(_PARENT_POLL_S)
    stop.set()
