"""Which plan is the best now: for whom is planned, around what lies where. It decides nothing and changes nothing."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import MappingProxyType

from dairllm.coordinator.cluster.books.deployments import Deployment
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.books.speeds import calibration_of
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.placement import placement_of_held
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.planner import HYSTERESIS, Infeasible, ModelDemand, Plan, make_plan


class PlanSearch(MachinePart):
    def find(
        self,
        model: ModelDemand,
        previous: Plan | None,
        urgent: bool = False,
        without: Collection[str] = frozenset(),
        least_gain: float = HYSTERESIS,
        instead: Mapping[str, Member] = MappingProxyType({}),
    ) -> Plan | Infeasible:
        """instead: members as they would be with other limits."""
        outcome: Plan | Infeasible = Infeasible("no shard has joined yet")
        for choice in self._choices(without):
            members = [instead.get(member.name, member) for member in choice]
            for min_shards in self._numbers_of_shards(len(members)):
                make = partial(self._make, model, members, min_shards, least_gain)
                outcome = make(previous, urgent)
                if isinstance(outcome, Plan):
                    return self._links.detour(outcome, previous, make, self._now_s, urgent=urgent)
        return outcome

    def _numbers_of_shards(self, count: int) -> Iterator[int]:
        """How many must have a part: as many as the first plan waits for, and once it has served, as many as there are, or fewer."""
        wanted = self._config.min_shards
        yield wanted
        if self._state.has_served:
            yield from range(min(wanted - 1, count), 0, -1)

    def _make(
        self,
        model: ModelDemand,
        members: Collection[Member],
        min_shards: int,
        least_gain: float,
        previous: Plan | None,
        urgent: bool,
        without: Collection[str] = (),
    ) -> Plan | Infeasible:
        calibration = calibration_of([member.speed for member in self._members])
        asked = [member for member in members if member.name not in without]
        return make_plan(
            model,
            [member.offer(self._config, calibration, self._now_s) for member in asked],
            min_shards=min_shards,
            previous=previous,
            kv=self._config.kv,
            held={member.name: member.held for member in asked if member.held},
            urgent=urgent,
            least_gain=least_gain,
        )

    def _choices(self, without: Collection[str]) -> Iterator[list[Member]]:
        """Who may be planned for, and who else while they do not suffice."""
        usable = [(self._resort(member), member) for member in self._members if self._is_usable(member) and member.name not in without]
        for last in sorted({0, *(resort for resort, _ in usable)}):
            yield [member for resort, member in usable if resort <= last]

    def choosable(self) -> frozenset[str]:
        """Names of the shards for which is planned, and against which nothing speaks."""
        return frozenset(member.name for member in self._members if self._is_usable(member) and self._resort(member) == 0)

    def _is_usable(self, member: Member) -> bool:
        """A shard that wants to leave goes on with a part that it has, and gets no new one."""
        has_reason_to_stay = not member.is_leaving or self._state.cares_for(member.name)
        return not member.has_failed and not member.is_forced and has_reason_to_stay

    def _resort(self, member: Member) -> int:
        """0 for whom nothing speaks against; then shards that are set aside, that are cordoned, that want to leave."""
        if member.is_leaving:
            return 3
        if member.is_cordoned:
            return 2
        return int(member.unused_until_s > self._now_s)

    def find_while_closed(self, model: ModelDemand) -> Plan | Infeasible:
        """No ring is open: moving as little as possible comes first."""
        active = self._state.active
        previous = self._what_is_left(active) if active else self._held_before(model)
        return self.find(model, previous, urgent=previous is not None)

    def _what_is_left(self, active: Deployment) -> Plan:
        living = {holder.name for holder in active.holders if self._members.lives(holder)}
        if len(living) == len(active.holders):
            return active.plan
        return Plan.of_placement({name: units for name, units in active.plan.placement.items() if name in living})

    def _held_before(self, model: ModelDemand) -> Plan | None:
        """What a coordinator that was started again finds."""
        placement = placement_of_held({member.name: member.held for member in self._members}, model.num_units)
        return Plan.of_placement(placement) if placement else None

    def lack_with(self, name: str, memory_budget_bytes: int) -> Infeasible | None:
        """None if the model could be served when this shard has so much memory, or is not served now either; else what is missing."""
        state = self._state
        if state.model is None or name not in self._members or state.phase is Phase.WAITING:
            return None
        if memory_budget_bytes >= self._members[name].hello.capabilities.memory_budget_bytes:
            return None
        changed = {name: self._members[name].with_memory(memory_budget_bytes)}
        outcome = self.find(state.model, state.active.plan if state.active else None, instead=changed)
        return outcome if isinstance(outcome, Infeasible) else None

    def lack_without(self, name: str) -> Infeasible | None:
        """None if the others can serve the model without this shard, or if the model is not served with it either; else what is missing."""
        state = self._state
        if state.model is None or name not in self._members or state.phase is Phase.WAITING:
            return None
        outcome = self.find(state.model, state.active.plan if state.active else None, without=frozenset({name}))
        return outcome if isinstance(outcome, Infeasible) else None
