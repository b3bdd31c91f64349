"""The HTTP interface: OpenAI's API, the state of the cluster, metrics and the status page."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import cast

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from dairllm.coordinator.engine.interface import Engine
from dairllm.coordinator.http.answers import GenerationResponse, body_part, run_until_disconnected, sse_event, start_event_stream
from dairllm.coordinator.http.bodies import BodyTooLarge, BodyTooSlow, ClientGone, read_body
from dairllm.coordinator.http.calls import Call, read_chat_call, read_completion_call
from dairllm.coordinator.http.error_replies import error_reply, plain_error_reply, to_json
from dairllm.coordinator.http.fields import Fields, parse_json_object
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.http.metrics import CLIENT_GONE_STATUS, CountRequests, ServingMetrics
from dairllm.coordinator.text import ServedModel, TextService
from dairllm.mesh.errors import DairllmError

logger = logging.getLogger(__name__)

ClusterView = Callable[[], Mapping[str, object]]
CallReader = Callable[[Fields, TextService, HttpLimits], Awaitable[Call]]

READ = ["GET", "HEAD"]
PAGE_FILES: Mapping[str, str] = {
    "index.html": "text/html; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def create_app(
    served: ServedModel,
    engine: Engine,
    cluster: ClusterView,
    registry: CollectorRegistry,
    limits: HttpLimits | None = None,
) -> FastAPI:
    """The application. cluster: the state of the cluster as JSON, asked for whenever somebody wants to see it.

    `app.state.stopping` is an asyncio.Event that ends endless streams; `app.state.metrics` are the ServingMetrics of `registry`.
    """
    limits = limits or HttpLimits()
    metrics = ServingMetrics(registry, engine, cluster)
    text = TextService(served, engine, metrics)
    app = FastAPI(title="dairllm", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.stopping, app.state.metrics, app.state.limits = asyncio.Event(), metrics, limits
    app.add_middleware(CountRequests, metrics=metrics)
    _handle_errors(app, limits)
    _add_openai_routes(app, text, limits)
    _add_status_routes(app, text, cluster, limits)
    _add_page(app)
    return app


def _handle_errors(app: FastAPI, limits: HttpLimits) -> None:
    @app.exception_handler(DairllmError)
    async def refused(request: Request, error: DairllmError) -> Response:
        return error_reply(error)

    @app.exception_handler(HTTPException)
    async def refused_by_routing(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /v1/models, /v1/chat/completions, /v1/completions"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return plain_error_reply(error.status_code, message, code, error.headers)

    @app.exception_handler(BodyTooLarge)
    async def too_large(request: Request, error: BodyTooLarge) -> Response:
        message = f"the body is too large; expected at most {limits.max_body_bytes} bytes"
        return plain_error_reply(413, message, "body_too_large", {"connection": "close"})

    @app.exception_handler(BodyTooSlow)
    async def too_slow(request: Request, error: BodyTooSlow) -> Response:
        message = f"the body did not arrive; expected all of it within {limits.request_timeout_s:g} s"
        return plain_error_reply(408, message, "body_too_slow", {"connection": "close"})

    @app.exception_handler(ClientGone)
    async def gone(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return plain_error_reply(500, "the request failed because of an internal error", "internal_error")


def _add_openai_routes(app: FastAPI, text: TextService, limits: HttpLimits) -> None:
    async def answer(request: Request, read_call: CallReader) -> Response:
        body = parse_json_object(await read_body(request.receive, limits))
        return GenerationResponse(await read_call(body, text, limits), text, limits)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(request, read_chat_call)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, read_completion_call)

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model_object(text)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        text.require_model(name)
        return _json(_model_object(text))


def _add_status_routes(app: FastAPI, text: TextService, cluster: ClusterView, limits: HttpLimits) -> None:
    @app.api_route("/healthz", methods=READ)
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.api_route("/readyz", methods=READ)
    async def readyz() -> Response:
        error = text.engine.why_unready()
        return _json({"status": "ready"}) if error is None else error_reply(error)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(app.state.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/api/cluster")
    async def cluster_now() -> Response:
        return _json(_cluster_object(text, cluster))

    @app.get("/api/cluster/events")
    async def cluster_events() -> Response:
        return ClusterEvents(lambda: cast(Events, cluster().get("events", ())), app.state.stopping, limits.cluster_interval_s)


def _add_page(app: FastAPI) -> None:
    folder = files("dairllm.coordinator.dashboard")
    for name, media_type in PAGE_FILES.items():
        content = folder.joinpath(name).read_bytes()
        path = "/" if name == "index.html" else f"/{name}"
        app.add_api_route(path, _page_file(content, media_type), methods=READ, response_model=None)


def _page_file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page_file() -> Response:
        return Response(content, headers={**PAGE_HEADERS, "content-type": media_type})

    return page_file


def _json(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


def _model_object(text: TextService) -> dict[str, object]:
    served = text.served
    owner, context_length = "dairllm", text.engine.context_length
    return {"id": served.name, "object": "model", "created": served.created_s, "owned_by": owner, "max_model_len": context_length}


def _cluster_object(text: TextService, cluster: ClusterView) -> dict[str, object]:
    """The cluster's own state, and under `engine` the load and why it is not ready (null if it is)."""
    error = text.engine.why_unready()
    engine = {**text.engine.engine_stats()._asdict(), "ready_reason": None if error is None else str(error)}
    return {**cluster(), "engine": engine}


Events = Sequence[Mapping[str, object]]


class ClusterEvents(Response):
    """What happens to the cluster, as server-sent events: the recent events at once, then each as it comes, until the client goes or the
    server stops."""

    def __init__(self, events: Callable[[], Events], stopping: asyncio.Event, interval_s: float) -> None:
        super().__init__()
        self._events, self._stopping, self._interval_s = events, stopping, interval_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_until_disconnected(receive, self._messages(), send)

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield start_event_stream()
        newest: Mapping[str, object] | None = None
        while not self._stopping.is_set():
            events = self._events()
            for event in events_after(events, newest):
                yield body_part(sse_event(to_json(event)))
            newest = events[-1] if events else newest
            try:
                await asyncio.wait_for(self._stopping.wait(), self._interval_s)
            except TimeoutError:
                continue
        yield body_part(b"", more=False)


def events_after(events: Events, known: Mapping[str, object] | None) -> Events:
    """Those behind the one that is known; all, if it is not among them any more."""
    for index in range(len(events) - 1, -1, -1):
        if events[index] == known:
            return events[index + 1 :]
    return events
