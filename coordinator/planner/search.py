"""Level 1, the fastest cover: exact over all subsets, orders and cuts for up to EXACT_SHARDS shards; for more, the best of several
greedy fills, of a repair of the previous plan, and of the exact search among the shards that promise most."""

from collections.abc import Iterator, Sequence

from dairllm.coordinator.planner.problem import NEVER, Cover, Problem, Run, ShardCosts, cost_of

EXACT_SHARDS = 6


def find_cover(problem: Problem) -> Cover | None:
    """The cover of least cost that the search finds, or None if it finds none."""
    if len(problem.shards) <= EXACT_SHARDS:
        return _exact(problem, problem.shards)
    covers = [cover for order in greedy_orders(problem) if (cover := _fill(problem, order))]
    covers += [cover for cover in (_repair(problem), _exact(problem, _most_promising(problem, covers))) if cover]
    return min(covers, key=cost_of, default=None)


def least_cost(shard: ShardCosts, onward: list[int], start: int, reach: int) -> int:
    """Least cost from `start` on if the shard begins there and goes to `reach` at most; onward[e] is its prefix cost to e plus the
    best cost after e."""
    return min(onward[start + 1 : reach + 1], default=NEVER) - shard.cost_ps[start] + shard.hop_ps if reach > start else NEVER


# Exact


def _exact(problem: Problem, shards: Sequence[ShardCosts]) -> Cover | None:
    """Dynamic programming: best[used][start] is the least cost of units [start, end) by shards that are not in `used`."""
    num_units, num_masks = problem.num_units, 1 << len(shards)
    best: list[list[int]] = [[] for _ in range(num_masks)]
    for used in reversed(range(num_masks)):
        unused = [(s, [c + b for c, b in zip(s.cost_ps, best[used | 1 << i], strict=True)]) for i, s in _unused(shards, used)]
        row = [min((least_cost(s, onward, start, s.furthest[start]) for s, onward in unused), default=NEVER) for start in range(num_units)]
        best[used] = [*row, 0 if used.bit_count() >= problem.min_shards else NEVER]
    return _trace(problem, shards, best) if best[0][0] < NEVER else None


def _trace(problem: Problem, shards: Sequence[ShardCosts], best: list[list[int]]) -> Cover:
    cover: Cover = []
    start = used = 0
    while start < problem.num_units:
        i, stop = next(
            (i, stop)
            for i, shard in _unused(shards, used)
            for stop in range(shard.furthest[start], start, -1)
            if shard.cost(start, stop) + best[used | 1 << i][stop] == best[used][start]
        )
        cover.append(Run(shards[i], start, stop))
        start, used = stop, used | 1 << i
    return cover


def _unused(shards: Sequence[ShardCosts], used: int) -> list[tuple[int, ShardCosts]]:
    return [(i, shard) for i, shard in enumerate(shards) if not used >> i & 1]


def _most_promising(problem: Problem, covers: list[Cover]) -> list[ShardCosts]:
    """The few shards for the exact search: those of the best small cover, then the next of the first two greedy orders."""
    small = [cover for cover in covers if len(cover) <= EXACT_SHARDS]
    chosen = [run.shard for run in min(small, key=cost_of)] if small else []
    by_promise = [shard for order in list(greedy_orders(problem))[:2] for shard in order[:EXACT_SHARDS]]
    picked = list(dict.fromkeys([*chosen, *by_promise]))[:EXACT_SHARDS]
    return sorted(picked, key=lambda shard: shard.name)


# Greedy


def greedy_orders(problem: Problem) -> Iterator[list[ShardCosts]]:
    """Orders in which greedy fills try the shards; in the first, the fastest come first."""
    total, shards = problem.num_units, problem.shards

    def per_byte_when_full(shard: ShardCosts) -> float:
        return shard.cost_ps[total] / max(1, problem.need_bytes[-1]) + shard.hop_ps / max(1, shard.room_bytes)

    yield sorted(shards, key=lambda s: (s.cost_ps[total], s.hop_ps, s.name))
    yield sorted(shards, key=lambda s: (per_byte_when_full(s), s.name))
    yield sorted(shards, key=lambda s: (-s.room_bytes, s.cost_ps[total], s.name))
    yield sorted(shards, key=lambda s: (s.cost_ps[total] + s.hop_ps, s.name))


def _fill(problem: Problem, order: Sequence[ShardCosts]) -> Cover | None:
    """Give each shard in turn as much as fits, but leave one unit for each that must still come, or one layer if each must have one."""
    num_units, kept_back = problem.num_units, int(bool(problem.uncut))
    cover: Cover = []
    start = 0
    for shard in order:
        to_come = max(0, problem.min_shards - len(cover) - 1)
        stop = min(shard.furthest[start], num_units - to_come - (kept_back if to_come else 0))
        while stop in problem.uncut:
            stop -= 1
        if stop > start:
            cover.append(Run(shard, start, stop))
            start = stop
        if start == num_units:
            return cover
    return None


# Repair


def _repair(problem: Problem) -> Cover | None:
    """The previous placement, with each gap filled by the shard before it, then by unused ones, then by the shard after it."""
    by_name = {shard.name: shard for shard in problem.shards}
    kept = sorted((units.start, units.stop, by_name[name]) for name, units in problem.placement.items() if name in by_name)
    spare = [shard for shard in next(greedy_orders(problem)) if shard.name not in problem.placement]
    cover: Cover = []
    for start, stop, shard in [*((a, b, s) for a, b, s in kept), (problem.num_units, problem.num_units, None)]:
        reached = _fill_gap(cover, spare, start)
        if shard is not None and shard.furthest[reached] >= stop:
            cover.append(Run(shard, reached, stop))
        elif shard is not None or reached < problem.num_units:
            return None
    return cover if len(cover) >= problem.min_shards else None


def _fill_gap(cover: Cover, spare: list[ShardCosts], until: int) -> int:
    """Extend `cover` up to `until` at most, taking shards out of `spare`; returns how far it reaches now."""
    reached = cover[-1].stop if cover else 0
    if cover and reached < until:
        last = cover.pop()
        reached = max(reached, min(until, last.shard.furthest[last.start]))
        cover.append(Run(last.shard, last.start, reached))
    while reached < until and (shard := next((s for s in spare if s.furthest[reached] > reached), None)):
        spare.remove(shard)
        cover.append(Run(shard, reached, min(until, shard.furthest[reached])))
        reached = cover[-1].stop
    return reached
