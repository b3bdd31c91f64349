"""Level 3, from a cover to a plan: its stages with their predictions, and the KV blocks for which there is memory on all of them."""

from itertools import pairwise

from dairllm.coordinator.planner.kinds_of_streaming import StreamedPart
from dairllm.coordinator.planner.plan import InMemory, Plan, Stage
from dairllm.coordinator.planner.problem import NEVER, PICOSECONDS, Cover, Problem, Run, step_ps_of
from dairllm.coordinator.planner.streaming import step_ps_with_reading, streamed_part


def plan_of(problem: Problem, cover: Cover, fastest: Cover) -> Plan:
    streamed = [_part(problem, run) for run in cover]
    beside = [_blocks_beside(problem, run, part) for run, part in zip(cover, streamed, strict=True)]
    num_blocks = min([problem.kv.most_blocks(problem.demand.context_length), *beside])
    stages = tuple(_stage(problem, run, part, num_blocks) for run, part in zip(cover, streamed, strict=True))
    step_s, fastest_s = (step_ps_with_reading(problem, one) / PICOSECONDS for one in (cover, fastest))
    in_memory = _in_memory(problem, cover) if any(part.size_bytes for part in streamed) else None
    return Plan(stages, num_blocks, step_s, min(step_s, fastest_s), in_memory=in_memory)


def _in_memory(problem: Problem, cover: Cover) -> InMemory:
    demand, least_tokens = problem.demand, problem.kv.block_tokens * problem.kv.least_blocks(problem.demand.context_length)
    needed = [demand.weights_bytes(run.units) + demand.state_bytes_per_token(run.units) * least_tokens for run in cover]
    rooms = [run.shard.offer.room_for(demand, run.units) for run in cover]
    missing_bytes = sum(max(0, need - room) for need, room in zip(needed, rooms, strict=True))
    return InMemory(missing_bytes, step_ps_of(cover) / PICOSECONDS)


def keep(problem: Problem, previous: Plan) -> Plan | None:
    """The previous plan with today's numbers, or None if it is not possible any more."""
    by_name = {shard.name: shard for shard in problem.shards}
    if len(previous.stages) < problem.min_shards or any(stage.shard not in by_name for stage in previous.stages):
        return None
    cover = [Run(by_name[stage.shard], stage.units.start, stage.units.stop) for stage in previous.stages]
    joined = all(a.stop == b.start for a, b in pairwise(cover)) and cover[0].start == 0 and cover[-1].stop == problem.num_units
    if not joined or any(run.shard.furthest[run.start] < run.stop or streamed_part(problem, run) is None for run in cover):
        return None
    return plan_of(problem, cover, cover)


def _block_bytes(problem: Problem, units: range) -> int:
    return problem.demand.state_bytes_per_token(units) * problem.kv.block_tokens


def _part(problem: Problem, run: Run) -> StreamedPart:
    whole = StreamedPart(problem.demand.weights_bytes(run.units))
    return whole if problem.streaming is None else streamed_part(problem, run) or whole


def _blocks_beside(problem: Problem, run: Run, part: StreamedPart) -> int:
    block_bytes = _block_bytes(problem, run.units)
    room_bytes = run.shard.offer.room_for(problem.demand, run.units) - part.weights_bytes
    return room_bytes // block_bytes if block_bytes else NEVER


def _stage(problem: Problem, run: Run, part: StreamedPart, num_blocks: int) -> Stage:
    return Stage(
        run.shard.name,
        run.units,
        part.weights_bytes,
        _block_bytes(problem, run.units) * num_blocks,
        run.step_ps / PICOSECONDS,
        part.layers,
        part.size_bytes,
        part.expert_places,
        part.num_touched,
        part.missed_share,
    )
