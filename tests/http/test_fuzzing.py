"""Whatever anybody sends, the answer is one that the OpenAPI document describes. Found out by schemathesis, over a real port.

FUZZ_S in the environment: how long the random part goes on at least, in seconds, as `make fuzz` has it.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from dairllm.mesh.message_json import message_to_json
from dairllm.v1 import cluster_pb2
from tests.http.conftest import Site, run_site
from tests.text.fakes import make_served

# Not 'positive_data_acceptance': that top_logprobs needs logprobs, that best_of is n, or how many tokens the context holds, no schema says.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
EXAMPLES = 40
FUZZ_S = float(os.environ.get("FUZZ_S", "0"))
DEADLINE_S = 240.0


class EndingStreams:
    """Streams of the cluster's events end with the events of the first look."""

    def __init__(self, app: ASGIApp, state: Starlette) -> None:
        self._app, self._stopping = app, state.state.stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/api/cluster/events":
            self._stopping.clear()
        await self._app(scope, receive, send)


def cluster_state() -> dict[str, object]:
    state = cluster_pb2.ClusterState(model="tiny", epoch=3, phase=cluster_pb2.CLUSTER_PHASE_SERVING)
    state.shards.add(name="a", addresses=["192.0.2.1:9000"], stage=0).capabilities.SetInParent()
    state.shards.add(name="b")
    state.events.add(time_s=1.7e9, kind="shard_joined", shard="b", text="shard b has joined")
    return message_to_json(state)


@pytest.fixture
async def described_site() -> AsyncIterator[Site]:
    def look() -> dict[str, object]:
        site.app.state.stopping.set()
        return cluster_state()

    async with run_site(make_served(), cluster_view=look) as site:
        site.app.add_middleware(EndingStreams, state=site.app)
        yield site


async def fuzz(site: Site, folder: Path, *arguments: str) -> None:
    """Prints what schemathesis prints; fails if it finds anything. folder: for what it keeps of its runs."""
    limits = ["--max-time", f"{FUZZ_S:g}"] if FUZZ_S else ["--max-examples", str(EXAMPLES), "--generation-deterministic"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{site.url}/openapi.json", "--no-color", *limits, *arguments]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S + FUZZ_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(output.decode())
    assert process.returncode == 0, output.decode()


@pytest.mark.slow
@pytest.mark.timeout(300 + FUZZ_S)
async def test_every_answer_is_as_described(described_site: Site, tmp_path: Path) -> None:
    await fuzz(described_site, tmp_path, "--checks", ",".join(CHECKS))
