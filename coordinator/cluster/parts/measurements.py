"""Measured steps: what people see, and what the next plan counts with."""

from dairllm.coordinator.cluster.actions import EventKind
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.descriptions import describe_recovery
from dairllm.coordinator.cluster.events import AnswersRecovered, HeartbeatReceived, StepMeasured
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.planner import format_rate


class Measurements(MachinePart):
    def on_step(self, event: StepMeasured) -> None:
        state, shard, step_s = self._state, event.shard, event.step_s
        self._steps.measure(event.epoch, shard, step_s)
        assert state.active is not None
        assert state.model is not None
        member = self._members.get(shard) if shard in state.active.plan.placement and shard is not None else None
        if member is None or step_s <= 0:
            return
        read_bytes = state.model.bytes_read_per_step(state.active.plan.placement[member.name], event.rows)
        before_s = member.speed.told_s or member.speed.expected_s
        if read_bytes and member.speed.measure(step_s / read_bytes, self._now_s):
            self._better.expect()
            if member.speed.is_worth_telling():
                self._tell_speed(member, before_s)

    def on_beat(self, event: HeartbeatReceived) -> None:
        self._members.beat(event)
        member, plan = self._members[event.name], self._state.plan
        missed_share = next((stage.missed_share for stage in plan.stages if stage.shard == event.name), 0.0) if plan else 0.0
        if member.disk.measure(event.usage, self._now_s) | member.misses.measure(event.usage, missed_share):
            self._better.expect()

    def _tell_speed(self, member: Member, before_s: float) -> None:
        words = f"shard {member.name} computes at {format_rate(member.speed.used_s)}, {format_rate(before_s)} were expected"
        self._journal.tell(EventKind.SPEED_CHANGED, member.name, words)

    def on_recovered(self, event: AnswersRecovered) -> None:
        """After a planned switch as after a loss, which is what else is told of."""
        self._journal.tell(EventKind.RESUMED, "", describe_recovery(event), event.duration_s)

    def forget_old_speeds(self) -> None:
        for member in self._members:
            if self._state.cares_for(member.name):
                continue
            for estimate in (member.speed, member.disk.speed):
                if estimate.expire(self._now_s):
                    self._better.expect()
