"""The official client gets what it expects."""

import asyncio
import json
import re

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs
from openai.types.completion_usage import PromptTokensDetails

from dairllm.coordinator.http.error_replies import error_reply
from dairllm.mesh.errors import MEANINGS, Busy, DairllmError, NotEnoughMemory, NotReady, RequestLost
from tests.http.conftest import Site, read_events, request_bytes
from tests.text.fakes import BEGIN_ID, CONTEXT_LENGTH, logprob_of

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_chat(site: Site) -> None:
    async with site.client() as client:
        answer = await client.chat.completions.create(model="tiny", messages=USER)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello, world", "stop")
    assert choice.logprobs is None
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(site.engine.requests[0].prompt_ids)
    assert answer.usage.completion_tokens == 13
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 13


async def test_usage_says_how_much_of_a_prompt_was_cached(site: Site) -> None:
    """A prompt counts once, and a stop string ends the answer before the engine does."""
    site.engine.num_reused = 2
    async with site.client() as client:
        chat = await client.chat.completions.create(model="tiny", messages=USER, n=3)
        text = await client.completions.create(model="tiny", prompt=["one", "another"], n=2, stop="lo")
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
            )
        ]
    assert [one.usage and one.usage.prompt_tokens_details for one in (chat, chunks[-1])] == [PromptTokensDetails(cached_tokens=2)] * 2
    assert text.usage
    assert text.usage.prompt_tokens_details == PromptTokensDetails(cached_tokens=4)


def ask_synchronously(url: str) -> tuple[str | None, str]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        whole = client.chat.completions.create(model="tiny", messages=USER).choices[0].message.content
        chunks = client.chat.completions.create(model="tiny", messages=USER, stream=True)
        return whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


async def test_chat_with_the_synchronous_client(site: Site) -> None:
    assert await asyncio.to_thread(ask_synchronously, site.url) == ("Hello, world", "Hello, world")


async def test_chat_streams(site: Site) -> None:
    async with site.client() as client:
        stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello, world"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 13
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_ends_with_done_and_has_no_usage_unasked(site: Site) -> None:
    reply = await site.post("/v1/chat/completions", {"messages": USER, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, done = read_events(reply.text)
    assert done == "[DONE]"
    assert all("usage" not in json.loads(chunk) for chunk in chunks)


async def test_sampling_parameters_reach_the_engine(site: Site) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}
    async with site.client() as client:
        await client.chat.completions.create(
            model="tiny",
            messages=USER,
            temperature=0.5,
            top_p=0.9,
            seed=-2,
            presence_penalty=0.25,
            frequency_penalty=-0.25,
            logit_bias={"97": -100},
            max_completion_tokens=3,
            extra_body=extra,
        )
    (request,) = site.engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.25, -0.25)
    assert (sampling.seed, sampling.logit_bias, request.max_tokens, request.end_ids) == (2**64 - 2, {97: -100.0}, 3, frozenset())


async def test_without_a_seed_every_request_has_another(site: Site) -> None:
    async with site.client() as client:
        for _ in range(2):
            await client.chat.completions.create(model="tiny", messages=USER)
    first, second = site.engine.requests
    assert first.sampling.seed != second.sampling.seed


@pytest.mark.parametrize("seed", [None, -1])
async def test_a_seed_of_nothing_is_a_random_one(site: Site, seed: int | None) -> None:
    for _ in range(2):
        await site.post("/v1/completions", {"prompt": "a", "seed": seed})
    first, second = (request.sampling.seed for request in site.engine.requests)
    assert first != second


