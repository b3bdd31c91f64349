"""Links between members that fail although both ends live, and plans that go around them.

An edge that breaks may have many causes, and most are over with the next epoch. One that breaks again, or falls silent, while the
coordinator hears both of its ends, is a matter of what lies between the two: from then on plans avoid that link, if there are others. Who
computes what is the planner's decision; it knows no links. So where its plan uses one that is avoided, it is asked for plans without one of
the two, and whether the same shards can be put in another order.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, islice, pairwise
from typing import NamedTuple, Protocol

from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.planner import Infeasible, LeftOut, Plan
from dairllm.mesh.peers import COORDINATOR_NAME

MAX_ORDERS = 12
"""Orders of the same shards for which the planner is asked."""


class Edge(NamedTuple):
    sender: str
    receiver: str


@dataclass(slots=True)
class _Trouble:
    """failures: in a row. avoided_until_s: plans go around it before then."""

    failures: int = 0
    avoided_until_s: float = -math.inf


class MakePlan(Protocol):
    def __call__(self, previous: Plan | None, urgent: bool, without: Collection[str] = ()) -> Plan | Infeasible:
        """With all who may be planned for but those."""
        ...


class Links:
    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._troubles: dict[Edge, _Trouble] = {}

    # -- what happened

    def fail(self, edge: Edge, now_s: float, *, silent: bool = False) -> float:
        """Its stream broke, fell silent, or could not be opened. Returns for how long plans go around it; 0 if they do not yet."""
        trouble = self._troubles.setdefault(edge, _Trouble())
        trouble.failures = max(trouble.failures + 1, self._config.avoid_after if silent else 0)
        if trouble.failures < self._config.avoid_after:
            return 0.0
        avoided_s = self._config.avoidance_s(trouble.failures)
        trouble.avoided_until_s = now_s + avoided_s
        return avoided_s

    def hold(self, plan: Plan) -> None:
        """The plan has served for a while: its edges are sound, and what failed elsewhere less than avoid_after times was chance."""
        used, least = set(_edges_of(plan.placement)), self._config.avoid_after
        self._troubles = {edge: trouble for edge, trouble in self._troubles.items() if edge not in used and trouble.failures >= least}

    def forget(self, names: Collection[str]) -> None:
        """These are lost: when they come back, it may be with another cable."""
        self._troubles = {edge: trouble for edge, trouble in self._troubles.items() if not set(edge) & set(names)}

    def end_avoidances(self, now_s: float) -> bool:
        """Whether some link may be used again from now on. The next failure on it will be one more in its row."""
        ended = [trouble for trouble in self._troubles.values() if -math.inf < trouble.avoided_until_s <= now_s]
        for trouble in ended:
            trouble.avoided_until_s = -math.inf
        return bool(ended)

    # -- what follows

    def avoids(self, one: str, other: str, now_s: float) -> bool:
        """Whether the link between these two is avoided, in whichever direction it failed."""
        troubles = (self._troubles.get(edge) for edge in (Edge(one, other), Edge(other, one)))
        return any(trouble is not None and trouble.avoided_until_s > now_s for trouble in troubles)

    def detour(self, plan: Plan, previous: Plan | None, make: MakePlan, now_s: float, *, urgent: bool) -> Plan:
        """The plan, or one that uses fewer avoided links.

        What is without any now is kept; else the fastest is taken, or if urgent the one that moves least.
        """
        if not self._avoided_in(plan, now_s):
            return plan
        kept = make(previous, True) if previous else None
        if isinstance(kept, Plan) and not self._avoided_in(kept, now_s):
            return self._with_reasons(kept, now_s)

        def rank(other: Plan) -> tuple[int, int, float]:
            return len(self._avoided_in(other, now_s)), _num_moved(previous, other) if urgent and previous else 0, other.predicted_step_s

        return self._with_reasons(min((plan, *self._others(plan, make, now_s)), key=rank), now_s)

    def _avoided_in(self, plan: Plan, now_s: float) -> list[Edge]:
        return [edge for edge in _edges_of(plan.placement) if self.avoids(*edge, now_s)]

    def _others(self, plan: Plan, make: MakePlan, now_s: float) -> Iterator[Plan]:
        ends = {name for edge in self._avoided_in(plan, now_s) for name in edge if name != COORDINATOR_NAME}
        outcomes = [make(plan, False, without={name}) for name in sorted(ends)]
        orders = (order for order in _orders(plan.placement, ends) if not self._avoided_in(order, now_s))
        outcomes += [make(order, True) for order in islice(orders, MAX_ORDERS)]
        yield from (outcome for outcome in outcomes if isinstance(outcome, Plan))

    def _with_reasons(self, plan: Plan, now_s: float) -> Plan:
        """The planner does not know why it was asked to do without some."""
        members = (*plan.placement, COORDINATOR_NAME)
        unreached = {left.shard: [name for name in members if self.avoids(left.shard, name, now_s)] for left in plan.left_out}
        known = {name for edge in self._troubles for name in edge} - set(members) - unreached.keys()
        unreached |= {name: [other for other in members if self.avoids(name, other, now_s)] for name in sorted(known)}
        reasons = dict(plan.left_out) | {
            name: f"is left out: its link with {' and '.join(others)} failed" for name, others in unreached.items() if others
        }
        return replace(plan, left_out=tuple(LeftOut(name, reason) for name, reason in reasons.items()))


def _edges_of(placement: Iterable[str]) -> Iterator[Edge]:
    """Around the ring, from the coordinator to the coordinator."""
    return (Edge(*pair) for pair in pairwise((COORDINATOR_NAME, *placement, COORDINATOR_NAME)))


def _num_moved(before: Plan, after: Plan) -> int:
    placement = before.placement
    return sum(unit not in placement.get(stage.shard, ()) for stage in after.stages for unit in stage.units)


def _orders(placement: Mapping[str, range], ends: Collection[str]) -> Iterator[Plan]:
    """One of `ends` changes places with another: each takes over what the other computed, or takes its own number of units along."""
    for one, other in combinations(placement, 2):
        if one in ends or other in ends:
            swap = {one: other, other: one}
            names = [swap.get(name, name) for name in placement]
            yield Plan.of_placement(dict(zip(names, placement.values(), strict=True)))
            yield Plan.of_placement(_laid_out(names, placement))


def _laid_out(names: Iterable[str], placement: Mapping[str, range]) -> dict[str, range]:
    laid, start = dict[str, range](), 0
    for name in names:
        laid[name] = range(start, start + len(placement[name]))
        start = laid[name].stop
    return laid
