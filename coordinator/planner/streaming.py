"""Where the memory of all machines together is too small: some layers of each stage are read anew for every step.

The least share of all layers is sought with which the rest has room, as if each layer were cut there. Then the cuts are known, and whole
layers are chosen in each stage, spread evenly, so that one is read while others compute.
"""

from collections.abc import Callable

from dairllm.coordinator.planner.problem import Cover, Problem, Run

SHARES = 32
"""The share is sought in so many steps."""

Find = Callable[[float], tuple[Problem, Cover | None]]


def find_streamed(find: Find) -> tuple[Problem, Cover] | None:
    """find: a cover for a share of each layer. The one of the least share, or None if not even the buffers have room."""
    found: tuple[Problem, Cover] | None = None
    fails, works = 0, SHARES + 1
    while works - fails > 1:
        middle = (fails + works) // 2
        problem, cover = find(middle / SHARES)
        if cover is not None and has_room(problem, cover):
            found, works = (problem, cover), middle
        else:
            fails = middle
    return found


def has_room(problem: Problem, cover: Cover) -> bool:
    """For whole layers, too."""
    return all(streamed_units(problem, run) is not None for run in cover)


def streamed_units(problem: Problem, run: Run) -> tuple[int, ...] | None:
    """The fewest layers of the run with which the others have room; None if there is no room with all of them."""
    if not problem.streamed_share:
        return ()
    demand, kv = problem.demand, problem.kv
    layers = [unit for unit in run.units if demand.units[unit].streamed is not None]
    cache_bytes = demand.state_bytes_per_token(run.units) * kv.block_tokens * kv.least_blocks(demand.context_length)
    room_bytes = run.shard.offer.room_for(demand, run.units) - cache_bytes
    choices = (_spread(layers, count) for count in range(len(layers) + 1))
    return next((chosen for chosen in choices if demand.resident_bytes(run.units, chosen) <= room_bytes), None)


def _spread(layers: list[int], count: int) -> tuple[int, ...]:
    """So many of them, as far from each other as possible."""
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))
