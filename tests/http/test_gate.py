"""By which names, from whose pages and by which targets the API may be used; and the ids of requests."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Mapping

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.http.gate.guard import Access
from dairllm.coordinator.http.gate.hosts import Authority, Hosts, checked_host, hosts_of, parse_authority
from dairllm.coordinator.http.gate.origins import Origins, checked_origin
from dairllm.mesh.errors import InvalidSetting
from tests.http.conftest import Site, request_bytes, run_site
from tests.text.fakes import make_served

DEADLINE_S = 10
PAGE = "http://localhost:3000"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


async def ask(site: Site, request: bytes) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and body of the answer to bytes on a bare connection."""
    reader, writer = await site.connect()
    writer.write(request)
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).decode()
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", 0))), DEADLINE_S)
    return int(status.split()[1]), headers, body


async def status_for(site: Site, host: str, **headers: str) -> int:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    status, _, body = await ask(site, f"GET /healthz HTTP/1.1\r\nhost: {host}\r\n{lines}\r\n".encode())
    if status != 200:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    return status


LOOPBACK = ("localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.8.9.1", "[::1]")
ELSEWHERE = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "192.0.2.1", "[2001:db8::1]", "a b", "@", "x:y")


async def test_at_loopback_only_names_of_loopback_are_known(site: Site) -> None:
    for name in LOOPBACK:
        assert await status_for(site, f"{name}:{site.port}") == await status_for(site, name) == 200
    for name in ELSEWHERE:
        assert await status_for(site, name) == 421
    assert (await ask(site, b"GET /healthz HTTP/1.0\r\n\r\n"))[0] == 200


def test_elsewhere_addresses_and_own_names_are_known_and_no_others() -> None:
    for bound in ("0.0.0.0", "::", "", "192.0.2.7"):
        hosts = hosts_of(bound, ["*.example.org", "cluster.lan"])
        own = socket.gethostname().lower()
        for name in (
            *("192.0.2.1", "2001:db8::1", "127.0.0.1", "localhost", own, f"{own.split('.')[0]}.local"),
            "a.example.org",
            "cluster.lan",
        ):
            assert hosts.admit(name), name
        for name in ("evil.example", "example.org", "evilexample.org", "evil.local", "192.0.2.1.evil.example"):
            assert not hosts.admit(name), name
    assert hosts_of("box.example.com", []).admit("box.example.com")
    assert hosts_of("127.0.0.1", ["box"]) == hosts_of("localhost", ["box"]) == Hosts(True, frozenset({"box"}))
    assert hosts_of("::1", ["*"]).admit("anything.example")


@given(st.text(max_size=40))
def test_any_host_is_read_or_none(text: str) -> None:
    authority = parse_authority(text)
    assert authority is None or (authority.host == authority.host.lower() and not Hosts().admit(f"x{authority.host}.example"))


def test_settings_are_names_and_origins() -> None:
    assert [checked_host(one) for one in ("Box.Example.com.", "*.example.com", "*")] == ["box.example.com", "*.example.com", "*"]
    assert [checked_origin(one) for one in ("http://LOCALHOST:3000/", "app://x", "null", "*")] == [PAGE, "app://x", "null", "*"]
    for wrong in ("http://a", "a:80", "", "a b"):
        with pytest.raises(InvalidSetting, match="--allowed-host"):
            checked_host(wrong)
    for wrong in ("localhost:3000", "http://a/b", "file://", ""):
        with pytest.raises(InvalidSetting, match="--cors-origin"):
            checked_origin(wrong)


