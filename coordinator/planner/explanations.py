"""Why a shard has no part in a plan: in words, with the figures."""

from dairllm.coordinator.planner.amounts import format_bytes, format_speed
from dairllm.coordinator.planner.plan import LeftOut, Plan
from dairllm.coordinator.planner.problem import HYSTERESIS, PICOSECONDS, Problem, ShardCosts, pose_problem, step_ps_of
from dairllm.coordinator.planner.search import EXACT_SHARDS, find_cover

EXPLAINED_SHARDS = 16
"""For so many unused shards of a large cluster it is worked out what they would do to the answers."""
NOTICEABLE = 0.005
"""Gains below it are none, for people."""


def explain_unused(problem: Problem, plan: Plan) -> tuple[LeftOut, ...]:
    """Why each shard without units has none; with numbers where an exact search is cheap."""
    used = [shard for shard in problem.shards if shard.name in plan.placement]
    unused = [shard for shard in problem.shards if shard.name not in plan.placement]
    explained = EXPLAINED_SHARDS if len(used) >= EXACT_SHARDS else EXACT_SHARDS
    return tuple(LeftOut(shard.name, _why_unused(problem, shard, used, plan, i < explained)) for i, shard in enumerate(unused))


def explain_kept(problem: Problem, kept: Plan, better: Plan, least_gain: float) -> tuple[LeftOut, ...]:
    """Why each shard without units has none in a plan that stays although `better` is possible."""
    in_better = {name for name in better.placement if kept.predicted_step_s > better.predicted_step_s * (1 + NOTICEABLE)}
    reason = _comparison(kept.predicted_step_s, better.predicted_step_s, least_gain)
    others = (left for left in explain_unused(problem, kept) if left.shard not in in_better)
    unused = (shard.name for shard in problem.shards if shard.name in in_better and shard.name not in kept.placement)
    return (*(LeftOut(name, reason) for name in unused), *others)


def _why_unused(problem: Problem, shard: ShardCosts, used: list[ShardCosts], plan: Plan, explained: bool) -> str:
    if all(stop == start for start, stop in enumerate(shard.furthest)):
        return f"has room for {format_bytes(max(0, shard.room_bytes))}, which hold no part of the model"
    with_it_s = _step_with(problem, shard, used, plan) if explained else None
    if with_it_s is None:
        return f"is not needed: {len(used)} machine{'s are' if len(used) != 1 else ' is'} faster without it"
    return _comparison(plan.predicted_step_s, with_it_s)


def _step_with(problem: Problem, shard: ShardCosts, used: list[ShardCosts], plan: Plan) -> float | None:
    """About the least step in which this shard has a part beside those of the plan, wherever the layers are now."""
    if len(used) < EXACT_SHARDS:
        offers = sorted((s.offer for s in [*used, shard]), key=lambda offer: offer.name)
        cover = find_cover(pose_problem(problem.demand, problem.kv, offers, len(offers), {}, {}, 0.0))
        return step_ps_of(cover) / PICOSECONDS if cover else None
    by_name = {s.name: s for s in used}
    changes = (_change_by(shard, by_name[stage.shard], stage.units) for stage in plan.stages)
    least = min((change for change in changes if change is not None), default=None)
    return plan.predicted_step_s + least / PICOSECONDS if least is not None else None


def _change_by(shard: ShardCosts, owner: ShardCosts, units: range) -> int | None:
    """What a step gains or loses at least, in picoseconds, if the shard takes the last of these units; None if it cannot."""
    starts = (start for start in range(units.start + 1, units.stop) if shard.furthest[start] >= units.stop)
    return min((shard.step_ps(start, units.stop) + owner.hop_ps - owner.step_ps(start, units.stop) for start in starts), default=None)


def _comparison(without_s: float, with_it_s: float, least_gain: float = HYSTERESIS) -> str:
    gain = without_s / with_it_s - 1
    figures = f"expected {format_speed(1 / with_it_s)} tok/s with it, {format_speed(1 / without_s)} without"
    if abs(gain) < NOTICEABLE:
        return f"would not make the answers faster: {figures}"
    if gain < 0:
        return f"would slow the answers down: {figures}"
    return f"would gain less than the {least_gain:.0%} for which layers are moved: {figures}"
