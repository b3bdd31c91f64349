"""The cluster machine: membership, leases, plans, recovery. `handle(event, now_s)` takes what happened and returns what is to be done.

It holds no clock, no sockets and no tasks, so that a cluster of a thousand shards with faults runs in a unit test, in simulated
time; equal events at equal times give equal actions. A lost shard is an event like any other.

Here stands the table of events: what each is about, when it counts, who takes care of it. The parts that do are in `parts`, what they read
and write in `books`. Phases and their successors stand in `phases`.

A plan has an epoch, which only grows as long as the coordinator runs. Every change of plan has two parts. First the candidate
is prepared: shards load what they lack, beside the plan that is active and goes on answering. When all are ready, the ring empties, the
shards activate their new stages and fetch the KV cache of layers that moved, and the ring of the new epoch opens: only this is a pause
for those who wait for answers. A shard whose memory cannot hold the old and the new part together frees the old one first; it is told to
only when all others are ready and the ring is closed.

While answers come, plans change only for a gain over the planner's hysteresis, and seldom unless somebody joins, or because a shard
leaves, is cordoned or has other limits. While none come, a plan moves as little as possible: a lost shard is replaced in the same call
that reports it, and what is better can be prepared later. A broken edge is usually the first sign of a lost shard, so planning pauses
for `grace_s`; if all are alive after it, the same plan starts again with a new epoch, after pauses that double. A shard that keeps
failing is set aside for a while if the others suffice; one whose stage can never load (too little memory, weights that differ) is used
again only after a restart, or for what it has.
"""

from collections.abc import Iterator
from typing import Any

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.actions import Action
from dairllm.coordinator.cluster.answering import why_no_answers
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.event_table import EventTable, Row, Scopes
from dairllm.coordinator.cluster.identities import Epoch
from dairllm.coordinator.cluster.invariants import check_books
from dairllm.coordinator.cluster.parts.failures import Failures
from dairllm.coordinator.cluster.parts.faults import Faults
from dairllm.coordinator.cluster.parts.idle_shards import IdleShards
from dairllm.coordinator.cluster.parts.joins_and_losses import JoinsAndLosses
from dairllm.coordinator.cluster.parts.measurements import Measurements
from dairllm.coordinator.cluster.parts.plan_search import PlanSearch
from dairllm.coordinator.cluster.parts.planning import Planning
from dairllm.coordinator.cluster.parts.preparation import Preparation
from dairllm.coordinator.cluster.parts.standstills import Standstills
from dairllm.coordinator.cluster.parts.switch import Switch
from dairllm.coordinator.cluster.parts.wishes import Wishes
from dairllm.coordinator.cluster.phases import ANSWERING, ANY_PHASE, RING_IN_USE, STAGES_IN_USE, WITH_CANDIDATE, Phase
from dairllm.coordinator.cluster.snapshot import NO_LOAD, ClusterSnapshot, EngineLoad, take_snapshot
from dairllm.coordinator.planner import Infeasible, Plan

ACTIVATING, OPENING, DRAINING = frozenset({Phase.ACTIVATING}), frozenset({Phase.OPENING}), frozenset({Phase.DRAINING})


