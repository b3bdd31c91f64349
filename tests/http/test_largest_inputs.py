"""Nobody who sends or asks for as much as is allowed holds up everybody else: leases, heartbeats and tokens wait for the same loop."""

import asyncio
import gc
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest

from dairllm.coordinator.http.limits import HttpLimits
from dairllm.mesh.sampling import MAX_TOP_LOGPROBS
from tests.http.conftest import Site, request_bytes, run_site
from tests.instruments.loop_delay import watching_the_loop
from tests.text.fakes import CONTEXT_LENGTH, make_served

LIMITS = HttpLimits(request_timeout_s=120.0)
LARGEST = LIMITS.max_body_bytes - 1000
MAX_HOLD_S = 0.05
TOLERATED_S = 5 * MAX_HOLD_S
"""A step takes longer on a slow machine and on one that others use, too. What must not come back held the loop for seconds."""
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(autouse=True)
def frozen() -> Iterator[None]:
    """As in a coordinator, the collector of garbage looks through no more than what requests leave behind."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def real_site() -> AsyncIterator[Site]:
    async with run_site(make_served(), LIMITS) as site:
        yield site


def chat_of(content: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"' + content + b'"}]}'


def field_of(value: bytes) -> bytes:
    return b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":1,"metadata":' + value + b"}"


BODIES: dict[str, Callable[[], tuple[str, bytes]]] = {
    "text": lambda: (CHAT, chat_of(b"word " * (LARGEST // 5))),
    "escapes": lambda: (CHAT, chat_of(b"\\n" * (LARGEST // 2))),
    "characters": lambda: (CHAT, chat_of("語".encode() * (LARGEST // 3))),
    "lists": lambda: (CHAT, field_of(b"[" + b"[]," * (LARGEST // 3) + b"0]")),
    "objects": lambda: (CHAT, field_of(b"[" + b'{"a":0},' * (LARGEST // 8) + b"0]")),
    "keys": lambda: (CHAT, field_of(b"{" + b",".join(b'"%07d":1' % one for one in range(LARGEST // 12)) + b"}")),
    "messages": lambda: (CHAT, b'{"messages":[' + b'{"role":"user","content":""},' * (LARGEST // 29 - 9) + b"0]}"),
    "ids": lambda: (TEXT, b'{"prompt":[' + b"1," * (LARGEST // 2 - 9) + b"1]}"),
    "prompts": lambda: (TEXT, b'{"prompt":[' + b'"",' * (LARGEST // 3 - 9) + b'"a"]}'),
    "logit_bias": lambda: (TEXT, b'{"prompt":"a","logit_bias":{' + b",".join(b'"%07d":1' % one for one in range(LARGEST // 12)) + b"}}"),
    "no JSON": lambda: (TEXT, b"\xff" * LARGEST),
}


@pytest.mark.parametrize("name", BODIES)
async def test_the_largest_bodies_hold_nobody_up(real_site: Site, name: str) -> None:
    path, body = await asyncio.to_thread(BODIES[name])
    packed = await asyncio.to_thread(gzip.compress, body, 1)
    async with httpx.AsyncClient(base_url=real_site.url, trust_env=False, timeout=100) as client, watching_the_loop() as longest:
        reply = await client.post(path, content=packed, headers={"content-encoding": "gzip"})
    assert reply.status_code in (200, 400)
    assert longest.seconds < TOLERATED_S


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_largest_answers_hold_nobody_up(real_site: Site, path: str, stream: bool) -> None:
    real_site.engine.reply = lambda request: b"x" * CONTEXT_LENGTH
    logprobs = {"logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS} if path == CHAT else {"logprobs": MAX_TOP_LOGPROBS, "echo": True}
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if path == CHAT else {"prompt": "Hi"}
    body = {**prompt, **logprobs, "n": 8, "max_tokens": CONTEXT_LENGTH - 64, "stream": stream}
    async with watching_the_loop() as longest:
        reader, writer = await real_site.connect()
        writer.write(request_bytes(path, json.dumps(body).encode()).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        received = 0
        while part := await asyncio.wait_for(reader.read(1 << 16), 100):
            received += len(part)
    assert received > 8 * (CONTEXT_LENGTH - 64) * MAX_TOP_LOGPROBS * 8
    assert longest.seconds < TOLERATED_S


async def test_what_holds_the_loop_is_seen() -> None:
    async with watching_the_loop() as longest:
        await asyncio.sleep(0.02)
        began_s = time.process_time()
        while time.process_time() - began_s < 0.2:
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0.02)
    assert longest.seconds > 0.1
