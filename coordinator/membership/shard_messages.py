"""What shards say on their Join streams, as events for the cluster machine."""

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.identities import Epoch
from dairllm.coordinator.cluster.shard_reports import HeldUnits, LoadProgress, ShardCapabilities, ShardHello, ShardUsage, ShardWork
from dairllm.coordinator.membership.join_stream import JoinStream
from dairllm.v1 import cluster_pb2


def event_of(stream: JoinStream, request: cluster_pb2.JoinRequest) -> on.Event | None:
    """None for a message that nobody expects at this place, or that is not known."""
    name, boot_id = stream.name, stream.boot_id
    match request.WhichOneof("message"):
        case "heartbeat":
            beat = request.heartbeat
            work = _work_from_proto(beat.work) if beat.HasField("work") else None
            return on.HeartbeatReceived(name, boot_id, _usage_from_proto(beat.usage), beat.round_trip_us, work)
        case "load_progress":
            progress = request.load_progress
            return on.LoadProgressed(name, boot_id, Epoch(progress.epoch), _progress_from_proto(progress))
        case "stage_ready":
            ready = request.stage_ready
            return on.StageLoaded(name, boot_id, Epoch(ready.epoch), ready.weights_bytes, ready.kv_cache_bytes, ready.load_s)
        case "stage_failed":
            failed = request.stage_failed
            how = failed.retryable, failed.needs_exclusive, failed.missing_bytes
            return on.StageLoadFailed(name, boot_id, Epoch(failed.epoch), failed.message, *how)
        case "edge_lost":
            lost = request.edge_lost
            if lost.at_fault:
                return on.MemberAccused(name, boot_id, Epoch(lost.epoch), lost.peer, lost.message)
            return on.EdgeBroken(Epoch(lost.epoch), name, lost.peer, lost.message, lost.silent)
        case "stage_activated":
            done = request.stage_activated
            units = frozenset(done.transferred_units)
            return on.StageActivated(name, boot_id, Epoch(done.epoch), units, done.transferred_bytes, done.seconds, done.note)
        case "capabilities_changed":
            changed = request.capabilities_changed
            return on.CapabilitiesChanged(name, boot_id, _capabilities_from_proto(changed.capabilities), changed.refusal)
        case "proof":
            return on.ProofGiven(name, boot_id, request.proof.number, stream.is_right(request.proof))
        case "leaving" if request.leaving.drain:
            return on.ShardLeaving(name, boot_id, request.leaving.reason)
        case "leaving":
            return on.ShardLeft(name, boot_id, stream.id, request.leaving.reason)
    return None


def hello_from_proto(hello: cluster_pb2.Hello) -> ShardHello:
    return ShardHello(
        name=hello.name,
        boot_id=hello.boot_id,
        addresses=tuple(hello.addresses),
        capabilities=_capabilities_from_proto(hello.capabilities),
        cluster_hash=hello.cluster_hash,
        protocol_major=hello.protocol_major,
        protocol_minor=hello.protocol_minor,
        software_version=hello.software_version,
        held=HeldUnits(hello.held.model_digest, frozenset(hello.held.unit_indexes)),
    )


def _capabilities_from_proto(message: cluster_pb2.ShardCapabilities) -> ShardCapabilities:
    return ShardCapabilities(
        memory_budget_bytes=message.memory_budget_bytes,
        reserved_bytes=message.reserved_bytes,
        num_threads=message.num_threads,
        isa=message.isa,
        cpu_model=message.cpu_model,
        decode_s_per_byte=message.decode_s_per_byte,
        block_formats=frozenset(message.block_formats),
        features=frozenset(message.features),
        process_bytes=message.process_bytes,
    )


def _usage_from_proto(message: cluster_pb2.ShardUsage) -> ShardUsage:
    return ShardUsage(**{name: getattr(message, name) for name in ShardUsage.__slots__})


def _work_from_proto(message: cluster_pb2.ShardWork) -> ShardWork:
    return ShardWork(**{name: getattr(message, name) for name in ShardWork.__slots__})


def _progress_from_proto(message: cluster_pb2.LoadProgress) -> LoadProgress:
    return LoadProgress(**{name: getattr(message, name) for name in LoadProgress.__slots__})
