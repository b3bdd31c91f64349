"""Members come and go: what that means for the plan. Who is a member is the roster's business."""

from collections.abc import Mapping

from dairllm.coordinator.cluster.actions import EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Deployment
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.books.members import JoinOutcome
from dairllm.coordinator.cluster.events import JoinRequested, LeaseBroken, ShardLeft
from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.cluster.parts.failures import Failures
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.planning import Planning
from dairllm.coordinator.cluster.parts.preparation import Preparation
from dairllm.coordinator.cluster.parts.switch import Switch
from dairllm.coordinator.cluster.phases import Phase


class JoinsAndLosses(MachinePart):
    def __init__(
        self, books: Books, idle: IdleShards, switch: Switch, preparation: Preparation, planning: Planning, failures: Failures
    ) -> None:
        super().__init__(books)
        self._idle = idle
        self._switch = switch
        self._preparation = preparation
        self._planning = planning
        self._failures = failures

    # -- joins

    def on_join(self, event: JoinRequested) -> None:
        hello = event.hello
        before = self._members.get(hello.name)
        capabilities = before.hello.capabilities if before else None
        outcome = self._members.join(event.lease, hello)
        if outcome is JoinOutcome.REFUSED:
            return
        self._losses.forget({hello.name})
        member = self._members[hello.name]
        if self._state.model and hello.held.model_digest == self._state.model.digest:
            member.held = member.held | hello.held.units
        if outcome is JoinOutcome.RECONNECTED:
            self._repeat_orders(member)
            if capabilities is not None and hello.capabilities.differs_in_speed_alone(capabilities):
                self._better.expect()
            elif capabilities != hello.capabilities:
                self._planning.schedule(self._now_s)
        elif outcome is JoinOutcome.RESTARTED and before is not None and self._state.cares_for(hello.name):
            self._go_on_without({hello.name: before.holder}, "has restarted")
        elif self._makes_whole_again(member):
            self._planning.schedule(self._now_s, urgent=True)
        else:
            self._planning.settle()

    def _repeat_orders(self, member: Member) -> None:
        self._preparation.repeat_order(member)
        self._switch.repeat_order(member)
        self._idle.let_go(member)

    def _makes_whole_again(self, member: Member) -> bool:
        """Whether a plan is loaded because of a loss that has turned out to be none: with it, all shards of the last one are back as they
        were."""
        active = self._state.active
        if self._state.phase is not Phase.LOADING or active is None or member.holder not in active.holders:
            return False
        return all(self._has(active, holder) for holder in active.holders)

    def _has(self, deployment: Deployment, holder: Holder) -> bool:
        units = deployment.plan.placement[holder.name]
        return self._members.lives(holder) and self._members[holder.name].held.issuperset(units)

    # -- losses

    def on_lease_broken(self, event: LeaseBroken) -> None:
        self._lose({event.name: f"is lost: its connection broke: {event.reason}"})

    def on_left(self, event: ShardLeft) -> None:
        self._members.end_lease(self._members[event.name], event.reason)
        self._lose({event.name: f"left: {event.reason}"})

    def expire_leases(self) -> None:
        self._lose({name: f"is lost: {reason}" for name, reason in self._members.expire().items()})

    def _lose(self, reasons: Mapping[str, str]) -> None:
        """reasons: by name, what happened: 'left: …', 'is lost: …'."""
        lost: dict[str, Holder] = {}
        for name, reason in reasons.items():
            member = self._members.remove(name)
            lost[name] = member.holder
            kind = EventKind.LEFT if member.is_leaving or reason.startswith("left") else EventKind.LOST
            self._journal.tell(kind, name, f"shard {name} {reason}")
            if kind is EventKind.LOST:
                plan = self._state.plan
                self._losses.note(member, plan.placement.get(name, range(0)) if plan else range(0), reason, self._journal.clock_s)
        if lost:
            self._go_on_without(lost, "was lost")

    def _go_on_without(self, lost: Mapping[str, Holder], what: str) -> None:
        """What the cache's places say of them stays: a process that lost only its connection may come back with it."""
        self._links.forget(lost)
        self._failures.go_on_without(lost, what)
