"""What holds in the cluster machine between any two events."""

from itertools import pairwise

from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Deployment
from dairllm.coordinator.cluster.books.members import Members
from dairllm.coordinator.cluster.books.state import ClusterState
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.phases import ANSWERING, STAGES_IN_USE, WITH_CANDIDATE, Phase
from dairllm.coordinator.planner import ModelDemand


def check_books(books: Books) -> None:
    """Raises AssertionError."""
    config, state, members, timer = books.config, books.state, books.members, books.timer
    leases = [member.lease for member in members]
    assert len(set(leases)) == len(leases), "one shard per lease"
    assert (state.candidate is not None) == (state.phase in WITH_CANDIDATE), "a candidate is being prepared"
    assert (state.reason == "") == (state.phase in ANSWERING), "not answering has a reason"
    assert state.missing_bytes == 0 or state.phase is Phase.WAITING
    assert state.phase is not Phase.RETRYING or (timer.due_s is not None and timer.is_urgent), "a pause ends"
    assert state.phase is Phase.RETRYING or not timer.is_urgent, "nothing is urgent but the end of a pause"
    assert bool(state.unactivated) == (state.phase is Phase.ACTIVATING), "a switch waits for someone"
    assert books.pause.is_switch <= (books.pause.from_s is not None), "a switch is a pause"
    _check_deployments(config, state, members)


def _check_deployments(config: ClusterConfig, state: ClusterState, members: Members) -> None:
    model, active, candidate = state.model, state.active, state.candidate
    if active and state.phase in STAGES_IN_USE:
        assert model is not None
        _check_plan(config, model, active, members, 1 if state.has_served else config.min_shards)
    if candidate:
        assert model is not None
        assert active is None or active.epoch < candidate.epoch <= state.newest_epoch, "epochs grow"
        _check_plan(config, model, candidate.deployment, members, 1 if state.has_served else config.min_shards)
        assert candidate.ready <= set(candidate.assigned) <= set(candidate.plan.placement)
        assert not candidate.ready & set(candidate.retry_at_s)
        if state.phase is Phase.PREPARING:
            assert candidate.is_waiting, "a prepared plan is used"
            assert not any(candidate.assigned.values()), "nothing is freed that is in use"
    for stage in active.plan.stages if active and state.phase in ANSWERING else ():
        assert members[stage.shard].held.issuperset(stage.units), "who serves has what it needs"


def _check_plan(config: ClusterConfig, model: ModelDemand, deployment: Deployment, members: Members, least_shards: int) -> None:
    plan = deployment.plan
    assert (plan.stages[0].units.start, plan.stages[-1].units.stop) == (0, model.num_units), "every unit"
    assert all(a.units.stop == b.units.start for a, b in pairwise(plan.stages)), "once"
    assert len(plan.placement) == len(plan.stages) >= least_shards
    assert plan.num_kv_blocks * config.kv_block_tokens >= model.context_length, "room for one context"
    for stage, holder in zip(plan.stages, deployment.holders, strict=True):
        assert stage.shard == holder.name
        assert members.lives(holder), "only members have a part, as they were"
        assert stage.units, "no empty stage"
        assert not members[stage.shard].has_failed, "a failed shard has no part"
