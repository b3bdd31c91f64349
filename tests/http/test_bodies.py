"""Bodies that are compressed, marked, or so large that reading them takes long."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import replace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from dairllm.coordinator.http.bodies import json_steps
from dairllm.coordinator.http.bodies.compression import BodyTooLarge, unpack
from dairllm.coordinator.http.bodies.json_steps import loads_in_steps
from dairllm.coordinator.http.bodies.models import ChatCompletionBody
from dairllm.coordinator.http.bodies.reading import LARGE_BYTES, BodyReader
from dairllm.mesh.errors import Busy, InvalidRequest
from tests.http.conftest import LIMITS, Site

BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
CHAT = "/v1/chat/completions"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


async def post(site: Site, body: bytes, coding: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
        return await client.post(CHAT, content=body, headers={"content-encoding": coding})


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (gzip.compress(BODY), "gzip"),
        (gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]), "X-GZIP"),
        (zlib.compress(BODY), "deflate"),
        (raw_deflate(BODY), "deflate"),
        (gzip.compress(zlib.compress(BODY)), "deflate, gzip"),
        (BODY, "identity"),
        (b"\xef\xbb\xbf" + BODY, "identity"),
        (gzip.compress(b"\xef\xbb\xbf" + BODY), "gzip"),
    ],
    ids=map(str, range(8)),
)
async def test_a_body_is_what_it_unpacks_to(site: Site, body: bytes, coding: str) -> None:
    reply = await post(site, body, coding)
    assert (reply.status_code, reply.json().get("error")) == (200, None)


@pytest.mark.parametrize(
    ("body", "coding", "status", "words"),
    [
        (BODY, "br", 415, "content-encoding is 'br'; expected gzip, deflate"),
        (BODY, "gzip, gzip, gzip", 415, "expected gzip, deflate"),
        (BODY, "gzip", 400, "cannot be unpacked"),
        (gzip.compress(BODY)[:-9], "gzip", 400, "ends too early"),
        (gzip.compress(BODY) + BODY, "gzip", 400, "cannot be unpacked"),
        (b"", "gzip", 400, "ends too early"),
        (gzip.compress(bytes(100 << 20)), "gzip", 413, "too large"),
        (gzip.compress(gzip.compress(bytes(LIMITS.max_body_bytes + 1))), "gzip, gzip", 413, "too large"),
    ],
    ids=map(str, range(8)),
)
async def test_bodies_that_cannot_be_unpacked(site: Site, body: bytes, coding: str, status: int, words: str) -> None:
    reply = await post(site, body, coding)
    assert (reply.status_code, set(reply.json()["error"])) == (status, {"message", "type", "param", "code"})
    assert words in reply.json()["error"]["message"]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.integers(0, 900))
def test_members_are_joined_up_to_the_limit(members: list[bytes], limit_bytes: int) -> None:
    whole, packed = b"".join(members), b"".join(map(gzip.compress, members))
    if len(whole) > limit_bytes:
        with pytest.raises(BodyTooLarge):
            unpack(packed, ["gzip"], limit_bytes)
    else:
        assert unpack(packed, ["gzip"], limit_bytes) == whole


@given(st.binary(max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_any_bytes_unpack_or_are_refused(data: bytes, coding: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(unpack(data, [coding], 1 << 20), bytes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, st.booleans(), st.integers(0, 20))
def test_in_steps_json_is_what_it_is_at_once(value: object, ascii_only: bool, padding: int) -> None:
    data = (" " * padding + json.dumps(value, ensure_ascii=ascii_only)).encode(errors="replace")
    assert loads_in_steps(data, float) == json.loads(data)


@pytest.mark.parametrize("unit", ["a", "語", "\\n", "\\u8a9e", "\\ud83d\\ude00", "x\\ud83d\\ude00", "\\\\", '\\"', "😀", "ab\\ud800"])
def test_long_strings_are_whole_although_they_are_read_in_pieces(unit: str) -> None:
    for shift in range(4):
        data = ('{"a": "' + "x" * shift + unit * 400_000 + '", "b": 1}').encode()
        assert loads_in_steps(data, float) == json.loads(data)


def outcome(loads: Callable[[], object]) -> object:
    try:
        return loads()
    except ValueError as error:
        return type(error), str(error)


@given(st.binary(max_size=60) | st.text('{}[]":,\\u0aé1.e-tn \n').map(str.encode))
def test_what_is_no_json_is_refused_in_the_same_words(data: bytes) -> None:
    assert outcome(lambda: loads_in_steps(data, float)) == outcome(lambda: json.loads(data.decode(), parse_constant=float))
    late = b'"' + b"x" * 400_000 + data
    assert outcome(lambda: loads_in_steps(late, float)) == outcome(lambda: json.loads(late.decode(), parse_constant=float))


def test_there_are_only_so_many_values() -> None:
    for body, words in (
        (b"[" + b"1," * json_steps.MAX_VALUES + b"1]", "values"),
        (b"[" + b"[]," * json_steps.MAX_CONTAINERS + b"1]", "lists"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            loads_in_steps(body, float)


async def test_a_large_body_is_read_like_a_small_one(site: Site) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "metadata": {"x": ["y"] * 10_000}}).encode() + b" " * 10_000
    assert LARGE_BYTES > len(body) > LARGE_BYTES // 2
    replies = await asyncio.gather(*(site.post(CHAT, body + b" " * padding) for padding in (0, 0, LARGE_BYTES - len(body))))
    assert [reply.status_code for reply in replies] == [200] * 3


async def test_large_bodies_that_come_at_once_are_bounded_by_their_sum() -> None:
    reader, second_half_comes = BodyReader(replace(LIMITS, max_body_bytes=4 << 20, max_bodies_bytes=8 << 20)), asyncio.Event()
    large = json.dumps({"messages": [{"role": "user", "content": "x" * (3 << 20)}]}).encode()

    def request(body: bytes) -> Request:
        halves = [body[: len(body) // 2], body[len(body) // 2 :]]

        async def receive() -> dict[str, object]:
            if body is large and len(halves) == 1:
                await second_half_comes.wait()
            return {"type": "http.request", "body": halves.pop(0), "more_body": bool(halves)}

        return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)

    reading = [asyncio.create_task(reader.read(request(large), ChatCompletionBody)) for _ in range(10)]
    await asyncio.sleep(0)
    assert await reader.read(request(BODY), ChatCompletionBody), "small ones have room"
    second_half_comes.set()
    outcomes = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Busy, ChatCompletionBody}
    assert await reader.read(request(large), ChatCompletionBody), "when they are read, there is room again"
