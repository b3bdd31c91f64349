"""What the cluster says about itself, in plain words."""

from collections.abc import Mapping

from dairllm.coordinator.cluster.events import AnswersRecovered
from dairllm.coordinator.cluster.identities import Epoch
from dairllm.coordinator.cluster.shard_reports import ShardHello
from dairllm.coordinator.planner import ModelDemand, Plan, Stage, format_bytes, format_speed
from dairllm.mesh.words import counted


def describe_join(hello: ShardHello) -> str:
    capabilities = hello.capabilities
    room = format_bytes(capabilities.memory_budget_bytes - capabilities.reserved_bytes)
    threads = counted(capabilities.num_threads, "thread")
    held = f"; it holds {counted(len(hello.held.units), 'part')} of a model" if hello.held.units else ""
    return f"shard {hello.name} joined: {room} for the model, {threads}, {capabilities.isa}{held}"


def describe_units(units: range, num_layers: int) -> str:
    """'layers 0-11', 'layer 3 + head', 'embedding': the embedding is named only where it stands alone or with the head."""
    first, last = max(units.start, 1) - 1, min(units.stop, num_layers + 1) - 2
    layers = [f"layers {first}-{last}" if last > first else f"layer {first}"] if last >= first else []
    embedding = ["embedding"] if units.start == 0 and not layers else []
    head = ["head"] if units.stop == num_layers + 2 else []
    return " + ".join([*embedding, *layers, *head])


def describe_plan(epoch: Epoch, plan: Plan, model: ModelDemand) -> str:
    stages = ", ".join(f"{stage.shard} {describe_units(stage.units, model.num_layers)}" for stage in plan.stages)
    expected = f"expected {format_speed(plan.predicted_decode_tok_s)} tok/s"
    if plan.in_memory is None:
        return f"plan {epoch}: {stages}; {expected}"
    streams = f"streams {format_bytes(plan.streamed_bytes)} of {format_bytes(model.size_bytes)} a token"
    more = f"{format_bytes(plan.in_memory.missing_bytes)} more memory would give {format_speed(1 / plan.in_memory.step_s)}"
    few = "".join(_describe_cliff(stage) for stage in plan.stages if stage.is_below_cliff)
    return f"plan {epoch}: {stages}; {streams}; {expected}; {more}{few}"


def _describe_cliff(stage: Stage) -> str:
    has = f"{stage.shard} has room for {stage.expert_places} of the {stage.experts_touched} experts that a token uses"
    return f"; {has}: with fewer than all of them nearly every one is read anew"


def describe_moves(before: Mapping[str, range], after: Mapping[str, range]) -> str:
    """'3 parts moved from A to B, 1 from A to C', '' if nothing moved."""
    owner_before = {unit: shard for shard, units in before.items() for unit in units}
    counts: dict[tuple[str, str], int] = {}
    for shard, units in after.items():
        for unit in units:
            source = owner_before.get(unit, shard)
            if source != shard:
                counts[source, shard] = counts.get((source, shard), 0) + 1
    moves = [f"{counted(count, 'part')} from {source} to {target}" for (source, target), count in counts.items()]
    return f"moved {', '.join(moves)}" if moves else ""


def describe_recovery(event: AnswersRecovered) -> str:
    count = event.num_kept + event.num_replayed + event.num_restarted
    ways = ((event.num_kept, "at once"), (event.num_replayed, "after a replay"), (event.num_restarted, "from their beginning"))
    how = ", ".join(f"{number} {way}" for number, way in ways if number)
    return f"{counted(count, 'answer')} went on after {event.duration_s:.2f} s: {how}; {event.share:.0%} of the work was done again"
