"""The coordinator as a whole: its parts put together, started and stopped in order."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping

import grpc
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from dairllm.coordinator.cluster.actions import ClusterEvent
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.cluster.snapshot import ClusterSnapshot, EngineLoad
from dairllm.coordinator.cluster_state import state_to_proto
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.engine.facts import SchedulerLimits
from dairllm.coordinator.event_loop import EventLoopDelay
from dairllm.coordinator.http.app import create_app
from dairllm.coordinator.http.connections.server import serve
from dairllm.coordinator.http.gate.guard import Access
from dairllm.coordinator.http.gate.hosts import hosts_of
from dairllm.coordinator.http.gate.origins import Origins
from dairllm.coordinator.http.metrics import ServingMetrics
from dairllm.coordinator.invitations.inviter import Inviter
from dairllm.coordinator.local_shard import LocalShard
from dairllm.coordinator.membership.membership import Membership
from dairllm.coordinator.membership.reachability import Places, advertised
from dairllm.coordinator.membership.readiness import Readiness
from dairllm.coordinator.model import LoadedModel, load_model
from dairllm.coordinator.ring import Ring
from dairllm.coordinator.services.cluster_servicer import ClusterServicer
from dairllm.coordinator.services.inference_servicer import InferenceServicer
from dairllm.coordinator.services.ring_servicer import ResultsServicer
from dairllm.coordinator.services.weights_servicer import ModelFileServicer
from dairllm.coordinator.settings import CoordinatorSettings
from dairllm.coordinator.text import LatencyObserver
from dairllm.mesh.channels import add_standard_services, bind, create_server
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery.announcer import Announcer
from dairllm.mesh.discovery.presence import Presence
from dairllm.mesh.discovery.records import Announcement
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.interfaces import announced_addresses
from dairllm.mesh.message_json import message_to_json
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from dairllm.mesh.ready_file import remove_ready_file, write_ready_file
from dairllm.model_files.memory import tokens_per_place
from dairllm.model_files.progress import progress_bar, progress_lines, until
from dairllm.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    ring_pb2,
    ring_pb2_grpc,
    weights_pb2,
    weights_pb2_grpc,
)

logger = logging.getLogger(__name__)

CONTEXTS_IN_CACHE = 4
SERVER_STOP_S = 2.0


class Coordinator:
    """run() is its whole life."""

    def __init__(self, settings: CoordinatorSettings, model: LoadedModel) -> None:
        spec = model.manifest.spec
        self._settings = settings
        self._model = model
        longest = settings.served_context_length(spec.context_length, spec.usual_context)
        limits = SchedulerLimits(
            longest,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            tokens_per_place=tokens_per_place(spec, longest),
            prefix_reuse=settings.prefix_reuse,
            guesses=settings.guesses,
        )
        self._config = cluster_config(settings, limits)
        self._machine = ClusterMachine(self._config)
        readiness = Readiness(self._machine)
        self._engine = Engine(limits, spec.num_tokens, readiness.why_unready, settings.recovery_limit_s)
        self._ring = Ring(self._config.cluster_hash, self._engine.complete)
        self._inviter: Inviter | None = None
        self._metrics = CollectorRegistry()
        self._event_loop_delay = EventLoopDelay(self._metrics)
        # Fixed, so that an event has the same time whenever it is shown.
        self._clock_offset_s = time.time() - asyncio.get_running_loop().time()

    async def run(self, stop: asyncio.Event) -> None:
        settings = self._settings
        server = create_server()
        grpc_port = await bind(server, settings.grpc_host or "0.0.0.0", settings.grpc_port, "the coordinator's gRPC server")
        access = Access(hosts_of(settings.http_host, settings.allowed_hosts), Origins(frozenset(settings.cors_origins)))
        app = create_app(self._model.served, self._engine, self._cluster_json, self._metrics, access=access)
        membership = self._make_membership(grpc_port, app.state.metrics)
        await self._start_grpc(server, membership, app.state.metrics)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(server.stop, SERVER_STOP_S)
            stack.push_async_callback(membership.stop)
            stack.callback(self._model.close)
            stack.callback(self._engine.shut_down)
            if settings.discovery:
                self._inviter = Inviter(self._config, lambda: membership.streams.announced_ids, lambda: settings.grpc_hosts, grpc_port)
                announcer = Announcer(await self._announcement(grpc_port))
                await stack.enter_async_context(Presence(announcer, self._inviter.browser))
            try:
                await self._serve(app, membership, stop, grpc_port, stack)
            except ExceptionGroup as group:
                raise _expected_error(group) or group from None

    async def _serve(
        self, app: Starlette, membership: Membership, stop: asyncio.Event, grpc_port: int, stack: contextlib.AsyncExitStack
    ) -> None:
        settings = self._settings
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as tasks:
            http = tasks.create_task(serve(app, settings.http_host, settings.http_port, stop, listening.set_result), name="http")
            background = [
                tasks.create_task(membership.run(), name="membership"),
                tasks.create_task(membership.ring_life.watch(), name="watch-ring"),
                tasks.create_task(self._event_loop_delay.run(), name="event-loop-delay"),
            ]
            if self._inviter is not None:
                background.append(tasks.create_task(self._inviter.run(), name="inviter"))
            http_address, grpc_address = settings.http_address(await listening), settings.grpc_address(grpc_port)
            logger.info("API and status page at http://%s", http_address)
            logger.info("shards join at port %d of this machine", grpc_port)
            if settings.ready_file is not None:
                write_ready_file(settings.ready_file, {"pid": os.getpid(), "grpc": str(grpc_address), "http": str(http_address)})
                stack.callback(remove_ready_file, settings.ready_file)
            if settings.local_shard is not None:
                own = ["--coordinator", str(grpc_address), "--no-discovery"]
                arguments = [*own, "--cluster", settings.cluster, "--parent-pid", str(os.getpid())]
                background.append(tasks.create_task(LocalShard([*arguments, *settings.local_shard]).run(), name="local-shard"))
            await http
            # Leases end before the local shard is told to: nobody is left to whom it could hand over its part.
            self._engine.shut_down()
            await membership.stop()
            for task in background:
                task.cancel()

    def _make_membership(self, grpc_port: int, metrics: ServingMetrics) -> Membership:
        hosts = self._settings.grpc_hosts
        places = Places(advertised(hosts, grpc_port), frozenset(hosts))

        def count(event: ClusterEvent) -> None:
            metrics.count_event(event.kind, event.duration_s)

        return Membership(self._config, self._model, self._machine, self._ring, self._engine, places, count)

    async def _start_grpc(self, server: grpc.aio.Server, membership: Membership, latency: LatencyObserver) -> None:
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(membership, self._state), server)
        ring_pb2_grpc.add_RingServiceServicer_to_server(ResultsServicer(self._ring), server)
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(ModelFileServicer(self._model.manifest, self._model.paths), server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(self._model.served, self._engine, latency), server)
        modules = (cluster_pb2, ring_pb2, weights_pb2, inference_pb2)
        names = [service.full_name for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
        health = add_standard_services(server, names)
        await server.start()
        await health.set_serving(True)

    async def _announcement(self, grpc_port: int) -> Announcement:
        addresses = await announced_addresses(self._settings.grpc_host)
        return Announcement(self._config.coordinator_id, self._config.cluster_hash, grpc_port, addresses)

    def snapshot(self) -> ClusterSnapshot:
        stats = self._engine.engine_stats()
        load = EngineLoad(stats.running, stats.waiting, stats.kv_blocks_free)
        return self._machine.snapshot(asyncio.get_running_loop().time(), load)

    def _state(self) -> cluster_pb2.ClusterState:
        seen = self._inviter.listed() if self._inviter is not None else ()
        return state_to_proto(self.snapshot(), self._clock_offset_s, seen)

    def _cluster_json(self) -> Mapping[str, object]:
        """The public state, and beside it measurements of this process that are only for whoever looks into it."""
        loads = {name: load.to_json() for name, load in self._engine.stage_loads().items()}
        delay = self._event_loop_delay.recent()._asdict()
        return {**message_to_json(self._state()), "stage_loads": loads, "event_loop_delay": delay}


def cluster_config(settings: CoordinatorSettings, limits: SchedulerLimits) -> ClusterConfig:
    return ClusterConfig(
        cluster_hash=cluster_hash(settings.cluster),
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=PROTOCOL_MINOR,
        coordinator_id=secrets.token_hex(8),
        software_version=software_version(),
        min_shards=settings.min_shards,
        context_length=limits.context_length,
        max_batch_rows=limits.max_batch_rows,
        target_kv_tokens=settings.kv_tokens or CONTEXTS_IN_CACHE * limits.context_length,
        arithmetic=settings.arithmetic,
        recovery_limit_s=settings.recovery_limit_s,
    )


def _expected_error(group: ExceptionGroup[Exception]) -> DairllmError | None:
    """What the tasks failed with, if it is one of our own errors: such as a port in use."""
    return next((error for error in group.exceptions if isinstance(error, DairllmError)), None)


async def run_coordinator(settings: CoordinatorSettings, stop: asyncio.Event) -> None:
    """Load the model and serve until `stop` is set."""
    with contextlib.ExitStack() as bars:
        progress = bars.enter_context(progress_bar()) if sys.stderr.isatty() else progress_lines(logger.info)
        arithmetic = str(settings.arithmetic)
        telling, assumed, quantize = until(stop.is_set, progress), settings.assumed_pretokenizer, settings.quantize
        load = asyncio.to_thread(
            load_model, settings.model, settings.model_name, arithmetic, telling, assumed, quantize, direct=settings.direct_weights
        )
        loading = asyncio.create_task(load)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            return
        model = loading.result()
    # What stays for the life of the process is not looked through for garbage again and again, which would hold the event loop.
    gc.collect()
    gc.freeze()
    await Coordinator(settings, model).run(stop)
