"""Shards that hold their leases and do not do their part: noticed by what they say of their work, and by what their neighbours say.

A frame goes from stage to stage in order, and each stage counts those that it has received, computed and sent. So a frame that does not
come back lies behind the last stage that has sent it. Who says nothing of its frames has done nothing. What is slow does not stand still:
time alone blames nobody, but heartbeats which say that nothing has moved, or a frame that takes many times what is expected of its shard.
"""

from itertools import pairwise
from typing import NamedTuple

from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.deployments import Candidate
from dairllm.coordinator.cluster.books.member import Member
from dairllm.coordinator.cluster.events import FramesAwaited, HeartbeatReceived, MemberAtFault
from dairllm.coordinator.cluster.parts.faults import Faults
from dairllm.coordinator.cluster.parts.machine_part import MachinePart
from dairllm.coordinator.cluster.parts.plan_search import PlanSearch
from dairllm.coordinator.cluster.shard_reports import ShardWork
from dairllm.coordinator.planner import Infeasible
from dairllm.mesh.peers import COORDINATOR_NAME

_CPU_STEP_US = 1000
"""Processor time that counts as a movement."""
_SLOW_DISK_S_PER_BYTE = 1e-7
"""10 MB/s, as over a slow network. Whether a shard reads at all shows in its work, as whether it computes does."""


class FrameLies(NamedTuple):
    """Which member keeps a frame from going on, and how. may_take_s: before it counts as standing still.

    unless: whose word is against it.
    """

    name: str
    reason: str
    may_take_s: float
    unless: str = ""


class Standstills(MachinePart):
    def __init__(self, books: Books, search: PlanSearch, faults: Faults) -> None:
        super().__init__(books)
        self._search = search
        self._faults = faults

    # -- the thread that computes

    def on_beat(self, event: HeartbeatReceived) -> None:
        member, work = self._members[event.name], event.work
        progress = (work.done, work.cpu_us // _CPU_STEP_US) if work and member.is_computing else None
        member.computing.see(progress, self._now_s, member.num_beats)
        stood_s = self._now_s - member.computing.from_s
        if progress and self._lasts(member.computing.from_beat, member, stood_s, self._config.standstill_s):
            self._blame(member, f"lives, but has computed nothing for {stood_s:.1f} s, with work to do")

    def _lasts(self, from_beat: int, member: Member, stood_s: float, may_take_s: float) -> bool:
        return stood_s >= may_take_s and member.num_beats - from_beat >= self._config.standstill_beats

    def _blame(self, member: Member, reason: str) -> None:
        self._faults.on_fault(MemberAtFault(member.name, member.boot_id, reason, is_believed=True))

    # -- frames that do not come back

    def on_awaited(self, event: FramesAwaited) -> None:
        number = event.num_back + 1
        lies = self._find(number, event.most_work) if event.most_work > 0 else None
        member = self._members.get(lies.name) if lies else None
        if lies is None or member is None:
            self._awaited.see(None, self._now_s, 0)
            return
        self._awaited.see((event.epoch, number, lies.name, lies.reason), self._now_s, member.num_beats)
        stood_s = self._now_s - self._awaited.from_s
        if self._lasts(self._awaited.from_beat, member, stood_s, lies.may_take_s):
            self._settle(lies, stood_s)

    def _settle(self, lies: FrameLies, stood_s: float) -> None:
        """Where one word is against another, it is who has had such disputes before."""
        parties = [member for name in (lies.name, lies.unless) if (member := self._members.get(name)) is not None]
        for member in parties if len(parties) > 1 else ():
            member.num_disputes += 1
        culprit = max(parties, key=lambda member: member.num_disputes)
        if culprit.name == lies.name:
            self._blame(culprit, f"{lies.reason} for {stood_s:.1f} s")
        else:
            self._blame(culprit, f"says that it has sent a frame, of which shard {lies.name} has had nothing for {stood_s:.1f} s")

    def _find(self, number: int, most_work: float) -> FrameLies | None:
        """The number-th frame of the epoch has been sent to the first stage."""
        active = self._state.active
        assert active is not None
        names, before = list(active.plan.placement), COORDINATOR_NAME
        for name, following in pairwise((*names, names[-1])):
            member = self._members.get(name)
            if member is None:
                return None
            work = member.work if member.work and member.work.epoch == active.epoch else None
            lies = self._lies_at(member, work, number, most_work, before)
            if lies is not None:
                return lies
            assert work is not None
            if work.sent_frames < number:
                return FrameLies(following, f"has taken no frame of shard {name}", self._unheard_s(most_work), name)
            before = name
        return FrameLies(names[-1], "has sent no result, though it says so,", self._unheard_s(most_work))

    def _lies_at(self, member: Member, work: ShardWork | None, number: int, most_work: float, before: str) -> FrameLies | None:
        config = self._config
        if work is None:
            return FrameLies(member.name, "lives, but has said nothing of the frames that it was sent", config.standstill_s)
        if work.received_frames < number:
            return FrameLies(member.name, f"has not received a frame that {before} has sent", self._unheard_s(most_work), before)
        if work.computed_frames < number:
            may_take_s = config.unheard_s + config.frame_patience * self._expected_s(member, most_work)
            return FrameLies(member.name, "has been computing one frame", may_take_s)
        return None

    def _unheard_s(self, most_work: float) -> float:
        return self._config.unheard_s + self._config.unheard_row_s * most_work

    def _expected_s(self, member: Member, most_work: float) -> float:
        """What its part takes if every row is computed alone, and what is streamed comes slowly."""
        state = self._state
        assert state.model is not None
        assert state.active is not None
        stage = next(stage for stage in state.active.plan.stages if stage.shard == member.name)
        read_bytes = state.model.bytes_read_per_step(stage.units)
        return most_work * read_bytes * member.speed.planned_s(1.0) + stage.streamed_bytes * _SLOW_DISK_S_PER_BYTE

    # -- what is loaded does not get on

    def notice_stalled_loads(self) -> None:
        state, candidate = self._state, self._state.candidate
        for name in sorted(candidate.assigned) if candidate else ():
            if state.candidate is candidate and candidate is not None and self._holds_up(candidate, name):
                stalled_s = self._now_s - self._members[name].load_moved_s
                self._blame(self._members[name], f"lives, but has loaded nothing for {stalled_s:.1f} s")

    def _holds_up(self, candidate: Candidate, name: str) -> bool:
        """Whether others could have loaded by now, and it does nothing else. That is asked now and then: the answer costs a search."""
        limit_s = self._config.short_load_stall_s
        last_s = max(self._members[name].load_moved_s, candidate.doubted_s.get(name, 0.0))
        is_busy = self._members[name].is_computing or self._state.is_in_use(name)
        if is_busy or not candidate.is_loading(name) or self._now_s - last_s < limit_s:
            return False
        candidate.doubt(name, self._now_s)
        assert self._state.model is not None
        return not isinstance(self._search.find(self._state.model, None, without=frozenset({name})), Infeasible)

    # -- a switch does not get on

    def notice_stalled_switch(self) -> None:
        state, limit_s = self._state, self._config.short_activate_timeout_s
        late = state.unactivated if self._now_s - state.phase_from_s > limit_s else ()
        for member in [self._members[name] for name in sorted(late) if not self._members[name].is_computing]:
            self._blame(member, f"has not switched within {limit_s:g} s")
