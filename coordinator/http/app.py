"""The HTTP interface: OpenAI's API, the state of the cluster, metrics, and pages for people."""

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from dairllm.coordinator.engine.interface import TokenEngine
from dairllm.coordinator.http.bodies.compression import ACCEPTED, BodyTooLarge, UnknownCoding
from dairllm.coordinator.http.bodies.reading import BodyTooSlow, ClientGone
from dairllm.coordinator.http.cluster_api import ClusterView, cluster_operations
from dairllm.coordinator.http.error_replies import error_reply, plain_error_reply
from dairllm.coordinator.http.gate.guard import ONLY_LOOPBACK, Access, Guard
from dairllm.coordinator.http.gate.request_ids import HEADER as REQUEST_ID
from dairllm.coordinator.http.gate.request_ids import RequestIds
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.http.metrics import CLIENT_GONE_STATUS, CountRequests, ServingMetrics
from dairllm.coordinator.http.openai_api import openai_operations
from dairllm.coordinator.http.openapi import openapi_document
from dairllm.coordinator.http.pages import document_operations, page_operations
from dairllm.coordinator.text import ServedModel, TextService
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.protocol import software_version


def create_app(
    served: ServedModel,
    engine: TokenEngine,
    cluster: ClusterView,
    registry: CollectorRegistry,
    limits: HttpLimits | None = None,
    access: Access = ONLY_LOOPBACK,
) -> Starlette:
    """The application. cluster: the state of the cluster as JSON, asked for whenever somebody wants to see it.

    `app.state.stopping` is an asyncio.Event that ends endless streams; `app.state.metrics` are the ServingMetrics of `registry`.
    """
    limits = limits or HttpLimits()
    metrics = ServingMetrics(registry, engine, cluster)
    text = TextService(served, engine, metrics)
    stopping = asyncio.Event()
    operations = [
        *openai_operations(text, limits),
        *cluster_operations(text, cluster, metrics, stopping, limits),
        *page_operations(),
    ]
    document = openapi_document(operations, software_version())
    app = Starlette(
        routes=[operation.route() for operation in (*operations, *document_operations(document))],
        middleware=[Middleware(CountRequests, metrics=metrics), *_gate(access, limits)],
    )
    app.state.stopping, app.state.metrics, app.state.limits = stopping, metrics, limits
    _handle_errors(app, limits)
    return app


def _gate(access: Access, limits: HttpLimits) -> Iterator[Middleware]:
    """From outside."""
    yield Middleware(RequestIds)
    yield Middleware(Guard, access=access, max_head_bytes=limits.max_head_bytes)
    if access.origins.allowed:
        yield Middleware(
            CORSMiddleware,
            allow_origins=access.origins.allowed,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID, "retry-after"),
        )


def _handle_errors(app: Starlette, limits: HttpLimits) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, DairllmError)
        return error_reply(error)

    async def refused_by_routing(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; see /docs"
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return plain_error_reply(error.status_code, message, code, error.headers)

    async def too_large(request: Request, error: Exception) -> Response:
        message = f"the body is too large; expected at most {limits.max_body_bytes} bytes"
        return plain_error_reply(413, message, "body_too_large", {"connection": "close"})

    async def unknown_coding(request: Request, error: Exception) -> Response:
        message = f"content-encoding is {str(error)[:100]!r}; expected {ACCEPTED}"
        return plain_error_reply(415, message, "unknown_content_encoding", {"accept-encoding": ACCEPTED})

    async def too_slow(request: Request, error: Exception) -> Response:
        message = f"the body did not arrive; expected all of it within {limits.request_timeout_s:g} s"
        return plain_error_reply(408, message, "body_too_slow", {"connection": "close"})

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)

    app.add_exception_handler(DairllmError, refused)
    app.add_exception_handler(HTTPException, refused_by_routing)
    app.add_exception_handler(BodyTooLarge, too_large)
    app.add_exception_handler(UnknownCoding, unknown_coding)
    app.add_exception_handler(BodyTooSlow, too_slow)
    app.add_exception_handler(ClientGone, gone)
