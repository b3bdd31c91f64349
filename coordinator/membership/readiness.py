"""Whether requests can be served, now or soon enough: the machine's word, as the error that requests fail with."""

import asyncio

from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.mesh.errors import DairllmError, NotEnoughMemory, NotReady

RETRY_AFTER_S = 2.0


class Readiness:
    def __init__(self, machine: ClusterMachine) -> None:
        self._machine = machine

    def why_unready(self) -> DairllmError | None:
        """None while a plan serves, or is about to again before answers that run now would fail."""
        reason = self._machine.why_no_answers(asyncio.get_running_loop().time())
        if not reason:
            return None
        kind = NotEnoughMemory if self._machine.missing_bytes else NotReady
        return kind(f"the model is not served: {reason}", retry_after_s=RETRY_AFTER_S)
