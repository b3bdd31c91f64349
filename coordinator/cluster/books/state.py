"""Which phase the cluster is in, and with which plans."""

from dataclasses import dataclass, field, replace

from dairllm.coordinator.cluster.books.deployments import Candidate, Deployment
from dairllm.coordinator.cluster.identities import NO_EPOCH, Epoch, Holder
from dairllm.coordinator.cluster.phases import RING_OPEN, STAGES_IN_USE, SUCCESSORS, Phase
from dairllm.coordinator.planner import ModelDemand, Plan


@dataclass(slots=True)
class ClusterState:
    """reason: why it is not serving, '' while it is. missing_bytes: memory that is missing for any plan.
    trouble: what has failed last on the way to the next ring, '' if nothing has.

    active: the plan whose stages are in use, or were last. before: the plan whose ring opened last.
    unactivated: shards that have yet to switch.
    """

    model: ModelDemand | None = None
    phase: Phase = Phase.WAITING
    reason: str = "no model is registered yet"
    missing_bytes: int = 0
    trouble: str = ""
    phase_from_s: float = 0.0
    newest_epoch: Epoch = NO_EPOCH
    active: Deployment | None = None
    before: Deployment | None = None
    candidate: Candidate | None = None
    unactivated: set[str] = field(default_factory=set)

    # -- what it says

    @property
    def deployment(self) -> Deployment | None:
        """What people should look at: what is active, or else what is loaded."""
        if self.phase is Phase.WAITING:
            return None
        return self.candidate.deployment if self.candidate and self.phase is Phase.LOADING else self.active

    @property
    def epoch(self) -> Epoch:
        return self.active.epoch if self.active and self.phase in STAGES_IN_USE else self.newest_epoch

    @property
    def plan(self) -> Plan | None:
        return self.deployment.plan if self.deployment else None

    @property
    def has_served(self) -> bool:
        """This model: so many shards as it was to wait for need not be there any more."""
        return self.before is not None

    @property
    def explanation(self) -> str:
        """The reason, and what has failed."""
        is_told = not self.trouble or self.trouble in self.reason or self.phase is Phase.WAITING
        return self.reason if is_told else f"{self.reason}; {self.trouble}"

    def cares_for(self, name: str) -> bool:
        """Whether the shard has a part in what is active or prepared."""
        in_candidate = self.candidate is not None and name in self.candidate.plan.placement
        return in_candidate or (self.active is not None and self.phase is not Phase.WAITING and name in self.active.plan.placement)

    def is_in_use(self, name: str) -> bool:
        """Whether the shard has a part in what is active, and its stage is not stopped."""
        return self.active is not None and self.phase in STAGES_IN_USE and name in self.active.plan.placement

    # -- what changes it

    def enter(self, phase: Phase, reason: str, now_s: float, missing_bytes: int = 0) -> None:
        assert phase in SUCCESSORS[self.phase] or phase is self.phase, (self.phase, phase)
        self.phase, self.reason, self.missing_bytes, self.phase_from_s = phase, reason, missing_bytes, now_s
        if phase is not Phase.ACTIVATING:
            self.unactivated.clear()

    def serve_model(self, model: ModelDemand) -> None:
        """No plan of another model counts any more."""
        self.model, self.active, self.before, self.trouble = model, None, None, ""

    def propose(self, plan: Plan, holders: tuple[Holder, ...], exclusive: set[str], now_s: float) -> None:
        """A candidate of a new epoch, larger than all of this coordinator."""
        self.newest_epoch = Epoch(self.newest_epoch + 1)
        self.candidate = Candidate(Deployment(self.newest_epoch, plan, holders), now_s, exclusive)

    def drop_candidate(self) -> None:
        """Leaves the phase to the caller."""
        self.candidate = None

    def activate_candidate(self, now_s: float) -> None:
        """Its shards have yet to switch."""
        assert self.candidate is not None
        self.active = self.candidate.deployment
        self.candidate = None
        self.enter(Phase.ACTIVATING, f"the shards switch to plan {self.active.epoch}", now_s)
        self.unactivated = set(self.active.plan.placement)

    def note_activated(self, name: str) -> None:
        self.unactivated.discard(name)

    def renew(self, plan: Plan) -> None:
        """The active one with today's numbers."""
        assert self.active is not None
        assert plan.same_work_as(self.active.plan)
        self.active = replace(self.active, plan=plan)

    def note_opened(self) -> None:
        """The ring of the active plan is open."""
        self.before, self.trouble = self.active, ""

    def forget_trouble(self, trouble: str) -> None:
        """It is over."""
        if self.trouble == trouble:
            self.trouble = ""

    def note_trouble(self, trouble: str) -> None:
        """What ends a ring that is open is no trouble yet: the next may open at once."""
        if self.phase not in RING_OPEN:
            self.trouble = trouble
