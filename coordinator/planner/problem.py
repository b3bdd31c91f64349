"""What the search asks again and again, worked out once: what each run of units costs on each shard, and how far it fits there.

Times are added as whole picoseconds, so that sums do not depend on their order and ties are exact; ties go to the name that sorts first.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dairllm.coordinator.planner.demand import KvDemand, ModelDemand, ShardOffer
from dairllm.coordinator.planner.kinds_of_streaming import Streaming

HYSTERESIS = 0.2
"""How much dearer a unit counts that is not where it was."""
URGENT_SURCHARGE = 10.0
"""The same while no answers come."""
CACHE_SHARE = 0.1
"""Of these, for a unit whose weights the shard has in memory: what was computed with them lies elsewhere, or is computed again."""
ASSUMED_DECODE_S_PER_BYTE = 1e-10
"""For a shard that has not measured itself: 10 GB/s, a slow desktop."""

PROMPT_TOKENS_PER_ANSWER_TOKEN = 10.0
"""Of the requests for which stages are balanced: a conversation so far or a text of a thousand tokens, and an answer of a hundred."""
PROMPT_ROW_SHARE = 0.3
"""What a layer takes for one row of many, as a part of what it takes for a row alone: 0.16 with AVX512-VNNI, 0.3 to 0.5 with AVX2."""

PICOSECONDS = 1e12
NEVER = 1 << 100
"""The cost of what is impossible."""
ASSUMED_STREAM_S_PER_BYTE = 1e-9
"""For a disk that nothing has been streamed from yet: 1 GB/s."""
_SLOWEST_PS = 1 << 52
"""More than an hour for one unit counts as this: sums stay whole numbers."""


@dataclass(slots=True, eq=False)
class ShardCosts:
    """A shard with what the search asks of it, as prefix sums over the units."""

    offer: ShardOffer
    room_bytes: int
    """For a run without the head."""
    hop_ps: int
    time_ps: list[int]
    """[u]: picoseconds per step of units [0, u)."""
    cost_ps: list[int]
    """The same with the surcharge for units that would have to be moved here."""
    load_ps: list[int]
    """[u]: picoseconds that a token of an answer, with its share of the prompt, keeps units [0, u) busy."""
    furthest: list[int]
    """[start]: largest stop such that [start, stop) fits, and so does every shorter run; start itself if not even one unit does."""

    @property
    def name(self) -> str:
        return self.offer.name

    @property
    def stream_ps_per_byte(self) -> float:
        return (self.offer.stream_s_per_byte or ASSUMED_STREAM_S_PER_BYTE) * PICOSECONDS

    def step_ps(self, start: int, stop: int) -> int:
        return self.time_ps[stop] - self.time_ps[start] + self.hop_ps

    def load(self, start: int, stop: int) -> int:
        """Like step_ps, with a share of the prompt: of that, the head computes one row, which is the step's."""
        return self.load_ps[stop] - self.load_ps[start] + self.hop_ps

    def cost(self, start: int, stop: int) -> int:
        """step_ps with the surcharge."""
        return self.cost_ps[stop] - self.cost_ps[start] + self.hop_ps


class Run(NamedTuple):
    """Units [start, stop) on one shard of the problem."""

    shard: ShardCosts
    start: int
    stop: int

    @property
    def units(self) -> range:
        return range(self.start, self.stop)

    @property
    def step_ps(self) -> int:
        return self.shard.step_ps(self.start, self.stop)

    @property
    def load_ps(self) -> int:
        return self.shard.load(self.start, self.stop)

    @property
    def cost(self) -> int:
        return self.shard.cost(self.start, self.stop)


Cover = list[Run]
"""Runs that join, from the first unit on: to the last one, if it is a result of the search."""


def step_ps_of(cover: Iterable[Run]) -> int:
    return sum(run.step_ps for run in cover)


