"""Reporting how far a long read or download is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

ProgressCallback = Callable[[str, int, int], None]
"""Called as (what is being done, bytes done, bytes in total), from the thread that does it."""


class Stopped(Exception):
    """Nobody wants the result any more."""


LINES_EVERY_S = 3.0
_GIB = 2**30


def progress_lines(say: Callable[[str], None], now_s: Callable[[], float] = time.monotonic) -> ProgressCallback:
    """A callback that says how far it is every few seconds, for logs."""
    told_s: float | None = None

    def report(description: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal told_s
        if told_s is None:
            told_s = now_s()
        if now_s() - told_s >= LINES_EVERY_S:
            told_s = now_s()
            say(f"{description}: {done_bytes / _GIB:.2f} of {total_bytes / _GIB:.2f} GiB, {done_bytes / max(total_bytes, 1):.0%}")

    return report


def until(is_stopped: Callable[[], bool], progress: ProgressCallback) -> ProgressCallback:
    """The same, but it raises Stopped as soon as it should be."""

    def report(description: str, done_bytes: int, total_bytes: int) -> None:
        if is_stopped():
            raise Stopped
        progress(description, done_bytes, total_bytes)

    return report


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[ProgressCallback]:
    """A callback that draws one bar per task on standard error (or `console`) while the context lasts."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console or Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def report(description: str, done_bytes: int, total_bytes: int) -> None:
            if description not in tasks:
                shown = "".join(c if c.isprintable() else "?" for c in description)
                tasks[description] = bars.add_task(shown, total=total_bytes)
            bars.update(tasks[description], completed=done_bytes, total=total_bytes)

        yield report
