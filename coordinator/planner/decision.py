"""The way in: who can compute the model at all, the search, and whether what it finds is worth a move."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial

from dairllm.coordinator.planner.balancing import balance
from dairllm.coordinator.planner.demand import KvDemand, ModelDemand, ShardOffer
from dairllm.coordinator.planner.explanations import explain_kept, explain_unused
from dairllm.coordinator.planner.kinds_of_streaming import ExpertsInPlaces, StreamedLayers, Streaming
from dairllm.coordinator.planner.lack import explain_lack
from dairllm.coordinator.planner.plan import Infeasible, LeftOut, Plan
from dairllm.coordinator.planner.problem import HYSTERESIS, URGENT_SURCHARGE, Cover, Problem, pose_problem, with_a_layer_each
from dairllm.coordinator.planner.search import find_cover
from dairllm.coordinator.planner.stages import keep, plan_of
from dairllm.coordinator.planner.streaming import find_streamed
from dairllm.mesh.words import counted


def make_plan(
    demand: ModelDemand,
    offers: Sequence[ShardOffer],
    *,
    min_shards: int = 1,
    previous: Plan | None = None,
    kv: KvDemand | None = None,
    held: Mapping[str, Set[int]] | None = None,
    urgent: bool = False,
    least_gain: float = HYSTERESIS,
) -> Plan | Infeasible:
    """Plan the model onto the shards.

    offers: one per shard, names unique. min_shards: at least that many shards get units. previous: the plan before, also if some
    of its shards are gone. held: units that shards have in memory, by name. urgent: no answers come, so move as little as possible.
    least_gain: by how much faster than the previous plan another must be.
    """
    able, left_out = _split_by_ability(demand.features, demand.block_formats, offers)
    if len(able) < min_shards or not able:
        return _too_few(len(able), min_shards, left_out)
    if min_shards > demand.num_units:
        return Infeasible(f"the model has {demand.num_units} parts, too few for {min_shards} shards", 0, left_out)
    placement, surcharge = previous.placement if previous else {}, URGENT_SURCHARGE if urgent else HYSTERESIS
    problem = pose_problem(demand, kv or KvDemand(), able, min_shards, placement, held or {}, surcharge)
    problem, cover = _find(problem)
    if cover is None:
        pose = partial(pose_problem, demand, kv or KvDemand(), min_shards=min_shards, placement=placement, held=held or {})
        found = _find_streamed(demand, able, partial(pose, move_surcharge=surcharge))
        if found is None:
            return explain_lack(problem, left_out)
        problem, cover, unable = found
        left_out += unable
    plan = plan_of(problem, balance(problem, cover) if problem.streaming is None else cover, cover)
    kept = keep(problem, previous) if previous else None
    if kept and (urgent or kept.predicted_step_s <= plan.predicted_step_s * (1 + least_gain)):
        return replace(kept, left_out=left_out + explain_kept(problem, kept, plan, least_gain))
    return replace(plan, left_out=left_out + explain_unused(problem, plan))


def _find(problem: Problem) -> tuple[Problem, Cover | None]:
    """Shards that must have a part are not content with embedding or head alone, unless there is no other way."""
    if 1 < problem.min_shards <= problem.demand.num_layers:
        narrower = with_a_layer_each(problem)
        cover = find_cover(narrower)
        if cover is not None:
            return narrower, cover
    return problem, find_cover(problem)


def _find_streamed(
    demand: ModelDemand, able: Sequence[ShardOffer], pose: Callable[..., Problem]
) -> tuple[Problem, Cover, tuple[LeftOut, ...]] | None:
    """By experts that are chosen, if the rest of the model has room, else by whole layers; and who can do neither."""
    for kind in (ExpertsInPlaces(demand), StreamedLayers(demand)):
        offers, unable = _split_by_ability(frozenset({kind.feature}), frozenset(), able)

        def find(limits: Mapping[str, int], kind: Streaming = kind, offers: Sequence[ShardOffer] = offers) -> tuple[Problem, Cover | None]:
            return _find(pose(offers=offers, streaming=kind, streamed_bytes=limits))

        found = find_streamed(kind, offers, find) if offers and any(kind.sizes) else None
        if found is not None:
            return (*found, unable)
    return None


def _split_by_ability(
    features: Set[str], block_formats: Set[str], offers: Iterable[ShardOffer]
) -> tuple[list[ShardOffer], tuple[LeftOut, ...]]:
    able, left_out = [], []
    for offer in sorted(offers, key=lambda offer: offer.name):
        lacking, missing = sorted(features - offer.features), sorted(block_formats - offer.block_formats)
        if lacking:
            left_out.append(LeftOut(offer.name, f"cannot do {', '.join(lacking)}"))
        elif missing:
            left_out.append(LeftOut(offer.name, f"cannot compute with {', '.join(missing)}"))
        else:
            able.append(offer)
    return able, tuple(left_out)


def _too_few(count: int, min_shards: int, left_out: tuple[LeftOut, ...]) -> Infeasible:
    unable = f" ({'; '.join(f'{name} {reason}' for name, reason in left_out[:3])})" if left_out else ""
    return Infeasible(f"{counted(count, 'shard')} of {max(1, min_shards)}{unable}", 0, left_out)
