"""Why there is no plan: what the model needs, what each machine offers and lacks, and what would help."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dairllm.coordinator.planner.amounts import format_bytes, format_room
from dairllm.coordinator.planner.plan import Infeasible, LeftOut
from dairllm.coordinator.planner.problem import Problem, ShardCosts, pose_problem
from dairllm.coordinator.planner.search import greedy_orders
from dairllm.mesh.words import counted

NAMED_SHARDS = 8
"""Of so many machines it is said what each offers."""
SHORTEST_CONTEXT = 256
"""A shorter one is no advice."""


def explain_lack(problem: Problem, left_out: tuple[LeftOut, ...]) -> Infeasible:
    """Why there is no cover, and how many bytes would help."""
    needed, offered = problem.total_need_bytes, sum(max(0, shard.room_bytes) for shard in problem.shards)
    one = len(problem.shards) == 1
    count = f"{counted(len(problem.shards), 'shard')} offer{'s' if one else ''}"
    numbers = f"the model needs {format_bytes(needed)}, {count} {format_bytes(offered)}{_each_offers(problem)}"
    if needed > offered:
        return _missing(problem, needed - offered, f"missing ({numbers})", left_out)
    missing = problem.need_bytes[-1] - problem.need_bytes[_reach(problem)]
    if missing == 0:
        return Infeasible(f"no {problem.min_shards} of the shards have room for a part of the model each ({numbers})", 0, left_out)
    return _missing(problem, missing, f"missing in one piece ({numbers})", left_out)


def _missing(problem: Problem, missing_bytes: int, what: str, left_out: tuple[LeftOut, ...]) -> Infeasible:
    advice = " or ".join(_advice(problem))
    return Infeasible(f"{format_bytes(missing_bytes)} of memory are {what}; what helps: {advice}", missing_bytes, left_out)


def _each_offers(problem: Problem) -> str:
    named = [_offers(problem, shard) for shard in problem.shards[:NAMED_SHARDS]]
    others = len(problem.shards) - len(named)
    return f": {', '.join(named)}{f' and {others} more' if others else ''}"


def _offers(problem: Problem, shard: ShardCosts) -> str:
    """'A 3.0 GiB of 4.0 GiB', and how much it lacks for its least part."""
    least_bytes = min(after - before for before, after in zip(problem.need_bytes, problem.need_bytes[1:], strict=False))
    words = f"{shard.name} {format_room(max(0, shard.room_bytes))} of {format_room(shard.offer.memory_budget_bytes)}"
    if any(stop > start for start, stop in enumerate(shard.furthest)):
        return words
    return f"{words} (no part has room there: {format_bytes(max(1, least_bytes - shard.room_bytes))} too little)"


def _advice(problem: Problem) -> Iterator[str]:
    yield "more --memory (`dairllm set NAME --memory SIZE`)"
    context_length = _longest_context(problem)
    if context_length:
        yield f"--context-length {context_length}"
    if problem.demand.kv_cache == "F32":
        yield "--kv-cache F16"
    yield "a further machine"


def _longest_context(problem: Problem) -> int:
    """With which the model has room; 0 if there is none that is worth to be named."""
    if len(problem.shards) > NAMED_SHARDS:
        return 0
    block_tokens = problem.kv.block_tokens
    fits, fails = SHORTEST_CONTEXT // block_tokens - 1, problem.demand.context_length // block_tokens + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _fits_with(problem, middle * block_tokens) else (fits, middle)
    return fits * block_tokens if fits * block_tokens >= SHORTEST_CONTEXT else 0


def _fits_with(problem: Problem, context_length: int) -> bool:
    demand, offers = replace(problem.demand, context_length=context_length), [shard.offer for shard in problem.shards]
    other = pose_problem(demand, problem.kv, offers, problem.min_shards, {}, {}, 0.0)
    return _reach(other) == other.num_units


def _reach(problem: Problem) -> int:
    """How many units the greedy fills can place."""
    return max(_reach_of(order, problem.num_units) for order in greedy_orders(problem))


def _reach_of(order: Iterable[ShardCosts], num_units: int) -> int:
    reached = 0
    for shard in order:
        if reached < num_units:
            reached = shard.furthest[reached]
    return reached