class ClusterMachine:
    def __init__(self, config: ClusterConfig) -> None:
        self._books = books = Books.of(config)
        self._journal = books.journal
        self._members = books.members
        self._state = books.state
        idle = IdleShards(books)
        self._search = PlanSearch(books)
        self._switch = Switch(books, idle)
        self._preparation = Preparation(books, idle, self._switch)
        self._planning = Planning(books, idle, self._search, self._switch, self._preparation)
        self._failures = Failures(books, self._switch, self._preparation, self._planning)
        self._faults = Faults(books, self._planning, self._failures)
        self._standstills = Standstills(books, self._search, self._faults)
        self._joins_and_losses = JoinsAndLosses(books, idle, self._switch, self._preparation, self._planning, self._failures)
        self._wishes = Wishes(books, idle, self._search, self._planning)
        self._measurements = Measurements(books)
        self._table = EventTable(self._state, self._rows(Scopes(self._members, self._state)))

    def _rows(self, about: Scopes) -> Iterator[Row[Any]]:
        """Event, what it is about, phases in which it counts, who takes care of it."""
        joins, wishes, preparation, switch = self._joins_and_losses, self._wishes, self._preparation, self._switch
        failures, faults, standstills, measurements = self._failures, self._faults, self._standstills, self._measurements

        yield Row(on.ModelRegistered, about.cluster, ANY_PHASE, self._planning.on_model)
        yield Row(on.TimePassed, about.cluster, ANY_PHASE, self._on_time)

        yield Row(on.JoinRequested, about.cluster, ANY_PHASE, joins.on_join)
        yield Row(on.HeartbeatReceived, about.boot, ANY_PHASE, self._on_beat)
        yield Row(on.LeaseBroken, about.lease, ANY_PHASE, joins.on_lease_broken)
        yield Row(on.ShardLeft, about.lease, ANY_PHASE, joins.on_left)

        yield Row(on.ShardLeaving, about.boot, ANY_PHASE, wishes.on_leaving)
        yield Row(on.DrainRequested, about.member, ANY_PHASE, wishes.on_drain)
        yield Row(on.CordonRequested, about.wanted, ANY_PHASE, wishes.on_cordon)
        yield Row(on.ConfigureRequested, about.member, ANY_PHASE, wishes.on_configure)
        yield Row(on.CapabilitiesChanged, about.boot, ANY_PHASE, wishes.on_capabilities)

        yield Row(on.LoadProgressed, about.candidate, WITH_CANDIDATE, preparation.on_progress)
        yield Row(on.StageLoaded, about.candidate, WITH_CANDIDATE, preparation.on_loaded)
        yield Row(on.StageLoadFailed, about.candidate, WITH_CANDIDATE, failures.on_load_failed)
        yield Row(on.StageLoadFailed, about.active, STAGES_IN_USE, failures.on_stage_failed)
        yield Row(on.StageActivated, about.active, ACTIVATING, switch.on_activated)

        yield Row(on.RingOpened, about.ring, OPENING, switch.on_opened)
        yield Row(on.RingDrained, about.ring, DRAINING, preparation.on_drained)
        yield Row(on.RingBroken, about.ring, RING_IN_USE, failures.on_ring_broken)
        yield Row(on.EdgeBroken, about.ring, STAGES_IN_USE, failures.on_edge_broken)
        yield Row(on.FramesAwaited, about.ring, RING_IN_USE, standstills.on_awaited)
        yield Row(on.MemberAtFault, about.boot, ANY_PHASE, faults.on_fault)
        yield Row(on.MemberAccused, about.active, ANY_PHASE, faults.on_accused)
        yield Row(on.ProofGiven, about.boot, ANY_PHASE, faults.on_proof)
        yield Row(on.StepMeasured, about.ring, ANSWERING, measurements.on_step)
        yield Row(on.AnswersRecovered, about.cluster, ANY_PHASE, measurements.on_recovered)

    # -- what happens

    def handle(self, event: on.Event, now_s: float) -> list[Action]:
        """Take an event and return the actions, in order. now_s: any clock that does not run backwards."""
        self._journal.begin(now_s)
        if isinstance(event, on.WordOfShard):
            self._members.hear(event.name, event.boot_id)
        self._table.handle(event)
        self._planning.plan_if_due()
        return self._journal.actions

    def _on_beat(self, event: on.HeartbeatReceived) -> None:
        self._measurements.on_beat(event)
        self._standstills.on_beat(event)

    def _on_time(self, event: on.TimePassed) -> None:
        """All but leases, whose end comes first, look at every member: so not with every heartbeat."""
        self._joins_and_losses.expire_leases()
        self._failures.welcome_back_set_aside()
        self._faults.ask_for_proofs()
        self._measurements.forget_old_speeds()
        self._preparation.retry_loads()
        self._failures.notice_stalls()
        self._standstills.notice_stalled_loads()
        self._standstills.notice_stalled_switch()
        self._failures.forget_failures()
        self._failures.try_links_again()
        if event.is_idle:
            self._wishes.let_needed_go()

    # -- what it is now

    @property
    def epoch(self) -> Epoch:
        """Of the plan whose stages are in use; while none are, of the newest. It only grows."""
        return self._state.epoch

    @property
    def plan(self) -> Plan | None:
        """The plan that is loaded while no ring is open, or else the last one that was in use; None while waiting."""
        return self._state.plan

    @property
    def phase(self) -> Phase:
        return self._state.phase

    @property
    def reason(self) -> str:
        """Why it is not serving; '' while it is."""
        return self._state.explanation

    def why_no_answers(self, now_s: float) -> str:
        """'' while answers come, or will as soon as a switch or a recovery is over that has not failed yet."""
        return why_no_answers(self._books, self._journal.own_s(now_s))

    @property
    def missing_bytes(self) -> int:
        """Memory that is missing for any plan; 0 if nothing or something else is missing."""
        return self._state.missing_bytes

    def has_member(self, name: str) -> bool:
        return name in self._members

    def can_do_without(self, name: str) -> Infeasible | None:
        """None if the others can serve the model without this shard, or if the model is not served with it either; else what is missing."""
        return self._search.lack_without(name)

    def can_do_with(self, name: str, memory_budget_bytes: int) -> Infeasible | None:
        """None if the model could be served when this shard has so much memory, or is not served now either; else what is missing."""
        return self._search.lack_with(name, memory_budget_bytes)

    def avoids(self, one: str, other: str) -> bool:
        """Whether the link between these two members has failed so often that it is not used."""
        return self._books.links.avoids(one, other, self._journal.now_s)

    def snapshot(self, now_s: float, load: EngineLoad = NO_LOAD) -> ClusterSnapshot:
        """Everything that people may want to know, now. load: what the engine says, which the machine does not know."""
        return take_snapshot(self._books, self._journal.own_s(now_s), load)

    def check_invariants(self) -> None:
        """What holds between any two events. For tests: it costs time, and raises AssertionError."""
        check_books(self._books)
