"""Reporting how far a long read or download is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

ProgressCallback = Callable[[str, int, int], None]
"""Called as (what is being done, bytes done, bytes in total), from the thread that does it."""


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
