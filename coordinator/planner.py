"""Who computes which part of the model: the planner. A pure function of what the model needs and what the shards offer.

A plan gives every unit (embedding, layers, head) to exactly one shard, each shard a contiguous run. One token of one sequence
passes through all stages one after the other, so a step takes

    T = sum over the stages (decode_s_per_byte * bytes read + hop_s)

and a shard only helps if memory or `min_shards` demands it, or if it is faster than the one whose layers it takes. The embedding
reads one row of its table per token, so it counts for memory but not for time. A run fits a shard if its weights (a table that
embedding and head share counts once when both lie on one shard), the KV cache of its layers for one whole context and the
shard's reserve stay within the shard's budget.

The search knows three levels:
1. the fastest cover, min T: exact over all subsets, orders and cuts for up to EXACT_SHARDS shards; for more, the best of several
   greedy fills, of a repair of the previous plan, and of the exact search among the shards that promise most;
2. among the cuts of these stages that are at most BALANCE_SLACK slower, the one whose slowest stage is the fastest, since that
   stage limits the throughput of many sequences; so two machines that are nearly equal share the work instead of one doing all;
3. all memory that is left gives KV blocks, up to the target.

Moving layers costs time. A unit that is not where it was counts HYSTERESIS dearer, and a previous plan that is still possible
stays unless the new one is faster by more than HYSTERESIS. An urgent plan, while no answers come, moves as little as possible,
whatever that costs: a better one may be prepared once it serves. Times are added as whole picoseconds, so that sums do not depend on
their order and ties are exact; ties go to the name that sorts first.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

EXACT_SHARDS = 6
HYSTERESIS = 0.2
URGENT_SURCHARGE = 10.0
"""How much dearer a unit counts that is moved while no answers come."""
EXPLAINED_SHARDS = 16
"""For so many unused shards of a large cluster it is worked out what they would do to the answers."""
BALANCE_SLACK = 0.1
NOTICEABLE = 0.005
"""Gains below it are none, for people."""
BALANCE_STEPS = 8
"""Halvings of the interval in which the slowest stage is sought: to 0.4 % of it."""
BALANCE_WORK = 40_000
"""Largest stages * units^2 for which stages are balanced; beyond it, memory has decided nearly everything anyway."""
ASSUMED_DECODE_S_PER_BYTE = 1e-10
"""For a shard that has not measured itself: 10 GB/s, a slow desktop."""

_PICOSECONDS = 1e12
_NEVER = 1 << 100
_SLOWEST_PS = 1 << 52
"""More than an hour for one unit counts as this: sums stay whole numbers."""


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What a model needs of the shards.

    unit_sizes_bytes: embedding, layers 0 to num_layers - 1, head: num_layers + 2 entries.
    tied_bytes: bytes that the embedding and the head have in common, 0 if none; both sizes contain them.
    kv_bytes_per_token_per_layer: keys and values together.
    block_formats: element types that a shard must be able to compute with.
    context_length: longest sequence in tokens, for which one shard's cache must have room.
    """

    name: str
    digest: bytes
    unit_sizes_bytes: tuple[int, ...]
    tied_bytes: int
    kv_bytes_per_token_per_layer: int
    num_layers: int
    architecture: str
    block_formats: frozenset[str]
    context_length: int

    def __post_init__(self) -> None:
        assert len(self.unit_sizes_bytes) == self.num_layers + 2, "embedding, layers, head"
        assert 0 <= self.tied_bytes <= min(self.unit_sizes_bytes[0], self.unit_sizes_bytes[-1])

    @property
    def num_units(self) -> int:
        return self.num_layers + 2

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on one machine."""
        return sum(self.unit_sizes_bytes) - self.tied_bytes

    def weights_bytes(self, units: range) -> int:
        """Bytes of the weights of a run of units."""
        shared = self.tied_bytes if len(units) == self.num_units else 0
        return sum(self.unit_sizes_bytes[units.start : units.stop]) - shared

    def weights_bytes_of_both(self, one: range, other: range) -> int:
        """Bytes of the weights of two runs in one memory."""
        shared = self.tied_bytes if self.num_units in (len(one), len(other)) else 0
        return sum(self.unit_sizes_bytes[unit] for unit in set(one) | set(other)) - shared

    def bytes_read_per_step(self, units: range) -> int:
        """Bytes of weights that a step of one row reads: of the embedding it is next to nothing."""
        return sum(self.unit_sizes_bytes[unit] for unit in units if unit > 0)

    def layers_in(self, units: range) -> int:
        return min(units.stop, self.num_layers + 1) - max(units.start, 1) if units else 0


@dataclass(frozen=True, slots=True)
class KvDemand:
    """Geometry of the KV cache. The cache has room for at least one context and for at most target_tokens, if that is more."""

    block_tokens: int = 32
    target_tokens: int = 0

    def least_blocks(self, context_length: int) -> int:
        return -(-context_length // self.block_tokens)

    def most_blocks(self, context_length: int) -> int:
        return max(self.least_blocks(context_length), self.target_tokens // self.block_tokens)


@dataclass(frozen=True, slots=True)
class ShardOffer:
    """What a shard offers.

    memory_budget_bytes: for everything; reserved_bytes of it are neither for weights nor for the KV cache.
    decode_s_per_byte: seconds per byte of weights for one row; 0 if unknown.
    hop_s: what one more edge of the ring, to this shard, adds to a step.
    """

    name: str
    memory_budget_bytes: int
    reserved_bytes: int
    decode_s_per_byte: float
    hop_s: float
    architectures: frozenset[str]
    block_formats: frozenset[str]

    @property
    def room_bytes(self) -> int:
        return max(0, self.memory_budget_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True)
class Stage:
    shard: str
    units: range
    weights_bytes: int
    kv_cache_bytes: int
    predicted_step_s: float


class LeftOut(NamedTuple):
    """A shard without a part in the plan. The reason is a predicate for people: 'does not know …'."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """stages: in ring order. fastest_step_s: the least T found, which predicted_step_s exceeds by at most BALANCE_SLACK, or by
    what hysteresis allows where units stayed."""

    stages: tuple[Stage, ...]
    num_kv_blocks: int
    predicted_step_s: float
    fastest_step_s: float
    left_out: tuple[LeftOut, ...] = ()

    @classmethod
    def of_placement(cls, placement: Mapping[str, range]) -> "Plan":
        """What lies where, without numbers: a previous plan of which nothing else is known."""
        return cls(tuple(Stage(shard, units, 0, 0, 0.0) for shard, units in placement.items()), 0, 0.0, 0.0)

    @property
    def predicted_decode_tok_s(self) -> float:
        return 1 / self.predicted_step_s if self.predicted_step_s > 0 else 0.0

    @property
    def placement(self) -> dict[str, range]:
        """Units by shard, in ring order."""
        return {stage.shard: stage.units for stage in self.stages}

    def same_work_as(self, other: "Plan") -> bool:
        """Whether every shard has the same to do, at the same place, with the same cache."""
        return list(self.placement.items()) == list(other.placement.items()) and self.num_kv_blocks == other.num_kv_blocks


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan is possible. missing_bytes: 0 if memory is not what is missing."""

    reason: str
    missing_bytes: int = 0
    left_out: tuple[LeftOut, ...] = ()


