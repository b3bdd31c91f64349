"""Coordinators that may be tried, and in which order."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from dairllm.mesh.discovery.records import DiscoveredCoordinator

MAX_CANDIDATES = 32
"""Anybody can announce coordinators; the oldest is forgotten."""
_RETRY_S = 2.0


@dataclass(slots=True)
class _Candidate:
    coordinator: DiscoveredCoordinator
    order: int
    until_s: float
    tried_at_s: float | None = None


class Candidates:
    def __init__(self) -> None:
        self._candidates: dict[str, _Candidate] = {}
        self._num_taken = 0
        self._changed = asyncio.Event()

    def take(self, key: str, coordinator: DiscoveredCoordinator, until_s: float = math.inf) -> None:
        """Under this key there is this coordinator, until the event loop's clock shows `until_s`."""
        known = self._candidates.get(key)
        if known is not None and known.coordinator == coordinator:
            known.until_s = until_s
            return
        self._candidates.pop(key, None)
        if len(self._candidates) >= MAX_CANDIDATES:
            del self._candidates[next(iter(self._candidates))]
        self._num_taken += 1
        self._candidates[key] = _Candidate(coordinator, self._num_taken, until_s)
        self._changed.set()

    def drop(self, key: str) -> None:
        self._candidates.pop(key, None)

    async def found(self) -> AsyncIterator[DiscoveredCoordinator]:
        """Coordinators to try, one after the other; without end: the caller leaves when one has worked, or when its time is over.

        The newest first: an older one is likely the record of a process that was killed. One that was tried comes again after two
        seconds, or at once if it announces new addresses, after those that were not tried.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            candidate = self._next(loop.time())
            if candidate is not None:
                candidate.tried_at_s = loop.time()
                yield candidate.coordinator
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S / 4 if self._candidates else None):
                    await self._changed.wait()

    def _next(self, now_s: float) -> _Candidate | None:
        self._candidates = {key: candidate for key, candidate in self._candidates.items() if now_s < candidate.until_s}
        ready = [c for c in self._candidates.values() if c.tried_at_s is None or now_s - c.tried_at_s >= _RETRY_S]
        return max(ready, key=lambda c: (c.tried_at_s is None, c.order), default=None)
