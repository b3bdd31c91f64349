"""The state of the cluster as people see it: what ClusterState of cluster.proto holds, and recent events."""

from collections.abc import Iterator
from dataclasses import dataclass

from dairllm.coordinator.cluster.actions import ClusterEvent
from dairllm.coordinator.cluster.answering import why_no_answers
from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.books.losses import LostShard
from dairllm.coordinator.cluster.books.member import Member, ShardPhase
from dairllm.coordinator.cluster.books.members import Members
from dairllm.coordinator.cluster.books.state import ClusterState
from dairllm.coordinator.cluster.identities import Epoch
from dairllm.coordinator.cluster.phases import RING_OPEN, STAGES_IN_USE, Phase
from dairllm.coordinator.cluster.shard_reports import LoadProgress, ShardCapabilities, ShardUsage
from dairllm.mesh.fingerprint import system_fingerprint

_PUBLIC_PHASES = {
    Phase.WAITING: "waiting",
    Phase.LOADING: "loading",
    Phase.SERVING: "serving",
    Phase.PREPARING: "serving",
    Phase.DRAINING: "serving",
    Phase.ACTIVATING: "loading",
    Phase.OPENING: "loading",
    Phase.RETRYING: "loading",
}


@dataclass(frozen=True, slots=True)
class EngineLoad:
    running_sequences: int = 0
    waiting_sequences: int = 0
    kv_blocks_free: int = 0


NO_LOAD = EngineLoad()


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """See ShardState in cluster.proto. stage: position in the ring or None; units: empty if it has none.

    next_units: of the plan that is prepared.
    """

    name: str
    addresses: tuple[str, ...]
    phase: ShardPhase
    stage: int | None
    units: range
    next_units: range
    capabilities: ShardCapabilities
    usage: ShardUsage
    load: LoadProgress
    round_trip_us: int
    last_seen_s: float
    predicted_step_s: float
    measured_step_s: float
    note: str
    software_version: str
    streamed_bytes: int
    stream_s_per_byte: float
    expert_places: int
    experts_touched: int


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """See ClusterState in cluster.proto. shards: those of the plan in ring order, then the others by name. events: oldest first.

    next_epoch: of the plan that is prepared, 0 if none is.
    """

    coordinator_id: str
    software_version: str
    model: str
    model_digest: bytes
    num_layers: int
    model_size_bytes: int
    wire: str
    arithmetic: str
    system_fingerprint: str
    phase: Phase
    reason: str
    can_answer: bool
    missing_bytes: int
    epoch: Epoch
    next_epoch: Epoch
    shards: tuple[ShardSnapshot, ...]
    predicted_decode_tok_s: float
    measured_decode_tok_s: float
    running_sequences: int
    waiting_sequences: int
    kv_blocks_total: int
    kv_blocks_free: int
    lost: tuple[LostShard, ...]
    events: tuple[ClusterEvent, ...]
    memory_for_all_bytes: int
    in_memory_decode_tok_s: float

    @property
    def public_phase(self) -> str:
        """'waiting', 'loading' or 'serving', as in ClusterPhase of cluster.proto."""
        return _PUBLIC_PHASES[self.phase]


def take_snapshot(books: Books, now_s: float, load: EngineLoad) -> ClusterSnapshot:
    """now_s: by the machine's own time."""
    config, state = books.config, books.state
    model, plan = state.model, state.plan
    in_memory = plan.in_memory if plan else None
    step_s = _measured_s(books, None)
    return ClusterSnapshot(
        coordinator_id=config.coordinator_id,
        software_version=config.software_version,
        model=model.name if model else "",
        model_digest=model.digest if model else b"",
        num_layers=model.num_layers if model else 0,
        model_size_bytes=(model.file_bytes or model.size_bytes) if model else 0,
        wire=config.arithmetic.wire,
        arithmetic=str(config.arithmetic),
        system_fingerprint=system_fingerprint(model.digest.hex(), str(config.arithmetic)) if model else "",
        phase=state.phase,
        reason=state.explanation,
        can_answer=not why_no_answers(books, now_s),
        missing_bytes=state.missing_bytes,
        epoch=state.epoch,
        next_epoch=state.candidate.epoch if state.candidate else Epoch(0),
        shards=tuple(_shard_snapshot(books, member, now_s) for member in _in_ring_order(state, books.members)),
        predicted_decode_tok_s=plan.predicted_decode_tok_s if plan else 0.0,
        measured_decode_tok_s=1 / step_s if step_s > 0 else 0.0,
        running_sequences=load.running_sequences,
        waiting_sequences=load.waiting_sequences,
        kv_blocks_total=plan.num_kv_blocks if plan else 0,
        kv_blocks_free=load.kv_blocks_free,
        lost=books.losses.of_late(books.journal.clock_s),
        events=tuple(books.journal.records),
        memory_for_all_bytes=in_memory.missing_bytes if in_memory else 0,
        in_memory_decode_tok_s=1 / in_memory.step_s if in_memory else 0.0,
    )


def _measured_s(books: Books, shard: str | None) -> float:
    """0 while no ring is open."""
    return books.steps.of(books.state.epoch, shard) if books.state.phase in RING_OPEN else 0.0


def _in_ring_order(state: ClusterState, members: Members) -> Iterator[Member]:
    placement = state.plan.placement if state.plan else {}
    yield from (members[name] for name in placement if name in members)
    yield from (member for member in members if member.name not in placement)


def _shard_snapshot(books: Books, member: Member, now_s: float) -> ShardSnapshot:
    state = books.state
    stages = state.plan.stages if state.plan else ()
    position = next((i for i, stage in enumerate(stages) if stage.shard == member.name), None)
    candidate = state.candidate
    return ShardSnapshot(
        name=member.name,
        addresses=member.hello.addresses,
        phase=_shard_phase(state, member, position is not None),
        stage=position,
        units=stages[position].units if position is not None else range(0),
        next_units=candidate.plan.placement.get(member.name, range(0)) if candidate else range(0),
        capabilities=member.hello.capabilities,
        usage=member.usage,
        load=member.load,
        round_trip_us=member.round_trip_us,
        last_seen_s=max(0.0, now_s - member.last_seen_s),
        predicted_step_s=stages[position].predicted_step_s if position is not None else 0.0,
        measured_step_s=_measured_s(books, member.name),
        note=member.note,
        software_version=member.hello.software_version,
        streamed_bytes=stages[position].streamed_bytes if position is not None else 0,
        stream_s_per_byte=member.disk.s_per_byte,
        expert_places=stages[position].expert_places if position is not None else 0,
        experts_touched=stages[position].experts_touched if position is not None else 0,
    )


def _shard_phase(state: ClusterState, member: Member, has_part: bool) -> ShardPhase:
    if member.has_failed:
        return ShardPhase.FAILED
    if has_part and state.phase in STAGES_IN_USE:
        return ShardPhase.READY
    if state.candidate and member.name in state.candidate.plan.placement:
        return ShardPhase.READY if member.name in state.candidate.ready else ShardPhase.LOADING
    return ShardPhase.JOINED