def format_bytes(size_bytes: int) -> str:
    """For people: GiB from 0.1 GiB on, else MiB."""
    gib = size_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{size_bytes / 2**20:.1f} MiB"


def format_speed(tokens_per_s: float) -> str:
    digits = 0 if tokens_per_s >= 20 else 1 if tokens_per_s >= 1 else 2
    return f"{tokens_per_s:.{digits}f}"


def make_plan(
    demand: ModelDemand,
    offers: Sequence[ShardOffer],
    *,
    min_shards: int = 1,
    previous: Plan | None = None,
    kv: KvDemand | None = None,
    held: Mapping[str, Set[int]] | None = None,
    urgent: bool = False,
) -> Plan | Infeasible:
    """Plan the model onto the shards.

    offers: one per shard, names unique. min_shards: at least that many shards get units. previous: the plan before, also if some
    of its shards are gone. held: units that shards have in memory, by name. urgent: no answers come, so move as little as possible.
    """
    kv = kv or KvDemand()
    able, left_out = _split_by_ability(demand, offers)
    if len(able) < min_shards or not able:
        return _too_few(len(able), min_shards, left_out)
    if min_shards > demand.num_units:
        return Infeasible(f"the model has {demand.num_units} parts, too few for {min_shards} shards", 0, left_out)
    problem = _Problem(demand, kv, able, previous.placement if previous else {}, held or {}, URGENT_SURCHARGE if urgent else HYSTERESIS)
    cover = problem.find_cover(min_shards)
    if cover is None:
        return problem.explain_lack(min_shards, left_out)
    plan = problem.plan_of(problem.balance(cover, min_shards), cover)
    kept = problem.keep(previous, min_shards) if previous else None
    if kept and (urgent or kept.predicted_step_s <= plan.predicted_step_s * (1 + HYSTERESIS)):
        return replace(kept, left_out=left_out + problem.explain_kept(kept, plan))
    return replace(plan, left_out=left_out + problem.explain_unused(plan))


