"""The API describes itself, for programs and for people."""

import json
import re

import pytest
from pydantic import TypeAdapter

from dairllm.coordinator.http.answer_types import ChatCompletion, ChatCompletionChunk, Completion, CompletionChunk, ErrorEvent, ErrorReply
from dairllm.coordinator.text import ServedModel
from dairllm.mesh.errors import (
    Busy,
    ContextExceeded,
    GenerationFailed,
    NotEnoughMemory,
    NotReady,
    PromptTemplateFailed,
    RequestLost,
    Unsupported,
)
from tests.http.conftest import Site, read_events, run_site
from tests.text.fakes import make_served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, object]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "logprobs": True, "top_logprobs": 2},
    TEXT: {"prompt": "Hi", "logprobs": 2, "echo": True},
}
WHOLE = {CHAT: TypeAdapter[object](ChatCompletion), TEXT: TypeAdapter[object](Completion)}
CHUNKS = {CHAT: TypeAdapter[object](ChatCompletionChunk), TEXT: TypeAdapter[object](CompletionChunk)}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("extra", [{}, {"n": 2, "return_token_ids": True, "stream_options": {"include_usage": True}}])
async def test_answers_and_chunks_are_as_described(site: Site, path: str, extra: dict[str, object]) -> None:
    """Streams are described as events of text: that the text is a chunk, only a test can see."""
    options = {name: value for name, value in extra.items() if name != "stream_options"}
    whole = await site.post(path, {**BODIES[path], **options})
    WHOLE[path].validate_json(whole.content, strict=True, extra="forbid")
    stream = await site.post(path, {**BODIES[path], **extra, "stream": True})
    *chunks, done = read_events(stream.text)
    assert done == "[DONE]"
    for chunk in chunks:
        CHUNKS[path].validate_json(chunk, strict=True, extra="forbid")


async def test_errors_are_as_described(site: Site) -> None:
    refused = await site.post(CHAT, {})
    TypeAdapter(ErrorReply).validate_json(refused.content, strict=True, extra="forbid")
    site.engine.error, site.engine.fail_at = RequestLost("two shards were lost"), 3
    stream = await site.post(CHAT, {**BODIES[CHAT], "stream": True})
    TypeAdapter(ErrorEvent).validate_json(read_events(stream.text)[-1], strict=True, extra="forbid")
    site.engine.error, site.engine.fail_at = Busy("the queue is full", retry_after_s=2.5), -1
    busy = await site.post(CHAT, BODIES[CHAT])
    TypeAdapter(ErrorReply).validate_json(busy.content, strict=True, extra="forbid")


ERRORS = [Busy, NotReady, NotEnoughMemory, RequestLost, GenerationFailed, ContextExceeded, Unsupported, PromptTemplateFailed, ValueError]


@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_an_answer_fails_with_has_a_status_that_is_described(site: Site, error: type[Exception]) -> None:
    site.engine.error, site.engine.fail_at = error("for a test"), 2
    reply = await site.post(CHAT, BODIES[CHAT])
    TypeAdapter(ErrorReply).validate_json(reply.content, strict=True, extra="forbid")
    described = (await site.get("/openapi.json")).json()["paths"][CHAT]["post"]["responses"][str(reply.status_code)]
    assert ("retry-after" in reply.headers) == ("headers" in described)


async def test_every_route_is_described(site: Site) -> None:
    document = (await site.get("/openapi.json")).json()
    described = {(path, method.upper()) for path, operation in document["paths"].items() for method in operation}
    routes = {(route.path.replace(":path}", "}"), method) for route in site.app.routes for method in route.methods}  # type: ignore[attr-defined]
    assert {route for route in routes if route[1] != "HEAD"} - described == {("/openapi.json", "GET"), ("/docs", "GET")}
    for operation in (one for methods in document["paths"].values() for one in methods.values()):
        assert "422" not in operation["responses"]


async def test_references_lead_somewhere(site: Site) -> None:
    text = (await site.get("/openapi.json")).text
    components = json.loads(text)["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"([^"]+)"', text))
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(components)


async def test_the_page_of_the_api_shows_all_of_it_and_needs_nothing_from_elsewhere(site: Site) -> None:
    document = (await site.get("/openapi.json")).json()
    page = await site.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path, operations in document["paths"].items():
        assert all(f"<code>{method.upper()} {path}</code>" in page.text for method in operations)
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page.text
        assert all(f"<code>{field}</code>" in page.text for field in schema.get("properties", {}))
    places = set(re.findall(r'\bid="([^"]+)"', page.text))
    for link in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert "//" not in link
        assert link[1:] in places if link.startswith("#") else (await site.get(f"/{link}")).status_code == 200


async def fingerprints(served: ServedModel) -> set[str]:
    """Of everything that has one."""
    async with run_site(served) as site:
        found = []
        for path, body in BODIES.items():
            found.append((await site.post(path, body)).json())
            found += map(json.loads, read_events((await site.post(path, {**body, "stream": True})).text)[:-1])
        model = (await site.get("/v1/models/tiny")).json()
        assert (model["model_digest"], model["arithmetic"]) == (served.model_digest, served.arithmetic)
        return {one["system_fingerprint"] for one in [*found, model, *(await site.get("/v1/models")).json()["data"]]}


async def test_a_fingerprint_says_whether_answers_could_differ() -> None:
    exact = await fingerprints(make_served())
    assert exact == await fingerprints(make_served(created_s=1))
    rounded = await fingerprints(make_served(arithmetic="Q8_0"))
    other_model = await fingerprints(make_served(model_digest="cd" * 32))
    assert len(exact) == len(rounded) == len(other_model) == len(exact | rounded | other_model) / 3 == 1
    assert all(re.fullmatch("fp_[0-9a-f]{16}", one) for one in exact)
