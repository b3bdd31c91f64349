"""What a shard is told, in the words of the protocol: its part of a plan, what to fetch, whom to send to."""

from collections.abc import Sequence

from dairllm.coordinator.cluster import actions as do
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.membership.join_stream import JoinStream
from dairllm.coordinator.membership.join_streams import JoinStreams
from dairllm.coordinator.model import LoadedModel
from dairllm.coordinator.ring import Ring
from dairllm.mesh.cache_types import cache_type_to_proto
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.foreign_text import is_text
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.mesh.protocol import software_version
from dairllm.model_files.codec import file_to_proto, spec_to_proto, unit_to_proto
from dairllm.v1 import cluster_pb2

MAX_WEIGHT_SOURCES = 8


class Orders:
    """streams: over which members are told; it is also known from them where each is."""

    def __init__(
        self, config: ClusterConfig, model: LoadedModel, machine: ClusterMachine, streams: JoinStreams, ring: Ring, engine: Engine
    ) -> None:
        self._config = config
        self._model = model
        self._machine = machine
        self._streams = streams
        self._places = streams.places
        self._ring = ring
        self._engine = engine

    def welcome(self, stream: JoinStream) -> None:
        config = self._config
        welcome = cluster_pb2.Welcome(
            coordinator_id=config.coordinator_id,
            software_version=software_version(),
            heartbeat_interval_ms=round(config.heartbeat_interval_s * 1000),
            lease_timeout_ms=round(config.lease_timeout_s * 1000),
            observed_host=stream.place.observed_host,
        )
        stream.send(cluster_pb2.JoinResponse(welcome=welcome))

    def assign(self, action: do.AssignUnits) -> None:
        manifest = self._model.manifest
        assignment = cluster_pb2.Assignment(
            epoch=action.epoch,
            model_digest=manifest.model_digest,
            spec=spec_to_proto(manifest.spec),
            units=[unit_to_proto(manifest.units[index]) for index in action.units],
            model_folder=str(folder) if is_text(str(folder := self._model.paths[0].parent)) else "",
            model_files=[file_to_proto(file) for file in manifest.files],
            next=self._peer(action.next.name if action.next else COORDINATOR_NAME, action.name),
            num_kv_blocks=action.num_kv_blocks,
            kv_block_tokens=action.kv_block_tokens,
            context_length=action.context_length,
            max_batch_rows=action.max_batch_rows,
            exclusive=action.exclusive,
            weight_sources=self._weight_sources(action.name, action.units),
            kv_cache_type=cache_type_to_proto(self._config.arithmetic.kv_cache),
            wire=parse_encoding(self._config.arithmetic.wire),
            ring_key=self._ring.key_of(action.epoch),
            kv_key=self._ring.kv_key_of(action.name, action.boot_id),
            model_urls=self._model.urls,
            streamed_units=action.streamed,
            expert_places=action.expert_places,
        )
        self._streams.send(action.name, cluster_pb2.JoinResponse(assignment=assignment))

    def activate(self, action: do.ActivateStage) -> None:
        block_ids = self._engine.used_block_ids if action.moves else ()
        activation = cluster_pb2.ActivateStage(
            epoch=action.epoch,
            transfers=[self._transfer(action.name, move, block_ids) for move in action.moves],
            alive_sequences=self._engine.alive_ring_ids,
        )
        self._streams.send(action.name, cluster_pb2.JoinResponse(activate_stage=activation))

    def release(self, action: do.ReleaseShard) -> None:
        release = cluster_pb2.Release(epoch=action.epoch, reason=action.reason, leave=action.leave)
        self._streams.send(action.name, cluster_pb2.JoinResponse(release=release))

    def ask_to_drain(self, action: do.AskToDrain) -> None:
        self._streams.send(action.name, cluster_pb2.JoinResponse(drain=cluster_pb2.Drain(reason=action.reason)))

    def configure(self, action: do.ConfigureLimits) -> None:
        limits = cluster_pb2.Configure(memory_budget_bytes=action.memory_budget_bytes, num_threads=action.num_threads)
        self._streams.send(action.name, cluster_pb2.JoinResponse(configure=limits))

    def _weight_sources(self, receiver: str, units: range) -> list[cluster_pb2.Peer]:
        """Members that may have these units on their disks: first those with most of them in their plan, last the coordinator."""
        plan = self._machine.plan
        parts = {} if plan is None else plan.placement
        others = [name for name in parts if name != receiver and name in self._places and not self._machine.avoids(name, receiver)]
        others.sort(key=lambda name: -len(range(max(units.start, parts[name].start), min(units.stop, parts[name].stop))))
        return [self._peer(name, receiver) for name in (*others[:MAX_WEIGHT_SOURCES], COORDINATOR_NAME)]

    def _transfer(self, receiver: str, move: do.Move, block_ids: Sequence[int]) -> cluster_pb2.KvTransfer:
        source, boot_id = move.source.name, self._streams.boot_id_of(move.source.name)
        transfer = cluster_pb2.KvTransfer(
            first_unit=move.units.start,
            end_unit=move.units.stop,
            block_ids=block_ids,
            kv_key=self._ring.kv_key_of(source, boot_id) if boot_id else b"",
        )
        getattr(transfer, "from").CopyFrom(self._peer(source, receiver))
        return transfer

    def _peer(self, name: str, seen_from: str) -> cluster_pb2.Peer:
        return cluster_pb2.Peer(name=name, addresses=self._places.addresses(seen_from, name))