async def test_pages_from_elsewhere_get_nothing_and_own_pages_everything(site: Site) -> None:
    own = f"localhost:{site.port}"
    for origin in (
        "https://evil.example",
        "null",
        f"http://127.0.0.1:{site.port}",
        f"http://{own}.evil.example",
        "http://localhost",
        "http://[",
    ):
        assert await status_for(site, own, origin=origin) == 403
    for origin in (f"http://{own}", f"https://{own}"):
        assert await status_for(site, own, origin=origin) == 200
    simple = request_bytes("/v1/chat/completions", json.dumps(CHAT).encode())
    simple = simple.replace(b"\r\n\r\n", b"\r\norigin: https://evil.example\r\ncontent-type: text/plain\r\n\r\n", 1)
    assert (await ask(site, simple))[0] == 403
    assert not site.engine.requests


def test_a_page_is_the_servers_own_whatever_port_its_scheme_implies() -> None:
    assert Origins().admit("https://box", Authority("box", None))
    assert Origins().admit("http://box", Authority("box", 80))
    assert Origins().admit("https://box", Authority("box", 443))
    assert not Origins().admit("https://box", Authority("box", 80))
    assert not Origins().admit("https://box", None)


@pytest.fixture
async def open_site() -> AsyncIterator[Site]:
    """Pages of one origin may use it."""
    async with run_site(make_served(), access=Access(Hosts(), Origins(frozenset({PAGE})))) as running:
        yield running


async def test_a_page_that_a_setting_names_may_ask_and_read(open_site: Site) -> None:
    async with httpx.AsyncClient(base_url=open_site.url, trust_env=False, headers={"origin": PAGE}) as client:
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
        preflight = await client.options("/v1/chat/completions", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        reply = await client.post("/v1/chat/completions", json=CHAT)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        refused = await client.post("/v1/chat/completions", json={})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (400, PAGE)
        other = await client.options("/v1/chat/completions", headers={**asked, "origin": "http://localhost:3001"})
        assert other.status_code == 403


async def test_without_the_setting_nothing_is_said_of_origins(site: Site) -> None:
    reply = await site.get("/healthz")
    assert not [name for name in reply.headers if name.startswith("access-control")]


async def test_a_target_may_be_a_whole_url(site: Site) -> None:
    status, _, body = await ask(site, b"GET http://localhost:1/healthz?x=1 HTTP/1.1\r\nhost: evil.example\r\n\r\n")
    assert (status, body) == (200, b'{"status":"ok"}')
    assert (await ask(site, b"GET http://localhost HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 200
    assert (await ask(site, b"GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 421
    assert (await ask(site, b"GET http://[/healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"))[0] == 404


async def test_a_large_head_is_refused_also_where_it_comes_at_once(site: Site) -> None:
    status, _, body = await ask(site, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * (65 << 10) + b"\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")


async def test_every_answer_has_the_clients_id_or_one_of_its_own(site: Site) -> None:
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
        for path in ("/healthz", "/v1/nothing", "/v1/models/unknown"):
            assert (await client.get(path, headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        made = [(await client.get("/healthz", headers={"x-request-id": sent})).headers["x-request-id"] for sent in ("", "a b", "x" * 129)]
    assert len(set(made)) == 3
    assert all(len(one) == 32 for one in made)
    async with site.client() as asking:
        with pytest.raises(openai.NotFoundError) as refused:
            await asking.models.retrieve("other")
    assert refused.value.request_id


async def test_a_defect_is_found_in_the_log_by_the_id_that_its_client_got(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.engine.error, site.engine.fail_at = ValueError("a defect"), -1
    reply = await site.post("/v1/chat/completions", CHAT)
    assert reply.status_code == 500
    request_id = reply.headers["x-request-id"]
    assert request_id in reply.json()["error"]["message"]
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(told)["fields"]["request_id"] == request_id
    assert 'status="500"' in (await site.get("/metrics")).text


async def test_so_is_one_in_the_middle_of_a_stream(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.engine.error, site.engine.fail_at = ValueError("a defect"), 3
    reply = await site.post("/v1/chat/completions", {**CHAT, "stream": True})
    request_id = reply.headers["x-request-id"]
    assert f"its id is {request_id}" in reply.text
    (told,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert vars(told)["fields"]["request_id"] == request_id
