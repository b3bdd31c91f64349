"""How much memory processes take while a run goes on."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

INTERVAL_S = 0.5


@dataclass(slots=True)
class Resident:
    """Resident memory of the processes of one name, one after the other. samples: (seconds since the watch began, bytes)."""

    samples: list[tuple[float, int]] = field(default_factory=list)

    @property
    def most_bytes(self) -> int:
        return max((size for _, size in self.samples), default=0)

    def most_between(self, first_s: float, end_s: float) -> int:
        return max((size for at_s, size in self.samples if first_s <= at_s < end_s), default=0)


class MemoryWatch:
    """Within the block it looks at the processes twice a second. pids: by name, those that run now."""

    def __init__(self, pids: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._pids = pids
        self._began_s = time.monotonic()
        self._seen: dict[str, Resident] = {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()

    @property
    def seen(self) -> Mapping[str, Resident]:
        return self._seen

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S):
            for name, pid in self._pids():
                try:
                    size = psutil.Process(pid).memory_info().rss
                except psutil.NoSuchProcess:
                    continue
                self._seen.setdefault(name, Resident()).samples.append((time.monotonic() - self._began_s, size))
