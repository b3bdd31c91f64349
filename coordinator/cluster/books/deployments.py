"""A plan with the shards that it is for: made, and being prepared."""

from dataclasses import dataclass, field

from dairllm.coordinator.cluster.identities import Epoch, Holder
from dairllm.coordinator.planner import Plan


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan with the shards as they were when it was made. holders: of its stages, in ring order."""

    epoch: Epoch
    plan: Plan
    holders: tuple[Holder, ...]

    @property
    def owners(self) -> dict[int, Holder]:
        """Holder by layer unit."""
        last = self.plan.stages[-1].units.stop - 1
        pairs = zip(self.plan.stages, self.holders, strict=True)
        return {unit: holder for stage, holder in pairs for unit in stage.units if 0 < unit < last}

    def holder_of(self, name: str) -> Holder:
        return next(holder for holder in self.holders if holder.name == name)


@dataclass(slots=True)
class Candidate:
    """A plan that is being prepared.

    exclusive: shards that must free units before they can load theirs. assigned: shards that were told, and whether to free first.
    retry_at_s: when an assignment is sent again. doubted_s: when it was last asked whether the others could do without a shard.
    """

    deployment: Deployment
    from_s: float
    exclusive: set[str]
    assigned: dict[str, bool] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    retry_at_s: dict[str, float] = field(default_factory=dict)
    doubted_s: dict[str, float] = field(default_factory=dict)

    @property
    def epoch(self) -> Epoch:
        return self.deployment.epoch

    @property
    def plan(self) -> Plan:
        return self.deployment.plan

    @property
    def is_waiting(self) -> bool:
        """Whether some shard that was told has not loaded its part yet."""
        return any(name not in self.ready for name in self.assigned)

    @property
    def unassigned(self) -> list[str]:
        return [name for name in self.plan.placement if name not in self.assigned]

    def is_loading(self, name: str) -> bool:
        return name in self.assigned and name not in self.ready and name not in self.retry_at_s

    def tell(self, name: str) -> None:
        self.assigned[name] = name in self.exclusive
        self.retry_at_s.pop(name, None)

    def free_first(self, name: str) -> None:
        """It was told to load beside what it has, and can't: it has to be told anew."""
        self.exclusive.add(name)
        self.ready.discard(name)
        self.retry_at_s.pop(name, None)
        del self.assigned[name]

    def note_ready(self, name: str) -> None:
        self.ready.add(name)
        self.retry_at_s.pop(name, None)

    def note_failed(self, name: str) -> None:
        self.ready.discard(name)

    def doubt(self, name: str, now_s: float) -> None:
        self.doubted_s[name] = now_s

    def retry(self, name: str, at_s: float) -> None:
        self.retry_at_s[name] = at_s
