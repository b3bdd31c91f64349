"""Where the memory of all machines together is too small: some weights of each stage are read anew for every step (`kinds_of_streaming`).

All disks read at once, ahead of what is computed, as far as there are slots to read to: the rest is read while its stage is waited for. So

    T = the larger of: the longest that one disk reads; the sum over the stages of the larger of computing and reading what is not ahead

Experts can't be read ahead, since nobody knows them: reading them is added to computing.

What is sought is the least time for which the disks must be read if all of them are read for equally long, and the faster ones more. One
disk that does not have to wait for others may do better than that, so it is also sought for the fastest alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dairllm.coordinator.planner.demand import ShardOffer
from dairllm.coordinator.planner.kinds_of_streaming import NOTHING_STREAMED, StreamedPart, Streaming
from dairllm.coordinator.planner.problem import ASSUMED_STREAM_S_PER_BYTE, PICOSECONDS, Cover, Problem, Run, cost_of, step_ps_of

STEPS = 32
"""The time is sought in so many steps of what one disk takes for all layers."""

Find = Callable[[Mapping[str, int]], tuple[Problem, Cover | None]]


def find_streamed(kind: Streaming, offers: Sequence[ShardOffer], find: Find) -> tuple[Problem, Cover] | None:
    """The quickest cover. find: one where each shard may lack at most about so many bytes. None if not even what must stay has room.

    The problem is that of shards which may lack all that need not stay.
    """
    total_bytes = sum(kind.sizes)
    problem, cover = find({offer.name: total_bytes for offer in offers})
    if cover is None:
        return None
    by_speed = sorted(offers, key=lambda offer: (_s_per_byte(offer), offer.name))
    covers = [cover, *_covers(problem, kind, by_speed, find)]
    possible = [one for one in covers if has_room(problem, one)]
    return (problem, min(possible, key=lambda one: _cost(problem, one))) if possible else None


def _covers(problem: Problem, kind: Streaming, by_speed: Sequence[ShardOffer], find: Find) -> Iterator[Cover]:
    total_bytes = sum(kind.sizes)
    for disks in dict.fromkeys((tuple(by_speed), tuple(by_speed[:1]))):

        def within(reading_s: float, disks: Sequence[ShardOffer] = disks) -> Cover | None:
            limits = {disk.name: min(total_bytes, int(reading_s / (_s_per_byte(disk) * kind.read_share))) for disk in disks}
            cover = find(limits)[1]
            return cover if cover is not None and has_room(problem, cover) else None

        found = _least(within, total_bytes * kind.read_share * _s_per_byte(disks[-1]))
        if found is not None:
            yield found
            slower = within(step_ps_with_reading(problem, found) / PICOSECONDS)  # as long as the step takes anyway
            yield from [slower] if slower is not None else []


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
        streamed = streamed_part(problem, run) or NOTHING_STREAMED
        ps_per_byte = run.shard.stream_ps_per_byte
        passing += streamed.passing_ps(run.step_ps, ps_per_byte)
        longest = max(longest, round(streamed.size_bytes * ps_per_byte))
    return max(passing, longest)


def has_room(problem: Problem, cover: Cover) -> bool:
    """For whole layers, too."""
    return all(streamed_part(problem, run) is not None for run in cover)


def streamed_part(problem: Problem, run: Run) -> StreamedPart | None:
    """What of the run does not stay; None if there is no room even so."""
    if problem.streaming is None:
        return NOTHING_STREAMED
    demand, kv = problem.demand, problem.kv
    cache_bytes = demand.state_bytes_per_token(run.units) * kv.block_tokens * kv.least_blocks(demand.context_length)
    part = problem.streaming.part_of(run.units, run.shard.offer.room_for(demand, run.units) - cache_bytes)
    return None if part is None else part.with_misses(run.shard.offer.expert_misses)