def _too_few(count: int, min_shards: int, left_out: tuple[LeftOut, ...]) -> Infeasible:
    unable = f" ({'; '.join(f'{name} {reason}' for name, reason in left_out[:3])})" if left_out else ""
    return Infeasible(f"{count} shard{'s' if count != 1 else ''} of {max(1, min_shards)}{unable}", 0, left_out)


def _split_by_ability(demand: ModelDemand, offers: Iterable[ShardOffer]) -> tuple[list[ShardOffer], tuple[LeftOut, ...]]:
    able, left_out = [], []
    for offer in sorted(offers, key=lambda offer: offer.name):
        missing = sorted(demand.block_formats - offer.block_formats)
        if demand.architecture not in offer.architectures:
            left_out.append(LeftOut(offer.name, f"does not know the architecture '{demand.architecture}'"))
        elif missing:
            left_out.append(LeftOut(offer.name, f"cannot compute with {', '.join(missing)}"))
        else:
            able.append(offer)
    return able, tuple(left_out)


class _Run(NamedTuple):
    """Units [start, stop) on one shard of the problem."""

    shard: "_Candidate"
    start: int
    stop: int


_Cover = list[_Run]


@dataclass(slots=True, eq=False)
class _Candidate:
    """A shard with what the search asks of it again and again, as prefix sums over the units."""

    offer: ShardOffer
    hop_ps: int
    time_ps: list[int]
    """[u]: picoseconds per step of units [0, u)."""
    cost_ps: list[int]
    """The same with the surcharge for units that would have to be moved here."""
    furthest: list[int]
    """[start]: largest stop such that [start, stop) fits; start itself if not even one unit does."""

    @property
    def name(self) -> str:
        return self.offer.name

    def seconds(self, start: int, stop: int) -> int:
        return self.time_ps[stop] - self.time_ps[start] + self.hop_ps

    def cost(self, start: int, stop: int) -> int:
        return self.cost_ps[stop] - self.cost_ps[start] + self.hop_ps


