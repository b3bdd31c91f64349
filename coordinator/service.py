"""The coordinator as a whole: its parts put together, started and stopped in order."""

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.actions import ClusterEventRecord
from dairllm.coordinator.cluster.facts import Epoch
from dairllm.coordinator.cluster.snapshot import ClusterSnapshot, EngineLoad
from dairllm.coordinator.cluster.state import ClusterConfig, Phase
from dairllm.coordinator.cluster_state import state_to_proto
from dairllm.coordinator.engine.actions import ReportRecovery
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.engine.events import BatchCompleted
from dairllm.coordinator.engine.facts import SchedulerLimits
from dairllm.coordinator.event_loop import EventLoopDelay
from dairllm.coordinator.http.app import create_app
from dairllm.coordinator.http.metrics import ServingMetrics
from dairllm.coordinator.http.server import serve
from dairllm.coordinator.inference_servicer import InferenceServicer
from dairllm.coordinator.local_shard import LocalShard
from dairllm.coordinator.membership import Membership
from dairllm.coordinator.model import LoadedModel, load_model
from dairllm.coordinator.reachability import advertised
from dairllm.coordinator.ring import Ring, StageTiming
from dairllm.coordinator.servicer import ClusterServicer, RingServicer
from dairllm.coordinator.text import LatencyObserver
from dairllm.coordinator.weights import WeightsServicer
from dairllm.mesh.addresses import Address
from dairllm.mesh.channels import add_standard_services, bind, create_server
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery import Announcement, Announcer
from dairllm.mesh.errors import DairllmError, InvalidSetting, NotEnoughMemory, NotReady
from dairllm.mesh.interfaces import real_interface_addresses
from dairllm.mesh.message_json import message_to_json
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, software_version
from dairllm.mesh.ready_file import remove_ready_file, write_ready_file
from dairllm.model_files.progress import progress_bar
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

DEFAULT_CONTEXT_LENGTH = 8192
CONTEXTS_IN_CACHE = 4
RETRY_AFTER_S = 2.0
WATCH_INTERVAL_S = 1.0
SERVER_STOP_S = 2.0
ANY_HOSTS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """What the flags of `dairllm-coordinator` say. local_shard: the local shard's own arguments, None for no such shard."""

    model: str
    model_name: str | None
    wire: str
    http_host: str
    http_port: int
    grpc_host: str
    grpc_port: int
    cluster: str
    min_shards: int
    context_length: int | None
    kv_tokens: int | None
    kv_cache: str
    max_running: int
    max_waiting: int
    recovery_limit_s: float
    local_shard: tuple[str, ...] | None
    discovery: bool
    ready_file: Path | None


