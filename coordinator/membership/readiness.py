"""Whether requests can be served, now or soon enough."""

import asyncio

from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.phases import Phase
from dairllm.mesh.errors import DairllmError, NotEnoughMemory, NotReady

RETRY_AFTER_S = 2.0


class Readiness:
    """Is told by `ring_life` when a ring opens and closes. recovery_limit_s: how long answers wait for the next one."""

    def __init__(self, machine: ClusterMachine, recovery_limit_s: float) -> None:
        self._machine = machine
        self._recovery_limit_s = recovery_limit_s
        self._is_open = False
        self._closed_at_s: float | None = None

    @property
    def is_ring_open(self) -> bool:
        return self._is_open

    def ring_opened(self) -> None:
        self._is_open = True

    def ring_closed(self) -> None:
        self._is_open = False
        self._closed_at_s = asyncio.get_running_loop().time()

    def why_unready(self) -> DairllmError | None:
        """None while a plan serves, or is about to again before answers that run now would fail."""
        machine = self._machine
        if self._is_soon_over() and machine.phase is not Phase.WAITING:
            return None
        kind = NotEnoughMemory if machine.missing_bytes else NotReady
        return kind(f"the model is not served yet: {machine.reason or 'the ring of shards is being opened'}", retry_after_s=RETRY_AFTER_S)

    def _is_soon_over(self) -> bool:
        if self._is_open:
            return True
        return self._closed_at_s is not None and asyncio.get_running_loop().time() - self._closed_at_s < self._recovery_limit_s