class _Problem:
    """One call of `make_plan`, with the sums that it needs."""

    def __init__(
        self,
        demand: ModelDemand,
        kv: KvDemand,
        offers: Sequence[ShardOffer],
        placement: Mapping[str, range],
        held: Mapping[str, Set[int]],
        move_surcharge: float,
    ) -> None:
        self._demand = demand
        self._kv = kv
        self._num_units = demand.num_units
        kv_layer_bytes = demand.kv_bytes_per_token_per_layer * kv.block_tokens * kv.least_blocks(demand.context_length)
        layers = range(1, demand.num_layers + 1)
        needs = [size + (kv_layer_bytes if unit in layers else 0) for unit, size in enumerate(demand.unit_sizes_bytes)]
        self._need = [0, *accumulate(needs)]
        self._placement = placement
        self._held = held
        self._move_surcharge = move_surcharge
        self._candidates = self._measured(offers)

    # -- what each shard can do

    def _measured(self, offers: Sequence[ShardOffer]) -> list[_Candidate]:
        """All at once as matrices, shards by units: of a thousand shards most are only looked at."""
        sizes = np.array([0, *self._demand.unit_sizes_bytes[1:]], np.float64)
        rates_ps = np.array([(offer.decode_s_per_byte or ASSUMED_DECODE_S_PER_BYTE) * _PICOSECONDS for offer in offers])
        times = np.minimum(np.rint(sizes * rates_ps[:, None]), _SLOWEST_PS)
        costs = times + np.rint(times * self._move_surcharge) * ~self._there(offers)
        rooms = np.array([offer.room_bytes for offer in offers], np.int64)
        needs = np.array(self._need, np.int64)
        furthest = np.maximum(np.searchsorted(needs, needs[:-1] + rooms[:, None], side="right") - 1, np.arange(self._num_units))
        furthest[rooms >= self._need[-1] - self._demand.tied_bytes, 0] = self._num_units
        hops_ps = [max(1, round(offer.hop_s * _PICOSECONDS)) for offer in offers]
        return [_Candidate(*each) for each in zip(offers, hops_ps, _sums(times), _sums(costs), furthest.tolist(), strict=True)]

    def _there(self, offers: Sequence[ShardOffer]) -> NDArray[np.bool_]:
        """Which shard has which unit already; before anything is loaded, all count as if they had all."""
        there = np.full((len(offers), self._num_units), not self._placement and not self._held)
        for row, offer in enumerate(offers):
            units = self._placement.get(offer.name, range(0))
            there[row, units.start : units.stop] = True
            for unit in self._held.get(offer.name, ()):
                there[row, unit] = True
        return there

    # -- level 1: the fastest cover

    def find_cover(self, min_shards: int) -> _Cover | None:
        """The cover of least cost that the search finds, or None if it finds none."""
        if len(self._candidates) <= EXACT_SHARDS:
            return self._exact(self._candidates, min_shards)
        covers = [cover for order in self._orders() if (cover := self._fill(order, min_shards))]
        covers += [cover for cover in (self._repair(min_shards), self._exact(self._most_promising(covers), min_shards)) if cover]
        return min(covers, key=_cost_of, default=None)

    def _exact(self, candidates: Sequence[_Candidate], min_shards: int) -> _Cover | None:
        """Dynamic programming: best[used][start] is the least cost of units [start, end) by shards that are not in `used`."""
        num_units, num_masks = self._num_units, 1 << len(candidates)
        best: list[list[int]] = [[] for _ in range(num_masks)]
        for used in reversed(range(num_masks)):
            onward = {i: [c + b for c, b in zip(s.cost_ps, best[used | 1 << i], strict=True)] for i, s in _unused(candidates, used)}
            row = [min((_least(candidates[i], onward[i], start) for i in onward), default=_NEVER) for start in range(num_units)]
            best[used] = [*row, 0 if used.bit_count() >= min_shards else _NEVER]
        return self._trace(candidates, best) if best[0][0] < _NEVER else None

    def _trace(self, candidates: Sequence[_Candidate], best: list[list[int]]) -> _Cover:
        cover: _Cover = []
        start = used = 0
        while start < self._num_units:
            i, stop = next(
                (i, stop)
                for i, shard in _unused(candidates, used)
                for stop in range(shard.furthest[start], start, -1)
                if shard.cost(start, stop) + best[used | 1 << i][stop] == best[used][start]
            )
            cover.append(_Run(candidates[i], start, stop))
            start, used = stop, used | 1 << i
        return cover

    def _orders(self) -> Iterable[list[_Candidate]]:
        """Orders in which greedy fills try the shards."""
        total = self._num_units

        def per_byte_when_full(shard: _Candidate) -> float:
            return shard.cost_ps[total] / max(1, self._need[-1]) + shard.hop_ps / max(1, shard.offer.room_bytes)

        yield sorted(self._candidates, key=lambda s: (s.cost_ps[total], s.hop_ps, s.name))
        yield sorted(self._candidates, key=lambda s: (per_byte_when_full(s), s.name))
        yield sorted(self._candidates, key=lambda s: (-s.offer.room_bytes, s.cost_ps[total], s.name))
        yield sorted(self._candidates, key=lambda s: (s.cost_ps[total] + s.hop_ps, s.name))

    def _fill(self, order: Sequence[_Candidate], min_shards: int) -> _Cover | None:
        """Give each shard in turn as much as fits, but leave one unit for each that must still come."""
        cover: _Cover = []
        start = 0
        for shard in order:
            to_come = max(0, min_shards - len(cover) - 1)
            stop = min(shard.furthest[start], self._num_units - to_come)
            if stop > start:
                cover.append(_Run(shard, start, stop))
                start = stop
            if start == self._num_units:
                return cover
        return None

    def _most_promising(self, covers: list[_Cover]) -> list[_Candidate]:
        """The few shards for the exact search: those of the best small cover, then the next of the second greedy order."""
        small = [cover for cover in covers if len(cover) <= EXACT_SHARDS]
        chosen = [run.shard for run in min(small, key=_cost_of)] if small else []
        by_promise = [shard for order in list(self._orders())[:2] for shard in order[:EXACT_SHARDS]]
        picked = list(dict.fromkeys([*chosen, *by_promise]))[:EXACT_SHARDS]
        return sorted(picked, key=lambda shard: shard.name)

    def _repair(self, min_shards: int) -> _Cover | None:
        """The previous placement, with each gap filled by the shard before it, then by unused ones, then by the shard after it."""
        by_name = {shard.name: shard for shard in self._candidates}
        kept = sorted((units.start, units.stop, by_name[name]) for name, units in self._placement.items() if name in by_name)
        spare = [shard for shard in next(iter(self._orders())) if shard.name not in self._placement]
        cover: _Cover = []
        for start, stop, shard in [*((a, b, s) for a, b, s in kept), (self._num_units, self._num_units, None)]:
            reached = self._fill_gap(cover, spare, start)
            if shard is not None and shard.furthest[reached] >= stop:
                cover.append(_Run(shard, reached, stop))
            elif shard is not None or reached < self._num_units:
                return None
        return cover if len(cover) >= min_shards else None

    def _fill_gap(self, cover: _Cover, spare: list[_Candidate], until: int) -> int:
        """Extend `cover` up to `until` at most, taking shards out of `spare`; returns how far it reaches now."""
        reached = cover[-1].stop if cover else 0
        if cover and reached < until:
            last = cover.pop()
            reached = max(reached, min(until, last.shard.furthest[last.start]))
            cover.append(_Run(last.shard, last.start, reached))
        while reached < until and (shard := next((s for s in spare if s.furthest[reached] > reached), None)):
            spare.remove(shard)
            cover.append(_Run(shard, reached, min(until, shard.furthest[reached])))
            reached = cover[-1].stop
        return reached

    # -- level 2: the slowest stage

    def balance(self, cover: _Cover, min_shards: int) -> _Cover:
        """Other cuts between the same stages: the least slowest stage at a total of at most BALANCE_SLACK more."""
        if len(cover) < 2 or len(cover) * self._num_units**2 > BALANCE_WORK:
            return cover
        order = [run.shard for run in cover]
        most = self._most_allowed(cover, min_shards)
        slow, fast = max(run.shard.seconds(run.start, run.stop) for run in cover), 0
        for _ in range(BALANCE_STEPS):
            limit = (slow + fast) // 2
            cuts = self._in_order(order, limit)
            if cuts and _cost_of(cuts) <= most:
                cover, slow = cuts, limit
            else:
                fast = limit
        return cover

    def _most_allowed(self, cover: _Cover, min_shards: int) -> int:
        alone = [s.cost(0, self._num_units) for s in self._candidates if s.furthest[0] == self._num_units and min_shards <= 1]
        slack = round(sum(run.shard.seconds(run.start, run.stop) for run in cover) * BALANCE_SLACK)
        return min([_cost_of(cover) + slack, *alone])

    def _in_order(self, order: Sequence[_Candidate], limit_ps: int) -> _Cover | None:
        """The cheapest cover by exactly these stages in this order, none slower than the limit."""
        num_units = self._num_units
        best = [[_NEVER] * num_units + [0]]
        for shard in reversed(order):
            onward = [c + b for c, b in zip(shard.cost_ps, best[-1], strict=True)]
            stops = [self._limited(shard, start, limit_ps) for start in range(num_units)]
            best.append([*(_least(shard, onward, start, stops[start]) for start in range(num_units)), _NEVER])
        best.reverse()
        if best[0][0] >= _NEVER:
            return None
        cover: _Cover = []
        start = 0
        for shard, here, after in zip(order, best, best[1:], strict=False):
            reach = self._limited(shard, start, limit_ps)
            stop = next(e for e in range(reach, start, -1) if shard.cost(start, e) + after[e] == here[start])
            cover.append(_Run(shard, start, stop))
            start = stop
        return cover

    def _limited(self, shard: _Candidate, start: int, limit_ps: int) -> int:
        """Like `furthest`, and within the time limit."""
        within = bisect_right(shard.time_ps, shard.time_ps[start] + limit_ps - shard.hop_ps) - 1
        return max(start, min(shard.furthest[start], within))

    # -- level 3 and the result

    def plan_of(self, cover: _Cover, fastest: _Cover) -> Plan:
        most = self._kv.most_blocks(self._demand.context_length)
        num_blocks = min([most, *(self._blocks_beside(run) for run in cover)])
        stages = tuple(self._stage(run, num_blocks) for run in cover)
        step_s, fastest_s = (sum(run.shard.seconds(run.start, run.stop) for run in c) / _PICOSECONDS for c in (cover, fastest))
        return Plan(stages, num_blocks, step_s, min(step_s, fastest_s))

    def _block_bytes(self, units: range) -> int:
        return self._demand.kv_bytes_per_token_per_layer * self._kv.block_tokens * self._demand.layers_in(units)

    def _blocks_beside(self, run: _Run) -> int:
        units = range(run.start, run.stop)
        block_bytes = self._block_bytes(units)
        return (run.shard.offer.room_bytes - self._demand.weights_bytes(units)) // block_bytes if block_bytes else _NEVER

    def _stage(self, run: _Run, num_blocks: int) -> Stage:
        units = range(run.start, run.stop)
        seconds = run.shard.seconds(run.start, run.stop) / _PICOSECONDS
        return Stage(run.shard.name, units, self._demand.weights_bytes(units), self._block_bytes(units) * num_blocks, seconds)

    def keep(self, previous: Plan, min_shards: int) -> Plan | None:
        """The previous plan with today's numbers, or None if it is not possible any more."""
        by_name = {shard.name: shard for shard in self._candidates}
        if len(previous.stages) < min_shards or any(stage.shard not in by_name for stage in previous.stages):
            return None
        cover = [_Run(by_name[stage.shard], stage.units.start, stage.units.stop) for stage in previous.stages]
        joined = all(a.stop == b.start for a, b in pairwise(cover)) and cover[0].start == 0 and cover[-1].stop == self._num_units
        if not joined or any(run.shard.furthest[run.start] < run.stop for run in cover):
            return None
        return self.plan_of(cover, cover)

    # -- words

    def explain_unused(self, plan: Plan) -> tuple[LeftOut, ...]:
        """Why each shard without units has none; with numbers where an exact search is cheap."""
        used = [shard for shard in self._candidates if shard.name in plan.placement]
        unused = [shard for shard in self._candidates if shard.name not in plan.placement]
        explained = EXPLAINED_SHARDS if len(used) >= EXACT_SHARDS else EXACT_SHARDS
        return tuple(LeftOut(shard.name, self._why_unused(shard, used, plan, i < explained)) for i, shard in enumerate(unused))

    def explain_kept(self, kept: Plan, better: Plan) -> tuple[LeftOut, ...]:
        """Why each shard without units has none in a plan that stays although `better` is possible."""
        in_better = {name for name in better.placement if kept.predicted_step_s > better.predicted_step_s * (1 + NOTICEABLE)}
        reason = _comparison(kept.predicted_step_s, better.predicted_step_s)
        others = (left for left in self.explain_unused(kept) if left.shard not in in_better)
        unused = (shard.name for shard in self._candidates if shard.name in in_better and shard.name not in kept.placement)
        return (*(LeftOut(name, reason) for name in unused), *others)

    def _why_unused(self, shard: _Candidate, used: list[_Candidate], plan: Plan, explained: bool) -> str:
        if all(stop == start for start, stop in enumerate(shard.furthest)):
            return f"has room for {format_bytes(shard.offer.room_bytes)}, which hold no part of the model"
        with_it_s = self._step_with(shard, used, plan) if explained else None
        if with_it_s is None:
            return f"is not needed: {len(used)} machine{'s are' if len(used) != 1 else ' is'} faster without it"
        return _comparison(plan.predicted_step_s, with_it_s)

    def _step_with(self, shard: _Candidate, used: list[_Candidate], plan: Plan) -> float | None:
        """About the least step in which this shard has a part beside those of the plan, wherever the layers are now."""
        if len(used) < EXACT_SHARDS:
            offers = sorted((s.offer for s in [*used, shard]), key=lambda offer: offer.name)
            cover = _Problem(self._demand, self._kv, offers, {}, {}, 0.0).find_cover(len(offers))
            return sum(run.shard.seconds(run.start, run.stop) for run in cover) / _PICOSECONDS if cover else None
        by_name = {s.name: s for s in used}
        changes = (self._change_by(shard, by_name[stage.shard], stage.units) for stage in plan.stages)
        least = min((change for change in changes if change is not None), default=None)
        return plan.predicted_step_s + least / _PICOSECONDS if least is not None else None

    @staticmethod
    def _change_by(shard: _Candidate, owner: _Candidate, units: range) -> int | None:
        """What a step gains or loses at least if the shard takes the last of these units; None if it cannot."""
        starts = (start for start in range(units.start + 1, units.stop) if shard.furthest[start] >= units.stop)
        return min((shard.seconds(start, units.stop) + owner.hop_ps - owner.seconds(start, units.stop) for start in starts), default=None)

    def explain_lack(self, min_shards: int, left_out: tuple[LeftOut, ...]) -> Infeasible:
        """Why there is no cover, and how many bytes would help."""
        needed, offered = self._need[-1] - self._demand.tied_bytes, sum(s.offer.room_bytes for s in self._candidates)
        count = f"{len(self._candidates)} shard{'s offer' if len(self._candidates) != 1 else ' offers'}"
        numbers = f"the model needs {format_bytes(needed)}, {count} {format_bytes(offered)}"
        if needed > offered:
            return Infeasible(f"{format_bytes(needed - offered)} of memory are missing ({numbers})", needed - offered, left_out)
        missing = self._need[-1] - self._need[self._reach()]
        if missing == 0:
            return Infeasible(f"no {min_shards} of the shards have room for a part of the model each ({numbers})", 0, left_out)
        return Infeasible(f"{format_bytes(missing)} of memory are missing in one piece ({numbers})", missing, left_out)

    def _reach(self) -> int:
        """How many units the greedy fills can place."""
        return max(self._reach_of(order) for order in self._orders())

    def _reach_of(self, order: Iterable[_Candidate]) -> int:
        reached = 0
        for shard in order:
            if reached < self._num_units:
                reached = shard.furthest[reached]
        return reached


