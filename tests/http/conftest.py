"""The app on a real port, in front of an engine that answers from a script."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from dairllm.coordinator.http.app import create_app
from dairllm.coordinator.http.connections.server import serve
from dairllm.coordinator.http.gate.guard import ONLY_LOOPBACK, Access
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.text import ServedModel
from tests.text.fakes import FakeEngine, make_served

LIMITS = HttpLimits(
    max_body_bytes=64 << 10,
    request_timeout_s=1.0,
    write_stall_s=0.5,
    keep_alive_s=0.05,
    half_closed_tick_s=0.05,
    shutdown_s=1.0,
    cluster_interval_s=0.02,
)

USAGE = {"streamed_bytes": 5000, "streaming_us": 2_500_000, "stalled_us": 1_000_000, "experts_found": 30, "experts_missed": 10}
SHARDS = [{"name": "a", "usage": USAGE}, {"name": "b"}]


@dataclass
class Site:
    """A running server. port: where it listens; cluster: what /api/cluster shows."""

    engine: FakeEngine
    app: Starlette
    port: int
    stop: asyncio.Event
    cluster: dict[str, object] = field(default_factory=dict)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=10)

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            return await client.get(path)

    async def post(self, path: str, body: object) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            content = body if isinstance(body, bytes) else None
            return await client.post(path, content=content, json=None if content is not None else body)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection; it is closed after the test."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def close_connections(self) -> None:
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def run_site(
    served: ServedModel,
    limits: HttpLimits = LIMITS,
    cluster_view: Callable[[], Mapping[str, object]] | None = None,
    access: Access = ONLY_LOOPBACK,
) -> AsyncIterator[Site]:
    """cluster_view: gives the state of the cluster; None for that of Site."""
    engine = FakeEngine()
    events = [{"number": 1, "text": "shard b joined"}]
    cluster: dict[str, object] = {"phase": "serving", "epoch": 3, "shards": SHARDS, "events": events}
    app = create_app(served, engine, cluster_view or (lambda: cluster), CollectorRegistry(), limits, access)
    stop = asyncio.Event()
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(app, "127.0.0.1", 0, stop, listening.set_result))
    site = Site(engine, app, await asyncio.wait_for(listening, 10), stop, cluster)
    try:
        yield site
    finally:
        stop.set()
        await asyncio.wait_for(serving, 10)
        await site.close_connections()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with run_site(make_served()) as running:
        yield running


@pytest.fixture
async def bare_site() -> AsyncIterator[Site]:
    """Serves a model without tokenizer."""
    async with run_site(make_served(with_tokenizer=False, with_template=False)) as running:
        yield running


def read_events(text: str) -> list[str]:
    """The data of server-sent events, comments left out (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
    events = []
    for block in text.split("\n\n"):
        lines = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        if lines:
            events.append("\n".join(lines))
    return events


def request_bytes(path: str, body: bytes) -> bytes:
    """A POST as it goes over the socket."""
    return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
