"""The state of the cluster, whether it serves, and metrics."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, cast

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dairllm.coordinator.http.answer_types import Liveness
from dairllm.coordinator.http.answers import KEEP_ALIVE_COMMENT, body_part, run_until_disconnected, sse_event, start_event_stream
from dairllm.coordinator.http.error_replies import EVENT_STREAM, JSON, error_reply, json_reply, to_json
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.http.metrics import ServingMetrics
from dairllm.coordinator.http.operations import TEXT, Operation, OperationAnswer, refused
from dairllm.coordinator.text import TextService
from dairllm.mesh.message_json import message_schema
from dairllm.v1 import cluster_pb2

ClusterView = Callable[[], Mapping[str, object]]
"""The state of the cluster as JSON: ClusterState of cluster.proto, and what else this coordinator shows."""
Events = Sequence[Mapping[str, object]]

_STATE_SCHEMA: Mapping[str, Any] = {
    "allOf": [message_schema(cluster_pb2.ClusterState)],
    "properties": {
        "engine": {
            "type": "object",
            "description": "Load, and counters since the start.",
            "properties": {"ready_reason": {"type": ["string", "null"], "description": "Why requests are not served; null if they are."}},
            "required": ["ready_reason"],
        }
    },
    "required": ["engine"],
}


def cluster_operations(
    text: TextService, cluster: ClusterView, metrics: ServingMetrics, stopping: asyncio.Event, limits: HttpLimits
) -> Sequence[Operation]:
    """stopping: ends streams of events."""

    async def healthz(request: Request) -> Response:
        return json_reply({"status": "ok"})

    async def readyz(request: Request) -> Response:
        error = text.engine.why_unready()
        return json_reply({"status": "ready"}) if error is None else error_reply(error)

    async def metrics_now(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def cluster_now(request: Request) -> Response:
        return json_reply(_cluster_object(text, cluster))

    async def cluster_events(request: Request) -> Response:
        return ClusterEvents(lambda: cast(Events, cluster().get("events", ())), stopping, limits)

    alive = OperationAnswer("It is.", {JSON: Liveness})
    unready = refused("It is not; the message says why.", retry_after=True)
    event = message_schema(cluster_pb2.ClusterEvent)
    return [
        Operation("GET", "/healthz", "healthz", "Whether the process answers", healthz, {200: alive}),
        Operation("GET", "/readyz", "readyz", "Whether the model is served now", readyz, {200: alive, 503: unready}),
        Operation(
            "GET",
            "/metrics",
            "metrics",
            "Metrics for Prometheus",
            metrics_now,
            {200: OperationAnswer("All metrics.", {"text/plain": TEXT})},
        ),
        Operation(
            "GET",
            "/api/cluster",
            "cluster",
            "The state of the cluster",
            cluster_now,
            {200: OperationAnswer("As ClusterState of cluster.proto, and measurements beside it.", {JSON: _STATE_SCHEMA})},
        ),
        Operation(
            "GET",
            "/api/cluster/events",
            "cluster_events",
            "What happens to the cluster",
            cluster_events,
            {200: OperationAnswer("The recent events at once, then each as it comes, until the client goes.", {EVENT_STREAM: event})},
        ),
    ]


def _cluster_object(text: TextService, cluster: ClusterView) -> dict[str, object]:
    """The cluster's own state, and under `engine` the load and why it is not ready (null if it is)."""
    error = text.engine.why_unready()
    engine = {**text.engine.engine_stats()._asdict(), "ready_reason": None if error is None else str(error)}
    return {**cluster(), "engine": engine}


class ClusterEvents(Response):
    """What happens to the cluster, as server-sent events: the recent events at once, then each as it comes, until the client goes or the
    server stops."""

    def __init__(self, events: Callable[[], Events], stopping: asyncio.Event, limits: HttpLimits) -> None:
        super().__init__()
        self._events, self._stopping, self._limits = events, stopping, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await send(start_event_stream())
            await send(body_part(b"", more=False))
        else:
            await run_until_disconnected(receive, self._messages(), send)

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield start_event_stream()
        newest, silent_s = 0, 0.0
        while not self._stopping.is_set():
            events = self._events()
            for event in events:
                if cast(int, event["number"]) > newest:
                    yield body_part(sse_event(to_json(event)))
                    silent_s = 0.0
            newest = cast(int, events[-1]["number"]) if events else newest
            if silent_s >= self._limits.keep_alive_s:
                yield body_part(KEEP_ALIVE_COMMENT)
                silent_s = 0.0
            try:
                await asyncio.wait_for(self._stopping.wait(), self._limits.cluster_interval_s)
            except TimeoutError:
                silent_s += self._limits.cluster_interval_s
        yield body_part(b"", more=False)