def cost_of(cover: Iterable[Run]) -> int:
    return sum(run.cost for run in cover)


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One question to the planner.

    placement: what lies where by the previous plan. need_bytes: [u]: weights and least KV cache of units [0, u), where a shared table
    counts twice. shards: by name. uncut: units before which no run may begin.
    streaming: what may be read anew for every step; which part of a stage is, is settled when its cuts are known. None: nothing.
    """

    demand: ModelDemand
    kv: KvDemand
    min_shards: int
    placement: Mapping[str, range]
    need_bytes: list[int]
    shards: list[ShardCosts]
    uncut: frozenset[int] = frozenset()
    streaming: Streaming | None = None

    @property
    def num_units(self) -> int:
        return self.demand.num_units

    @property
    def total_need_bytes(self) -> int:
        """Of the whole model on one shard."""
        return self.need_bytes[-1] - self.demand.tied_bytes


def with_a_layer_each(problem: Problem) -> Problem:
    """The same, but embedding and head go with a layer: a machine of its own for either would be a hop for nothing."""
    uncut = frozenset({1, problem.num_units - 1})
    shards = [
        replace(shard, furthest=[start if start in uncut else stop for start, stop in enumerate(shard.furthest)])
        for shard in problem.shards
    ]
    return replace(problem, shards=shards, uncut=uncut)


def pose_problem(
    demand: ModelDemand,
    kv: KvDemand,
    offers: Sequence[ShardOffer],
    min_shards: int,
    placement: Mapping[str, range],
    held: Mapping[str, Set[int]],
    move_surcharge: float,
    streaming: Streaming | None = None,
    streamed_bytes: Mapping[str, int] = MappingProxyType({}),
) -> Problem:
    """offers: by name, at least one. held: units that shards have in memory. move_surcharge: of units that are at another shard,
    as a part of their time. streamed_bytes: of what need not stay each shard may lack about so much."""
    need_bytes = _needed_up_to(demand, kv)
    surcharges = move_surcharge * _moved_parts(demand.num_units, offers, placement, held)
    rooms = _rooms(demand, offers)
    furthest = _furthest(rooms, need_bytes, demand.tied_bytes)
    if streaming is not None:
        limits = np.array([streamed_bytes.get(offer.name, 0) for offer in offers], np.int64)
        furthest = np.maximum(furthest, _furthest_streaming(demand, streaming, rooms, need_bytes, limits))
    shards = _measured(demand, offers, surcharges, rooms, furthest)
    return Problem(demand, kv, min_shards, placement, need_bytes, shards, streaming=streaming)


def _needed_up_to(demand: ModelDemand, kv: KvDemand) -> list[int]:
    least_tokens = kv.block_tokens * kv.least_blocks(demand.context_length)
    return [0, *accumulate(unit.size_bytes + unit.state_bytes_per_token * least_tokens for unit in demand.units)]


def _moved_parts(
    num_units: int, offers: Sequence[ShardOffer], placement: Mapping[str, range], held: Mapping[str, Set[int]]
) -> NDArray[np.float64]:
    """By shard and unit, how much of a move: 0 where the unit is, CACHE_SHARE where its weights lie; 0 before anything is loaded."""
    parts = np.full((len(offers), num_units), 1.0 if placement or held else 0.0)
    for row, offer in enumerate(offers):
        for unit in held.get(offer.name, ()):
            parts[row, unit] = CACHE_SHARE
        units = placement.get(offer.name, range(0))
        parts[row, units.start : units.stop] = 0.0
    return parts


def _measured(
    demand: ModelDemand, offers: Sequence[ShardOffer], surcharges: NDArray[np.float64], rooms: "_Rooms", furthest: NDArray[np.int64]
) -> list[ShardCosts]:
    """All at once as matrices, shards by units: of a thousand shards most are only looked at."""
    sizes = np.array([unit.step_bytes for unit in demand.units], np.float64)
    rates_ps = np.array([(offer.decode_s_per_byte or ASSUMED_DECODE_S_PER_BYTE) * PICOSECONDS for offer in offers])
    times = np.minimum(np.rint(sizes * rates_ps[:, None]), _SLOWEST_PS)
    costs = times + np.rint(times * surcharges)
    loads = np.rint(times * _busy_share(demand.num_units))
    hops_ps = [max(1, round(offer.hop_s * PICOSECONDS)) for offer in offers]
    each = zip(offers, rooms.body.tolist(), hops_ps, _sums(times), _sums(costs), _sums(loads), furthest.tolist(), strict=True)
    return [ShardCosts(*one) for one in each]


def _busy_share(num_units: int) -> NDArray[np.float64]:
    """By unit, how long a token of an answer with its share of the prompt takes, as a part of a step. Rows of a prompt pass the layers."""
    shares = np.ones(num_units)
    shares[1:-1] += PROMPT_TOKENS_PER_ANSWER_TOKEN * PROMPT_ROW_SHARE
    return shares


class _Rooms(NamedTuple):
    """Bytes by shard: for a run without the head, for the whole model, for the head alone. The head takes scratch of its own.

    They are below zero where a shard needs more for itself than it has: then it can hold nothing, not even a part of no bytes.
    """

    body: NDArray[np.int64]
    whole: NDArray[np.int64]
    head: NDArray[np.int64]

    def plus(self, size_bytes: NDArray[np.int64] | int) -> "_Rooms":
        return _Rooms(self.body + size_bytes, self.whole + size_bytes, self.head + size_bytes)


def _rooms(demand: ModelDemand, offers: Sequence[ShardOffer]) -> _Rooms:
    num_units = demand.num_units
    runs = (range(num_units - 1), range(num_units), range(num_units - 1, num_units))
    return _Rooms(*(np.array([offer.room_for(demand, run) for offer in offers], np.int64) for run in runs))


def _furthest(rooms: _Rooms, need_bytes: list[int], tied_bytes: int) -> NDArray[np.int64]:
    """How far each shard gets from each unit on. tied_bytes: by so much less all units together need."""
    num_units, needs = len(need_bytes) - 1, np.array(need_bytes, np.int64)
    reached = np.searchsorted(needs[:-1], needs[:-1] + rooms.body[:, None], side="right") - 1
    furthest = np.maximum(reached, np.arange(num_units)).astype(np.int64)
    to_the_end = needs[-1] - needs[:-1]
    to_the_end[0] -= tied_bytes
    at_the_end = np.repeat(rooms.whole[:, None], num_units, axis=1)
    at_the_end[:, -1] = rooms.head
    furthest[to_the_end <= at_the_end] = num_units
    return furthest


def _furthest_streaming(
    demand: ModelDemand, streaming: Streaming, rooms: _Rooms, need_bytes: list[int], limits: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The same where not all need stay: up to so many bytes, and there is room at all for what must, and for where the rest is read to."""
    beside = rooms.plus(-streaming.buffers_bytes)
    least_bytes = [need - size for need, size in zip(need_bytes, [0, *accumulate(streaming.sizes)], strict=True)]
    tied_bytes = 0 if streaming.sizes[0] else demand.tied_bytes
    return np.minimum(_furthest(beside.plus(limits), need_bytes, demand.tied_bytes), _furthest(beside, least_bytes, tied_bytes))


def _sums(numbers: NDArray[np.float64]) -> list[list[int]]:
    """Of each row, its prefix sums."""
    sums = np.zeros((numbers.shape[0], numbers.shape[1] + 1), np.int64)
    np.cumsum(numbers.astype(np.int64), axis=1, out=sums[:, 1:])
    return sums.tolist()  # type: ignore[no-any-return]