async def test_choices_have_their_own_seed_and_order(site: Site) -> None:
    site.engine.reply = lambda request: b"seed %d" % request.sampling.seed
    async with site.client() as client:
        answer = await client.chat.completions.create(model="tiny", messages=USER, n=3, seed=40)
        stream = await client.chat.completions.create(model="tiny", messages=USER, n=3, seed=40, stream=True)
        texts = ["", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [choice.message.content for choice in answer.choices] == ["seed 40", "seed 41", "seed 42"]
    assert texts == ["seed 40", "seed 41", "seed 42"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(site.engine.requests[0].prompt_ids)
    assert answer.usage.completion_tokens == 3 * 8


@pytest.mark.parametrize("stop", [", w", ["xyz", ", w"]])
async def test_stop(site: Site, stop: str | list[str]) -> None:
    async with site.client() as client:
        answer = await client.chat.completions.create(model="tiny", messages=USER, stop=stop)
        stream = await client.chat.completions.create(model="tiny", messages=USER, stop=stop, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello", "stop")
    assert text == "Hello"


async def test_chat_logprobs(site: Site) -> None:
    site.engine.reply = lambda request: "aé".encode()
    async with site.client() as client:
        answer = await client.chat.completions.create(model="tiny", messages=USER, logprobs=True, top_logprobs=2)
        stream = await client.chat.completions.create(model="tiny", messages=USER, logprobs=True, stream=True)
        streamed = [token.token async for chunk in stream for token in (chunk.choices[0].logprobs or EMPTY).content or []]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.token for token in logprobs.content] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert [token.bytes for token in logprobs.content] == [[97], [0xC3], [0xA9]]
    assert logprobs.content[0].logprob == logprob_of(97)
    assert [(top.token, top.logprob) for top in logprobs.content[0].top_logprobs] == [("a", logprob_of(97)), ("b", logprob_of(97) - 1)]
    assert streamed == ["a", "bytes:\\xc3", "bytes:\\xa9"]


EMPTY = ChoiceLogprobs(content=[])


async def test_text_parts_are_joined(site: Site) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    await site.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
    await site.post("/v1/chat/completions", {"messages": USER})
    first, second = site.engine.requests
    assert first.prompt_ids == second.prompt_ids


async def test_completion(site: Site) -> None:
    site.engine.reply = lambda request: b"abc" * 10
    async with site.client() as client:
        answer = await client.completions.create(model="tiny", prompt="Hi")
        stream = await client.completions.create(model="tiny", prompt="Hi", max_tokens=3, stream=True)
        chunks = [chunk async for chunk in stream]
    assert answer.object == "text_completion"
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (("abc" * 10)[:16], "length")
    assert site.engine.requests[0].prompt_ids == (BEGIN_ID, *b"Hi")
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abc"
    assert chunks[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (["a", "b"], [(BEGIN_ID, 97), (BEGIN_ID, 98)]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
async def test_prompts_times_choices(site: Site, prompt: object, prompts: list[tuple[int, ...]]) -> None:
    site.engine.reply = lambda request: b"%d %d" % (request.prompt_ids[-1], request.sampling.seed)
    async with site.client() as client:
        answer = await client.completions.create(model="tiny", prompt=prompt, n=2, seed=5)  # type: ignore[call-overload]
    assert [choice.text for choice in answer.choices] == [f"{ids[-1]} {seed}" for ids in prompts for seed in (5, 6)]
    assert [choice.index for choice in answer.choices] == list(range(2 * len(prompts)))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, prompts))


async def test_scoring_a_prompt(site: Site) -> None:
    """The form that evaluation harnesses parse: four lists of one length, null for the first token."""
    async with site.client() as client:
        answer = await client.completions.create(model="tiny", prompt=[97, 98, 200], echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer.choices
    assert choice.text == "ab�"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "bytes:\\xc8"]
    assert logprobs.token_logprobs == [None, logprob_of(98), logprob_of(200)]
    assert logprobs.top_logprobs == [None, {"b": logprob_of(98)}, {"bytes:\\xc8": logprob_of(200)}]
    assert logprobs.text_offset == [0, 1, 2]


async def test_echo_with_an_answer(site: Site) -> None:
    async with site.client() as client:
        answer = await client.completions.create(model="tiny", prompt="ab", echo=True, logprobs=1, max_tokens=1)
        stream = await client.completions.create(model="tiny", prompt="ab", echo=True, logprobs=0, max_tokens=1, stream=True)
        chunks = [chunk async for chunk in stream]
    assert answer.choices[0].text == "abH"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["<s>", "a", "b", "H"]
    assert logprobs.text_offset == [0, 0, 1, 2]
    assert [chunk.choices[0].text for chunk in chunks] == ["ab", "H", ""]


async def test_a_model_without_tokenizer_takes_and_gives_ids(bare_site: Site) -> None:
    reply = await bare_site.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 3, "logprobs": 0})
    (choice,) = reply.json()["choices"]
    assert choice["text"] == ""
    assert choice["token_ids"] == list(b"Hel")
    assert choice["logprobs"]["tokens"] == ["token_id:72", "token_id:101", "token_id:108"]
    stream = await bare_site.post("/v1/completions", {"prompt": [1, 2], "max_tokens": 3, "stream": True})
    chunks = [json.loads(event) for event in read_events(stream.text)[:-1]]
    assert [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]] == list(b"Hel")


async def test_models(site: Site) -> None:
    async with site.client() as client:
        models = [model async for model in client.models.list()]
        one = await client.models.retrieve("tiny")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("some/other")
    assert [model.id for model in models] == ["tiny"]
    assert one.created == 1_700_000_000


LINE_ENDS = "a\x0bb\x85c\u2028d\u2029e"
"""What str.splitlines takes for the end of a line, and JSON lets stand."""


