"""What shards say of themselves, as facts for the cluster machine."""

from dairllm.coordinator.cluster.facts import Epoch, HeldUnits, LoadProgress, ShardCapabilities, ShardHello, ShardUsage
from dairllm.v1 import cluster_pb2


def hello_from_proto(hello: cluster_pb2.Hello) -> ShardHello:
    return ShardHello(
        name=hello.name,
        boot_id=hello.boot_id,
        addresses=tuple(hello.addresses),
        capabilities=capabilities_from_proto(hello.capabilities),
        cluster_hash=hello.cluster_hash,
        protocol_major=hello.protocol_major,
        protocol_minor=hello.protocol_minor,
        software_version=hello.software_version,
        held=HeldUnits(hello.held.model_digest, frozenset(hello.held.unit_indexes)),
        last_epoch=Epoch(hello.last_epoch),
    )


def capabilities_from_proto(message: cluster_pb2.ShardCapabilities) -> ShardCapabilities:
    return ShardCapabilities(
        memory_budget_bytes=message.memory_budget_bytes,
        reserved_bytes=message.reserved_bytes,
        num_threads=message.num_threads,
        isa=message.isa,
        cpu_model=message.cpu_model,
        decode_s_per_byte=message.decode_s_per_byte,
        prefill_s_per_byte_row=message.prefill_s_per_byte_row,
        disk_bytes_per_s=message.disk_bytes_per_s,
        architectures=frozenset(message.architectures),
        block_formats=frozenset(message.block_formats),
        features=frozenset(message.features),
    )


def usage_from_proto(message: cluster_pb2.ShardUsage) -> ShardUsage:
    return ShardUsage(**{name: getattr(message, name) for name in ShardUsage.__slots__})


def progress_from_proto(message: cluster_pb2.LoadProgress) -> LoadProgress:
    return LoadProgress(**{name: getattr(message, name) for name in LoadProgress.__slots__})