class Coordinator:
    """run() is its whole life."""

    def __init__(self, settings: CoordinatorSettings, model: LoadedModel) -> None:
        self._settings = settings
        self._model = model
        self._cluster_hash = cluster_hash(settings.cluster)
        self._coordinator_id = secrets.token_hex(8)
        self._limits = SchedulerLimits(
            context_length=context_length_of(settings, model), max_running=settings.max_running, max_waiting=settings.max_waiting
        )
        self._ring = Ring(self._cluster_hash, self._complete, self._ring_broken)
        self._engine = Engine(
            self._limits,
            model.manifest.spec.vocab_size,
            self._ring.send,
            self.why_unready,
            settings.recovery_limit_s,
            lambda: self._membership.drained(),
            self._recovered,
        )
        self._membership: Membership
        self._metrics = CollectorRegistry()
        self._event_loop_delay = EventLoopDelay(self._metrics)
        self._http_port = 0
        # Fixed, so that an event has the same time whenever it is shown.
        self._clock_offset_s = time.time() - asyncio.get_running_loop().time()

    async def run(self, stop: asyncio.Event) -> None:
        settings = self._settings
        server = create_server()
        grpc_port = await bind(server, settings.grpc_host or "0.0.0.0", settings.grpc_port, "the coordinator's gRPC server")
        hosts = real_interface_addresses() if settings.grpc_host in ANY_HOSTS else [settings.grpc_host]
        app = create_app(self._model.served, self._engine, self._cluster_json, self._metrics)
        self._membership = self._make_membership(hosts, grpc_port, app.state.metrics)
        await self._start_grpc(server, app.state.metrics)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(server.stop, SERVER_STOP_S)
            stack.push_async_callback(self._membership.stop)
            stack.callback(self._engine.shut_down)
            if settings.discovery:
                await stack.enter_async_context(Announcer(self._announcement(grpc_port)))
            try:
                await self._serve(app, stop, grpc_port, stack)
            except ExceptionGroup as group:
                raise _expected_error(group) or group from None

    async def _serve(self, app: FastAPI, stop: asyncio.Event, grpc_port: int, stack: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        listening = asyncio.Event()

        def on_listening(port: int) -> None:
            self._http_port = port
            listening.set()

        async with asyncio.TaskGroup() as tasks:
            http = tasks.create_task(serve(app, settings.http_host, settings.http_port, stop, on_listening), name="http")
            background = [
                tasks.create_task(self._membership.run(), name="membership"),
                tasks.create_task(self._watch_frames(), name="watch-frames"),
                tasks.create_task(self._event_loop_delay.run(), name="event-loop-delay"),
            ]
            await listening.wait()
            logger.info("API and status page at http://%s", Address(_dialable(settings.http_host), self._http_port))
            logger.info("shards join at port %d of this machine", grpc_port)
            if settings.ready_file is not None:
                self._write_ready_file(settings.ready_file, grpc_port)
                stack.callback(remove_ready_file, settings.ready_file)
            if settings.local_shard is not None:
                background.append(tasks.create_task(LocalShard(self._local_arguments(grpc_port)).run(), name="local-shard"))
            await http
            for task in background:
                task.cancel()

    def _make_membership(self, hosts: list[str], grpc_port: int, metrics: ServingMetrics) -> Membership:
        settings = self._settings
        config = ClusterConfig(
            cluster_hash=self._cluster_hash,
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            coordinator_id=self._coordinator_id,
            software_version=software_version(),
            min_shards=settings.min_shards,
            context_length=self._limits.context_length,
            max_batch_rows=self._limits.max_batch_rows,
            target_kv_tokens=settings.kv_tokens or CONTEXTS_IN_CACHE * self._limits.context_length,
            wire=settings.wire,
            kv_cache=settings.kv_cache,
        )
        addresses = advertised(["127.0.0.1", *hosts], grpc_port)

        def count(event: ClusterEventRecord) -> None:
            metrics.count_event(event.kind, event.duration_s)

        return Membership(config, self._model, self._ring, addresses, frozenset(hosts), self._engine, count)

    async def _start_grpc(self, server: grpc.aio.Server, latency: LatencyObserver) -> None:
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(self._membership, self._state), server)
        ring_pb2_grpc.add_RingServiceServicer_to_server(RingServicer(self._ring), server)
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(WeightsServicer(self._model.manifest, self._model.path), server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceServicer(self._model.served, self._engine, latency), server)
        modules = (cluster_pb2, ring_pb2, weights_pb2, inference_pb2)
        names = [service.full_name for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
        health = add_standard_services(server, names)
        await server.start()
        await health.set_serving(True)

    def _announcement(self, grpc_port: int) -> Announcement:
        host = self._settings.grpc_host
        addresses = () if host in ANY_HOSTS else (host,)
        return Announcement(self._coordinator_id, self._cluster_hash, grpc_port, addresses)

    def _local_arguments(self, grpc_port: int) -> list[str]:
        assert self._settings.local_shard is not None
        own = Address(_dialable(self._settings.grpc_host), grpc_port)
        fixed = ["--coordinator", str(own), "--cluster", self._settings.cluster, "--parent-pid", str(os.getpid())]
        return [*fixed, *self._settings.local_shard]

    def _write_ready_file(self, path: Path, grpc_port: int) -> None:
        grpc_address = Address(_dialable(self._settings.grpc_host), grpc_port)
        http_address = Address(_dialable(self._settings.http_host), self._http_port)
        write_ready_file(path, {"pid": os.getpid(), "grpc": str(grpc_address), "http": str(http_address)})

    # The ring and the engine

    def _recovered(self, report: ReportRecovery, duration_s: float) -> None:
        share = report.replayed_work / report.all_work if report.all_work else 0.0
        recovered = on.AnswersRecovered(report.num_kept, report.num_replayed, report.num_restarted, share, duration_s)
        self._membership.handle(recovered)

    def _ring_broken(self, epoch: int, message: str) -> None:
        self._membership.handle(on.RingBroken(Epoch(epoch), message))

    def _complete(self, event: BatchCompleted, timings: Sequence[StageTiming]) -> None:
        self._engine.complete(event, timings)

    async def _watch_frames(self) -> None:
        """Give up on frames that do not come back, and tell the cluster machine how long steps take."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            epoch = Epoch(self._ring.epoch)
            overdue_s = self._engine.overdue_s()
            if overdue_s is not None:
                self._membership.handle(on.RingBroken(epoch, f"a frame did not come back within {overdue_s:.0f} s"))
            for shard, step_s in self._engine.decode_steps_s().items():
                self._membership.handle(on.StepMeasured(epoch, shard, step_s))

    def why_unready(self) -> DairllmError | None:
        """None while a plan serves, or is about to again before answers that run now would fail."""
        machine = self._membership.machine
        closed_for_s = self._membership.closed_for_s()
        if closed_for_s is not None and closed_for_s < self._settings.recovery_limit_s and machine.phase is not Phase.WAITING:
            return None
        kind = NotEnoughMemory if machine.missing_bytes else NotReady
        return kind(f"the model is not served yet: {machine.reason or 'the ring of shards is being opened'}", retry_after_s=RETRY_AFTER_S)

    def snapshot(self) -> ClusterSnapshot:
        stats = self._engine.engine_stats()
        load = EngineLoad(stats.running, stats.waiting, stats.kv_blocks_free)
        return self._membership.machine.snapshot(asyncio.get_running_loop().time(), load)

    def _state(self) -> cluster_pb2.ClusterState:
        return state_to_proto(self.snapshot(), self._clock_offset_s)

    def _cluster_json(self) -> Mapping[str, object]:
        """The public state, and beside it measurements of this process that are only for whoever looks into it."""
        loads = {name: load.to_json() for name, load in self._engine.stage_loads().items()}
        delay = self._event_loop_delay.recent()._asdict()
        return {**message_to_json(self._state()), "stage_loads": loads, "event_loop_delay": delay}


def context_length_of(settings: CoordinatorSettings, model: LoadedModel) -> int:
    """The longest sequence that is served. Raises InvalidSetting for more than the model was made for."""
    longest = model.manifest.spec.context_length
    if settings.context_length is None:
        return min(longest, DEFAULT_CONTEXT_LENGTH)
    if settings.context_length > longest:
        raise InvalidSetting(f"--context-length is {settings.context_length}; the model was made for at most {longest} tokens")
    return settings.context_length


def _expected_error(group: ExceptionGroup[Exception]) -> DairllmError | None:
    """What the tasks failed with, if it is one of our own errors: such as a port in use."""
    return next((error for error in group.exceptions if isinstance(error, DairllmError)), None)


def _dialable(host: str) -> str:
    return "127.0.0.1" if host in ANY_HOSTS else host


async def run_coordinator(settings: CoordinatorSettings, stop: asyncio.Event) -> None:
    """Load the model and serve until `stop` is set."""
    with contextlib.ExitStack() as bars:
        progress = bars.enter_context(progress_bar()) if sys.stderr.isatty() else None
        loading = asyncio.create_task(asyncio.to_thread(load_model, settings.model, settings.model_name, progress))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            return
        model = loading.result()
    await Coordinator(settings, model).run(stop)