async def test_whatever_a_client_takes_for_the_end_of_a_line_is_escaped_in_events(site: Site) -> None:
    site.engine.reply = lambda request: LINE_ENDS.encode()
    async with httpx.AsyncClient(base_url=site.url, trust_env=False) as client:
        body = {"messages": USER, "stream": True, "max_tokens": len(LINE_ENDS.encode())}
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = [line async for line in reply.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == LINE_ENDS
    async with site.client() as openais:
        chunks = await openais.chat.completions.create(model="tiny", messages=USER, stream=True, max_tokens=len(LINE_ENDS.encode()))
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == LINE_ENDS


async def test_errors_are_those_of_the_client(site: Site) -> None:
    async with site.client() as client:
        with pytest.raises(openai.NotFoundError, match="'gpt' is not served; expected 'tiny'") as not_found:
            await client.chat.completions.create(model="gpt", messages=USER)
        with pytest.raises(openai.BadRequestError, match=f"This model's maximum context length is {CONTEXT_LENGTH} tokens") as too_long:
            await client.completions.create(model="tiny", prompt="x" * 600)
        with pytest.raises(openai.BadRequestError, match="no tools here") as refused:
            await client.chat.completions.create(model="tiny", messages=[{"role": "tool", "content": "4", "tool_call_id": "1"}])
    assert (not_found.value.code, not_found.value.param, not_found.value.type) == ("model_not_found", "model", "invalid_request_error")
    assert too_long.value.code == "context_length_exceeded"
    assert refused.value.code == "prompt_template_failed"


@pytest.mark.parametrize("stream", [True, False])
async def test_busy_and_not_ready_say_when_to_try_again(site: Site, stream: bool) -> None:
    site.engine.fail_at = -1
    async with site.client() as client:
        site.engine.error = Busy("the queue is full", retry_after_s=2.5)
        with pytest.raises(openai.RateLimitError, match="queue is full") as busy:
            await client.chat.completions.create(model="tiny", messages=USER, stream=stream)
        site.engine.error = NotReady("waiting for shards")
        with pytest.raises(openai.InternalServerError, match="waiting for shards") as not_ready:
            await client.chat.completions.create(model="tiny", messages=USER, stream=stream)
    assert busy.value.response.headers["retry-after"] == "3"
    assert not_ready.value.status_code == 503
    assert int(not_ready.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("error", [RequestLost("two shards were lost"), ValueError("a defect")])
async def test_a_failure_in_the_middle_of_a_stream_is_an_error_event(site: Site, error: Exception) -> None:
    site.engine.error, site.engine.fail_at = error, 3
    async with site.client() as client:
        stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
        chunks = [await anext(stream) for _ in range(4)]
        with pytest.raises(openai.APIError, match=r"two shards were lost|internal error") as failed:
            await anext(stream)
    assert isinstance(failed.value.body, dict)
    assert (failed.value.code, failed.value.body["status"], failed.value.body["retry_after"]) == ("request_lost", 503, 2)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hel"
    assert site.engine.num_open == 0


async def test_a_failure_in_the_middle_of_a_whole_answer_has_its_status(site: Site) -> None:
    site.engine.error, site.engine.fail_at = RequestLost("two shards were lost"), 3
    reply = await site.post("/v1/chat/completions", {"messages": USER})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "request_lost")


async def test_a_defect_tells_nothing_but_that_it_is_one(site: Site) -> None:
    site.engine.error, site.engine.fail_at = ValueError("secret"), 0
    reply = await site.post("/v1/chat/completions", {"messages": USER})
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in reply.text


async def test_comments_keep_a_waiting_stream_alive(site: Site) -> None:
    site.engine.pause_at = -1
    reader, writer = await site.connect()
    body = json.dumps({"messages": USER, "stream": True}).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
    await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
    site.engine.resume.set()
    assert b'"role":"assistant"' in await asyncio.wait_for(reader.readuntil(b"[DONE]\n\n"), 10)


async def test_what_fails_before_its_first_token_but_after_a_comment_ends_with_an_error_event(site: Site) -> None:
    site.engine.pause_at = site.engine.fail_at = -1
    site.engine.error = NotEnoughMemory("17 MiB of memory are missing", retry_after_s=0.2)
    reader, writer = await site.connect()
    writer.write(request_bytes("/v1/chat/completions", json.dumps({"messages": USER, "stream": True}).encode()))
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b": keep-alive\n\n"), 10)
    site.engine.resume.set()
    (event,) = read_events((await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)).decode())
    error = json.loads(event)["error"]
    assert error == {
        **{"message": "17 MiB of memory are missing", "type": "server_error", "param": None, "code": "not_enough_memory"},
        **{"status": 503, "retry_after": 1},
    }


@pytest.mark.parametrize("kind", MEANINGS)
@pytest.mark.parametrize("retry_after_s", [None, 0.0, 0.2, 2.0, 59.1])
def test_what_may_work_later_says_when(kind: type[DairllmError], retry_after_s: float | None) -> None:
    """In whole seconds, at least one (RFC 9110, section 10.2.3); and every 429 and 503 is of that kind."""
    reply = error_reply(kind("no", retry_after_s=retry_after_s))
    header = reply.headers.get("retry-after")
    assert (header is not None) == kind("no").meaning.retryable
    assert header is not None or reply.status_code not in (429, 503)
    if header is not None:
        assert re.fullmatch(r"[1-9]\d*", header)
        assert retry_after_s is None or int(header) >= retry_after_s


async def test_the_engine_is_told_who_asks(site: Site) -> None:
    body = {"prompt": "Hi", "max_tokens": 1, "n": 2}
    await site.post("/v1/completions", body)
    async with site.client() as client:
        await client.completions.create(model="tiny", **body)  # type: ignore[call-overload]
    askers = [request.asker for request in site.engine.requests]
    assert [asker.client for asker in askers[:2]] == ["address 127.0.0.1"] * 2
    assert askers[2].client.startswith("key ")
    assert askers[2] == askers[3]
