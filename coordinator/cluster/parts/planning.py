"""When a plan is made, and whether it is worth a change."""

from dataclasses import replace

from dairllm.coordinator.cluster.actions import EventKind
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.events import ModelRegistered
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.plan_search import PlanSearch
from dairllm.coordinator.cluster.parts.preparation import Preparation
from dairllm.coordinator.cluster.parts.switch import Switch
from dairllm.coordinator.cluster.phases import ANSWERING, Phase
from dairllm.coordinator.planner import HYSTERESIS, Infeasible, ModelDemand, Plan


class Planning(MachinePart):
    def __init__(self, books: Books, idle: IdleShards, search: PlanSearch, switch: Switch, preparation: Preparation) -> None:
        super().__init__(books)
        self._idle = idle
        self._search = search
        self._switch = switch
        self._preparation = preparation

    # -- when

    def schedule(self, at_s: float, urgent: bool = False) -> None:
        """urgent: no ring is open, and one is needed with a new epoch, whatever the planner says. Nothing else cuts a pause short."""
        if urgent:
            self._timer.demand(at_s)
        else:
            self._timer.schedule(at_s)

    def settle(self) -> None:
        """A shard is new: wait a little for shards that start together; for those with parts of the model, a little more."""
        state = self._state
        if state.phase is Phase.WAITING and state.model:
            state.enter(Phase.WAITING, "shards are joining", self._now_s)
        settled_s = self._now_s + self._config.settle_s
        if state.phase is Phase.WAITING and state.active is None and state.model and any(m.held for m in self._members):
            is_covered = len(frozenset[int]().union(*(m.held for m in self._members))) == state.model.num_units
            self._timer.settle_held(settled_s, self._now_s, self._config.held_settle_s, is_covered)
        else:
            self.schedule(settled_s)

    def plan_if_due(self) -> None:
        phase = self._state.phase
        if self._timer.is_due(self._now_s) and (self._timer.is_urgent or phase in {Phase.WAITING, *ANSWERING}):
            self._replan()
        elif phase is Phase.SERVING and self._better.is_due(self._now_s, self._config.better_after_s) and self._may_retry:
            self._look_for_better()

    @property
    def _may_retry(self) -> bool:
        """Whether the pause after plans that could not be prepared beside is over."""
        return self._now_s >= self._retries_beside.not_before_s

    # -- what for

    def on_model(self, event: ModelRegistered) -> None:
        model = event.model
        limit = self._config.context_length or model.context_length
        reason = f"the model {model.name} is served from now on"
        self._switch.close_ring(reason)
        self._preparation.drop(reason)
        self._state.serve_model(replace(model, context_length=min(limit, model.context_length)))
        self._timer.begin_anew()
        self._cache.clear()
        for member in self._members:
            member.held = member.hello.held.units if member.hello.held.model_digest == model.digest else frozenset()
        self._wait(Infeasible("shards are joining" if len(self._members) else "no shard has joined yet"))
        if len(self._members):
            self.settle()

    # -- what then

    def _replan(self) -> None:
        state = self._state
        self._timer.stop()
        self._better.note_looked()
        if state.model is None:
            return
        new = self._better.note_considered(self._search.choosable())
        if state.phase in ANSWERING:
            self._replan_beside(state.model, new)
        else:
            self._replan_closed(state.model)

    def _look_for_better(self) -> None:
        """Nothing but speed speaks for another plan: its gain has to be more than what measurements differ by anyway, and to last."""
        state, config, better = self._state, self._config, self._better
        assert state.model is not None
        assert state.active is not None
        outcome = self._search.find(state.model, state.active.plan, least_gain=self._gain_for_speed())
        is_found = isinstance(outcome, Plan) and not outcome.same_work_as(state.active.plan)
        num_needed = 1 if better.is_free else config.better_looks
        if better.note_looked_for(is_found, self._now_s + config.better_look_s, num_needed):
            self._take_beside(state.model, outcome, is_for_speed=True)
        elif not is_found and isinstance(outcome, Plan):
            self._state.renew(outcome)
            self._idle.leave_out(outcome)

    def _gain_for_speed(self) -> float:
        """What a plan for speed alone has to gain now."""
        active, better = self._state.active, self._better
        if active is None or better.is_free:
            return HYSTERESIS
        spread = max((self._members[name].speed.spread for name in active.plan.placement if name in self._members), default=0.0)
        return max(HYSTERESIS * 2.0 ** better.recent(self._now_s, self._config.better_memory_s), spread)

    def _replan_closed(self, model: ModelDemand) -> None:
        self._preparation.drop("another plan is made")
        outcome = self._search.find_while_closed(model)
        if isinstance(outcome, Infeasible):
            self._wait(outcome)
        else:
            self._better.note_change()
            self._preparation.start(outcome, Phase.LOADING, "the shards load their layers")

    def _replan_beside(self, model: ModelDemand, new: frozenset[str]) -> None:
        """Answers come. Prepare another plan if it is worth it, or if the active one is not wanted any more.

        new: shards that could not have had a part before. If they have none now, all that speaks for another is speed.
        """
        active = self._state.active
        assert active is not None
        outcome = self._search.find(model, active.plan) if new else None
        is_for_speed = outcome is None or (isinstance(outcome, Plan) and not new & outcome.placement.keys())
        if outcome is None or is_for_speed:
            outcome = self._search.find(model, active.plan, least_gain=self._gain_for_speed())
        self._take_beside(model, outcome, is_for_speed)

    def _take_beside(self, model: ModelDemand, outcome: Plan | Infeasible, is_for_speed: bool) -> None:
        state, better = self._state, self._better
        assert state.active is not None
        if isinstance(outcome, Infeasible):
            self._switch.close_ring(outcome.reason)
            self._preparation.drop(outcome.reason)
            self._wait(outcome)
        elif outcome.same_work_as(state.active.plan):
            self._preparation.stop("the plan that serves is good enough")
            state.renew(outcome)
            self._idle.leave_out(outcome)
        elif not self._may_retry:
            self.schedule(self._retries_beside.not_before_s)
        elif not self._is_candidate_still_good(model):
            self._preparation.drop("another plan is better")
            self._preparation.start(outcome, Phase.PREPARING, "")
            if is_for_speed:
                better.begin(self._now_s, self._config.better_pause_s(better.recent(self._now_s, self._config.better_memory_s) + 1))
            else:
                better.note_change()

    def _is_candidate_still_good(self, model: ModelDemand) -> bool:
        candidate = self._state.candidate
        if candidate is None:
            return False
        outcome = self._search.find(model, candidate.plan)
        return isinstance(outcome, Plan) and outcome.same_work_as(candidate.plan)

    def _wait(self, lack: Infeasible) -> None:
        state = self._state
        failed = [f"{m.name} failed: {m.note}" for m in self._members if m.has_failed]
        reason = "; ".join([lack.reason, *failed])
        if state.phase is not Phase.WAITING or reason != state.reason:
            self._journal.tell(EventKind.WAITING, "", f"waiting: {reason}")
        state.enter(Phase.WAITING, reason, self._now_s, lack.missing_bytes)
        reasons = dict(lack.left_out)
        for member in self._members:
            member.take_note(reasons.get(member.name, ""))
            self._idle.let_go(member)
