"""The cluster's state as the protocol writes it."""

from collections.abc import Sequence
from dataclasses import asdict

from dairllm.coordinator.cluster.actions import ClusterEvent
from dairllm.coordinator.cluster.books.losses import LostShard
from dairllm.coordinator.cluster.shard_reports import ShardCapabilities
from dairllm.coordinator.cluster.snapshot import ClusterSnapshot, ShardSnapshot
from dairllm.coordinator.invitations.seen_shards import SeenShard
from dairllm.mesh.encodings import parse_encoding
from dairllm.v1 import cluster_pb2


def state_to_proto(snapshot: ClusterSnapshot, clock_offset_s: float, seen: Sequence[SeenShard] = ()) -> cluster_pb2.ClusterState:
    """clock_offset_s: seconds since 1970 minus the time that the snapshot's events are counted in."""
    return cluster_pb2.ClusterState(
        coordinator_id=snapshot.coordinator_id,
        software_version=snapshot.software_version,
        model=snapshot.model,
        model_digest=snapshot.model_digest,
        num_layers=snapshot.num_layers,
        model_size_bytes=snapshot.model_size_bytes,
        wire=parse_encoding(snapshot.wire),
        arithmetic=snapshot.arithmetic,
        system_fingerprint=snapshot.system_fingerprint,
        phase=f"CLUSTER_PHASE_{snapshot.public_phase.upper()}",
        reason=snapshot.reason,
        can_answer=snapshot.can_answer,
        epoch=snapshot.epoch,
        shards=[_shard_to_proto(shard) for shard in snapshot.shards],
        predicted_decode_tok_s=snapshot.predicted_decode_tok_s,
        measured_decode_tok_s=snapshot.measured_decode_tok_s,
        running_sequences=snapshot.running_sequences,
        waiting_sequences=snapshot.waiting_sequences,
        kv_blocks_total=snapshot.kv_blocks_total,
        kv_blocks_free=snapshot.kv_blocks_free,
        next_epoch=snapshot.next_epoch,
        missing_bytes=snapshot.missing_bytes,
        seen=[_seen_to_proto(shard, clock_offset_s) for shard in seen],
        lost=[_lost_to_proto(shard, clock_offset_s) for shard in snapshot.lost],
        events=[_event_to_proto(event, clock_offset_s) for event in snapshot.events],
        memory_for_all_bytes=snapshot.memory_for_all_bytes,
        in_memory_decode_tok_s=snapshot.in_memory_decode_tok_s,
    )


def _seen_to_proto(seen: SeenShard, clock_offset_s: float) -> cluster_pb2.SeenShard:
    return cluster_pb2.SeenShard(
        id=seen.shard.shard_id,
        name=seen.shard.name,
        addresses=seen.shard.addresses,
        phase=f"SEEN_SHARD_PHASE_{seen.phase.value.upper()}",
        reason=seen.reason,
        since_time_s=seen.since_s + clock_offset_s,
    )


def _lost_to_proto(lost: LostShard, clock_offset_s: float) -> cluster_pb2.LostShard:
    return cluster_pb2.LostShard(
        name=lost.hello.name,
        addresses=lost.hello.addresses,
        reason=lost.reason,
        since_time_s=lost.since_s + clock_offset_s,
        first_unit=lost.units.start,
        end_unit=lost.units.stop,
        capabilities=_capabilities_to_proto(lost.hello.capabilities),
        software_version=lost.hello.software_version,
    )


def _event_to_proto(event: ClusterEvent, clock_offset_s: float) -> cluster_pb2.ClusterEvent:
    return cluster_pb2.ClusterEvent(
        time_s=event.time_s + clock_offset_s,
        kind=event.kind,
        shard=event.shard,
        text=event.text,
        duration_s=event.duration_s,
        number=event.number,
        times=event.times,
    )


def _shard_to_proto(shard: ShardSnapshot) -> cluster_pb2.ShardState:
    return cluster_pb2.ShardState(
        name=shard.name,
        addresses=shard.addresses,
        phase=f"SHARD_PHASE_{shard.phase.value.upper()}",
        stage=shard.stage,
        first_unit=shard.units.start,
        end_unit=shard.units.stop,
        capabilities=_capabilities_to_proto(shard.capabilities),
        usage=cluster_pb2.ShardUsage(**asdict(shard.usage)),
        load=cluster_pb2.LoadProgress(**asdict(shard.load)),
        round_trip_us=shard.round_trip_us,
        last_seen_s=shard.last_seen_s,
        predicted_step_s=shard.predicted_step_s,
        measured_step_s=shard.measured_step_s,
        note=shard.note,
        software_version=shard.software_version,
        next_first_unit=shard.next_units.start,
        next_end_unit=shard.next_units.stop,
        streamed_bytes=shard.streamed_bytes,
        stream_s_per_byte=shard.stream_s_per_byte,
        expert_places=shard.expert_places,
        experts_touched=shard.experts_touched,
    )


def _capabilities_to_proto(capabilities: ShardCapabilities) -> cluster_pb2.ShardCapabilities:
    values = asdict(capabilities)
    for name in ("block_formats", "features"):
        values[name] = sorted(values[name])
    return cluster_pb2.ShardCapabilities(**values)
