"""How long a decoding step takes, as people see it: moving averages of what was measured under one plan."""

from dairllm.coordinator.cluster.identities import NO_EPOCH, Epoch

MEASURED_WEIGHT = 0.1
"""Weight of the newest step."""


class StepTimes:
    def __init__(self) -> None:
        self._epoch = NO_EPOCH
        self._steps_s: dict[str | None, float] = {}

    def measure(self, epoch: Epoch, shard: str | None, step_s: float) -> None:
        """shard: None for the whole ring. What was measured under another plan is forgotten."""
        if epoch != self._epoch:
            self._epoch, self._steps_s = epoch, {}
        before_s = self._steps_s.get(shard, step_s)
        self._steps_s[shard] = before_s + MEASURED_WEIGHT * (step_s - before_s)

    def of(self, epoch: Epoch, shard: str | None) -> float:
        """0 if nothing was measured."""
        return self._steps_s.get(shard, 0.0) if epoch == self._epoch else 0.0
