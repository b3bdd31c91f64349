"""Level 2, the busiest stage: other cuts between the stages of the fastest cover, so that the busiest of them has the least to do.

What counts is a token of an answer with its share of the prompt. The chunks of a prompt keep the layers of all stages busy at once, but not
the head, which computes one row of all. Were steps alone balanced, the machine with a large head would get few layers, and the others
nearly all of each prompt.
"""

from bisect import bisect_right
from collections.abc import Sequence

from dairllm.coordinator.planner.problem import NEVER, Cover, Problem, Run, ShardCosts, cost_of, step_ps_of
from dairllm.coordinator.planner.search import least_cost

BALANCE_SLACK = 0.1
BALANCE_STEPS = 8
"""Halvings of the interval in which the load of the busiest stage is sought: to 0.4 % of it."""
BALANCE_WORK = 40_000
"""Largest stages * units^2 for which stages are balanced; beyond it, memory has decided nearly everything anyway."""


def balance(problem: Problem, cover: Cover) -> Cover:
    """Other cuts between the same stages: the least load of the busiest at a total of at most BALANCE_SLACK more."""
    if len(cover) < 2 or len(cover) * problem.num_units**2 > BALANCE_WORK:
        return cover
    order = [run.shard for run in cover]
    most = _most_allowed(problem, cover)
    busy, idle = max(run.load_ps for run in cover), 0
    for _ in range(BALANCE_STEPS):
        limit = (busy + idle) // 2
        cuts = _cheapest_in_order(problem.num_units, order, limit)
        if cuts and cost_of(cuts) <= most:
            cover, busy = cuts, limit
        else:
            idle = limit
    return cover


def _most_allowed(problem: Problem, cover: Cover) -> int:
    """No more than one machine alone, if that is possible."""
    may_be_one = problem.min_shards <= 1
    alone = [s.cost(0, problem.num_units) for s in problem.shards if s.furthest[0] == problem.num_units and may_be_one]
    return min([cost_of(cover) + round(step_ps_of(cover) * BALANCE_SLACK), *alone])


def _cheapest_in_order(num_units: int, order: Sequence[ShardCosts], limit_ps: int) -> Cover | None:
    """The cheapest cover by exactly these stages in this order, none busier than the limit."""
    best = [[NEVER] * num_units + [0]]
    for shard in reversed(order):
        onward = [c + b for c, b in zip(shard.cost_ps, best[-1], strict=True)]
        row = [least_cost(shard, onward, start, _furthest_within(shard, start, limit_ps)) for start in range(num_units)]
        best.append([*row, NEVER])
    best.reverse()
    if best[0][0] >= NEVER:
        return None
    cover: Cover = []
    start = 0
    for shard, here, after in zip(order, best, best[1:], strict=False):
        reach = _furthest_within(shard, start, limit_ps)
        stop = next(e for e in range(reach, start, -1) if shard.cost(start, e) + after[e] == here[start])
        cover.append(Run(shard, start, stop))
        start = stop
    return cover


def _furthest_within(shard: ShardCosts, start: int, limit_ps: int) -> int:
    """Like `furthest`, and within the limit of the load."""
    within = bisect_right(shard.load_ps, shard.load_ps[start] + limit_ps - shard.hop_ps) - 1
    return max(start, min(shard.furthest[start], within))