def _comparison(without_s: float, with_it_s: float) -> str:
    gain = without_s / with_it_s - 1
    figures = f"expected {format_speed(1 / with_it_s)} tok/s with it, {format_speed(1 / without_s)} without"
    if abs(gain) < NOTICEABLE:
        return f"would not make the answers faster: {figures}"
    if gain < 0:
        return f"would slow the answers down: {figures}"
    return f"would gain less than the {HYSTERESIS:.0%} for which layers are moved: {figures}"


def _sums(numbers: NDArray[np.float64]) -> list[list[int]]:
    """Of each row, its prefix sums."""
    sums = np.zeros((numbers.shape[0], numbers.shape[1] + 1), np.int64)
    np.cumsum(numbers.astype(np.int64), axis=1, out=sums[:, 1:])
    return sums.tolist()  # type: ignore[no-any-return]


def _unused(candidates: Sequence[_Candidate], used: int) -> list[tuple[int, _Candidate]]:
    return [(i, shard) for i, shard in enumerate(candidates) if not used >> i & 1]


def _least(shard: _Candidate, onward: list[int], start: int, reach: int | None = None) -> int:
    """Least cost from `start` on if the shard begins there; onward[e] is its prefix cost to e plus the best cost after e."""
    stop = shard.furthest[start] if reach is None else reach
    return min(onward[start + 1 : stop + 1], default=_NEVER) - shard.cost_ps[start] + shard.hop_ps if stop > start else _NEVER


def _cost_of(cover: _Cover) -> int:
    return sum(run.shard.cost(run.start, run.stop) for run in cover)
