"""Where the memory of all machines together is too small: some layers of each stage are read anew for every step.

All disks read at once, ahead of what is computed, as far as there are slots to read to: the rest is read while its stage is waited for. So

    T = the larger of: the longest that one disk reads; the sum over the stages of the larger of computing and reading what is not ahead

What is sought is the least time for which the disks must be read if all of them are read for equally long, and the faster ones more. One
disk that does not have to wait for others may do better than that, so it is also sought for the fastest few of them alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dairllm.coordinator.planner.demand import ModelDemand, ShardOffer
from dairllm.coordinator.planner.problem import ASSUMED_STREAM_S_PER_BYTE, PICOSECONDS, Cover, Problem, Run, cost_of, step_ps_of
from dairllm.model_files.memory import STREAM_SLOTS

STEPS = 64
"""The time is sought in so many steps of what one disk takes for all layers."""

Find = Callable[[Mapping[str, int]], tuple[Problem, Cover | None]]


class StreamedUnits(NamedTuple):
    """Layers of a stage that are read anew for every step. ahead_bytes: of size_bytes, what is read while other stages compute."""

    units: tuple[int, ...] = ()
    size_bytes: int = 0
    ahead_bytes: int = 0


def find_streamed(demand: ModelDemand, offers: Sequence[ShardOffer], find: Find) -> tuple[Problem, Cover] | None:
    """The quickest cover. find: one where each shard may stream at most about so many bytes. None if not even the slots have room.

    The problem is that of shards which may stream all of their layers.
    """
    total_bytes = sum(demand.streamed_sizes)
    problem, cover = find({offer.name: total_bytes for offer in offers})
    if cover is None:
        return None
    by_speed = sorted(offers, key=lambda offer: (_s_per_byte(offer), offer.name))
    covers = [cover, *_covers(problem, total_bytes, by_speed, find)]
    possible = [one for one in covers if has_room(problem, one)]
    return (problem, min(possible, key=lambda one: _cost(problem, one))) if possible else None


def _covers(problem: Problem, total_bytes: int, by_speed: Sequence[ShardOffer], find: Find) -> Iterator[Cover]:
    for count in _counts(len(by_speed)):
        disks = by_speed[:count]

        def within(reading_s: float, disks: Sequence[ShardOffer] = disks) -> Cover | None:
            cover = find({disk.name: min(total_bytes, int(reading_s / _s_per_byte(disk))) for disk in disks})[1]
            return cover if cover is not None and has_room(problem, cover) else None

        found = _least(within, total_bytes * _s_per_byte(disks[-1]))
        if found is not None:
            yield found
            slower = within(step_ps_with_reading(problem, found) / PICOSECONDS)  # as long as the step takes anyway
            yield from [slower] if slower is not None else []


def _counts(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2
    yield most


def _least(within: Callable[[float], Cover | None], longest_s: float) -> Cover | None:
    found: Cover | None = None
    fails, works = 0, STEPS + 1
    while works - fails > 1:
        middle = (fails + works) // 2
        cover = within(middle / STEPS * longest_s)
        if cover is not None:
            found, works = cover, middle
        else:
            fails = middle
    return found


def _s_per_byte(offer: ShardOffer) -> float:
    return offer.stream_s_per_byte or ASSUMED_STREAM_S_PER_BYTE


def _cost(problem: Problem, cover: Cover) -> int:
    """With the surcharge for units that would have to be moved."""
    return step_ps_with_reading(problem, cover) + cost_of(cover) - step_ps_of(cover)


def step_ps_with_reading(problem: Problem, cover: Iterable[Run]) -> int:
    """What a step takes, in picoseconds."""
    passing, longest = 0, 0
    for run in cover:
        streamed = streamed_units(problem, run) or StreamedUnits()
        ps_per_byte = run.shard.stream_ps_per_byte
        passing += max(run.step_ps, round((streamed.size_bytes - streamed.ahead_bytes) * ps_per_byte))
        longest = max(longest, round(streamed.size_bytes * ps_per_byte))
    return max(passing, longest)


def has_room(problem: Problem, cover: Cover) -> bool:
    """For whole layers, too."""
    return all(streamed_units(problem, run) is not None for run in cover)


def streamed_units(problem: Problem, run: Run) -> StreamedUnits | None:
    """The fewest layers of the run with which the others have room; None if there is no room with all of them."""
    if not problem.streams:
        return StreamedUnits()
    demand, kv = problem.demand, problem.kv
    layers = [unit for unit in run.units if demand.units[unit].streamed is not None]
    cache_bytes = demand.state_bytes_per_token(run.units) * kv.block_tokens * kv.least_blocks(demand.context_length)
    room_bytes = run.shard.offer.room_for(demand, run.units) - cache_bytes
    choices = (_spread(layers, count) for count in range(len(layers) + 1))
    chosen = next((chosen for chosen in choices if demand.resident_bytes(run.units, chosen) <= room_bytes), None)
    if chosen is None:
        return None
    all_sizes = demand.streamed_sizes
    sizes = [all_sizes[unit] for unit in chosen]
    return StreamedUnits(chosen, sum(sizes), sum(sizes[:STREAM_SLOTS]))


def _spread(layers: list[int], count: int) -> tuple[int, ...]:
    """So many of them, as far from each other as possible."""
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))
