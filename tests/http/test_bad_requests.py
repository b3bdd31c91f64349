"""Whatever a client sends, it gets one sentence in OpenAI's form."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dairllm.coordinator.http.bodies.fields import JsonObject
from dairllm.coordinator.http.bodies.models import ChatCompletionBody, CompletionBody
from dairllm.coordinator.http.bodies.reading import parse_body, parse_json_object
from dairllm.coordinator.http.bodies.refusals import show
from dairllm.mesh.errors import InvalidRequest, Unsupported
from tests.http.conftest import LIMITS, Site, run_site
from tests.text.fakes import CONTEXT_LENGTH, VOCAB_SIZE, make_served

USER = [{"role": "user", "content": "Hi"}]
PART = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]

BAD_BODIES = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b'{"prompt": "\xff"}', "invalid byte at offset 12"),
    (b"[]", "the body is a list of 0"),
    (b'"x"', 'the body is "x"'),
    (b'{"temperature": NaN}', "NaN"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "too long"),
    (b"[" * 60_000, "nested too deeply"),
]

TOOL = {"type": "function", "function": {"name": "f"}}
NESTED: object = 1
for _ in range(70):
    NESTED = [NESTED]

BAD_CHATS = [
    ({}, "messages", "messages is missing"),
    ({"messages": "Hi"}, "messages", 'messages is "Hi"; expected a list'),
    ({"messages": []}, "messages", "at least one message"),
    ({"messages": ["Hi"]}, "messages[0]", "expected an object with role and content"),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role", '"robot"; expected one of system, user'),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing; expected a string or a list"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "is missing; expected a string or a list"),
    ({"messages": USER, "tools": [{}], "tool_choice": "auto"}, "tools[0].type", "tools[0].type is missing"),
    ({"messages": USER, "tools": [{"type": "function", "function": {}}]}, "tools[0].function", "an object with a name"),
    ({"messages": USER, "tools": 5}, "tools", "tools is 5; expected a list of at most 128 functions"),
    ({"messages": USER, "tools": [TOOL], "tool_choice": "required"}, "tool_choice", "not supported"),
    ({"messages": USER, "chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "no variable of the model's chat template"),
    ({"messages": USER, "chat_template_kwargs": [1]}, "chat_template_kwargs", "expected an object of at most 64 variables"),
    ({"messages": USER, "chat_template_kwargs": {"x": "y" * 20_000}}, "chat_template_kwargs", "16384 characters"),
    ({"messages": USER, "chat_template_kwargs": {"x": NESTED}}, "chat_template_kwargs", "expected an object"),
    ({"messages": USER, "functions": [{}], "tool_choice": "none"}, "functions", "not supported"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "messages[0].content is 5"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "half a surrogate pair at character 0"),
    ({"messages": PART}, "messages[0].content[0].type", '"image_url", but it is not supported here; expected "text"'),
    ({"messages": USER, "model": 7}, "model", "model is 7; expected a string"),
    ({"messages": USER, "max_tokens": -1}, "max_tokens", "max_tokens is -1"),
    ({"messages": USER, "max_tokens": "many"}, "max_tokens", 'max_tokens is "many"; expected a whole number'),
    ({"messages": USER, "max_tokens": 1.5}, "max_tokens", "max_tokens is 1.5"),
    ({"messages": USER, "max_tokens": True}, "max_tokens", "max_tokens is true"),
    ({"messages": USER, "max_tokens": 10**12}, "max_tokens", "max_tokens is 1000000000000"),
    ({"messages": USER, "max_completion_tokens": CONTEXT_LENGTH}, "max_tokens", f"maximum context length is {CONTEXT_LENGTH} tokens"),
    ({"messages": USER, "temperature": "hot"}, "temperature", 'temperature is "hot"; expected a number'),
    ({"messages": USER, "temperature": -0.5}, "temperature", "temperature is -0.5"),
    ({"messages": USER, "temperature": 10**400}, "temperature", "expected a number from 0 to 100"),
    ({"messages": USER, "top_p": 2}, "top_p", "top_p is 2; expected a number from 0 to 1"),
    ({"messages": USER, "n": 0}, "n", "n is 0"),
    ({"messages": USER, "n": 129}, "n", "from 1 to 128"),
    ({"messages": USER, "stream": "yes"}, "stream", "expected true or false"),
    ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options", "only together with stream"),
    ({"messages": USER, "stop": 5}, "stop", "stop is 5"),
    ({"messages": USER, "stop": ["a", 5]}, "stop[1]", "stop[1] is 5"),
    ({"messages": USER, "stop": ["a"] * 17}, "stop", "stop is a list of 17; expected at most 16 strings"),
    ({"messages": USER, "logprobs": 3}, "logprobs", "expected true or false"),
    ({"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"messages": USER, "top_logprobs": 2}, "top_logprobs", "without logprobs"),
    ({"messages": USER, "logit_bias": {"x": 1}}, "logit_bias", 'the key "x"'),
    ({"messages": USER, "logit_bias": {"1": 101}}, "logit_bias.1", "logit_bias.1 is 101; expected a number from -100 to 100"),
    ({"messages": USER, "logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias", f"token id {VOCAB_SIZE}"),
    ({"messages": USER, "logit_bias": [1]}, "logit_bias", "expected an object"),
    ({"messages": USER, "seed": 2**64}, "seed", "seed is 18446744073709551616"),
    ({"messages": USER, "tools": [TOOL]}, "tools", "the model's chat template takes none"),
    ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"messages": USER, "modalities": ["audio"]}, "modalities", "not supported"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function", "is missing"),
    ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls", "expected a list of at most 128 calls"),
    ({"messages": [{"role": "assistant", "reasoning_content": 5}]}, "messages[0].reasoning_content", "expected a string"),
    ({"messages": [{"role": 5}], "functions": [{}]}, "functions", "not supported"),
    ({"messages": None}, "messages", "messages is missing; expected a list of at least one message"),
    ({"messages": [None]}, "messages[0]", "messages[0] is null; expected an object with role and content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "is missing; expected a string"),
    ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[0]", "expected a part of type text"),
    ({"messages": USER, "stream": True, "stream_options": 5}, "stream_options", "stream_options is 5; expected an object"),
    (
        {"messages": USER, "stream": True, "stream_options": {"include_usage": 1}},
        "stream_options.include_usage",
        "stream_options.include_usage is 1; expected true or false",
    ),
    ({"messages": USER, "stop": ""}, "stop", 'stop is ""; expected a string of 1 to 1024 characters'),
    ({"messages": USER, "stop": "\ud800"}, "stop", "half a surrogate pair at character 0"),
    ({"messages": USER, "repetition_penalty": 0}, "repetition_penalty", "expected a number over 0, at most 100"),
    ({"messages": USER, "temperature": True}, "temperature", "temperature is true"),
    ({"messages": USER, "best_of": True}, "best_of", "best_of is true, but it is not supported"),
    ({"messages": USER, "logit_bias": {"\ud800": 1}}, "logit_bias", "the key"),
    ({"messages": USER, "logit_bias": {"1": "a"}}, "logit_bias.1", 'logit_bias.1 is "a"; expected a number'),
]

BAD_COMPLETIONS = [
    ({}, "prompt", "prompt is missing"),
    ({"prompt": 5}, "prompt", "prompt is 5; expected a string, a list of strings"),
    ({"prompt": []}, "prompt", "prompt is a list of 0"),
    ({"prompt": [[]]}, "prompt[0]", "at least one token id"),
    ({"prompt": ["a", 5]}, "prompt[1]", "prompt[1] is 5; expected a string"),
    ({"prompt": [[1], "a"]}, "prompt[1]", 'prompt[1] is "a"; expected a list'),
    ({"prompt": [1, VOCAB_SIZE]}, "prompt[1]", f"from 0 to {VOCAB_SIZE - 1}"),
    ({"prompt": [-1]}, "prompt[0]", "prompt[0] is -1"),
    ({"prompt": [1, True]}, "prompt[1]", "prompt[1] is true; expected a token id"),
    ({"prompt": [[1], [2, 1.5]]}, "prompt[1][1]", "prompt[1][1] is 1.5; expected a token id"),
    ({"prompt": [5.5]}, "prompt[0]", "prompt[0] is 5.5; expected a list of at least one token id"),
    ({"prompt": ["a", "\ud800"]}, "prompt[1]", "half a surrogate pair"),
    ({"prompt": ["a"] * 1025}, "prompt", "at most 1024 prompts"),
    ({"prompt": "a" * CONTEXT_LENGTH}, "prompt", f"maximum context length is {CONTEXT_LENGTH} tokens"),
    ({"prompt": "a", "suffix": "b"}, "suffix", 'suffix is "b", but it is not supported'),
    ({"prompt": "a", "best_of": 3}, "best_of", "best_of is 3"),
    ({"prompt": "a", "logprobs": 21}, "logprobs", "from 0 to 20"),
    ({"prompt": "a", "logprobs": True}, "logprobs", "logprobs is true"),
]


def check(reply_status: int, reply: dict[str, dict[str, object]], param: str | None, words: str) -> None:
    error = reply["error"]
    assert reply_status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert words in str(error["message"])
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_bodies_that_are_no_json_objects(site: Site, path: str) -> None:
    for body, words in BAD_BODIES:
        reply = await site.post(path, body)
        check(reply.status_code, reply.json(), None, words)


async def test_bad_chats(site: Site) -> None:
    for body, param, words in BAD_CHATS:
        reply = await site.post("/v1/chat/completions", json.dumps(body).encode())
        check(reply.status_code, reply.json(), param, words)
    assert site.engine.requests == []


async def test_bad_completions(site: Site) -> None:
    for body, param, words in BAD_COMPLETIONS:
        reply = await site.post("/v1/completions", json.dumps(body).encode())
        check(reply.status_code, reply.json(), param, words)
    assert site.engine.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_refused_is_refused_before_a_stream_begins(site: Site, stream: bool) -> None:
    reply = await site.post("/v1/completions", {"prompt": "a" * CONTEXT_LENGTH, "stream": stream})
    check(reply.status_code, reply.json(), "prompt", "This model's maximum context length is")


async def test_a_model_without_tokenizer_says_so(bare_site: Site) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", {"messages": USER})):
        reply = await bare_site.post(path, body)
        check(reply.status_code, reply.json(), "prompt", "no tokenizer")


async def test_rows_without_a_token_are_no_prompt() -> None:
    served = make_served()
    padded = dataclasses.replace(served, spec=dataclasses.replace(served.spec, vocab_size=VOCAB_SIZE + 5, padding_rows=5))
    async with run_site(padded) as site:
        for field, body in (("prompt[0]", {"prompt": [VOCAB_SIZE]}), ("logit_bias", {"prompt": "a", "logit_bias": {str(VOCAB_SIZE): 1}})):
            reply = await site.post("/v1/completions", body)
            check(reply.status_code, reply.json(), field, f"0 to {VOCAB_SIZE - 1}")
        assert (await site.post("/v1/completions", {"prompt": [VOCAB_SIZE - 1]})).status_code == 200


async def test_null_and_harmless_values_count_as_absent(site: Site) -> None:
    null_names = ["temperature", "n", "stop", "seed", "logit_bias", "stream", "max_tokens", "tools", "stream_options"]
    nulls: Mapping[str, object] = dict.fromkeys(null_names)
    harmless = {
        "tools": [],
        "tool_choice": "auto",
        "modalities": ["text"],
        "echo": False,
        "best_of": 1,
        "response_format": {"type": "text"},
        "model": "",
        "stop": [],
        "unheard_of": {"a": 1},
    }
    uncalled = {"tools": [{"type": "function"}], "tool_choice": "none", "functions": [{}], "function_call": "none"}
    for fields in (nulls, harmless, uncalled):
        reply = await site.post("/v1/chat/completions", {"messages": USER, **fields})
        assert reply.status_code == 200
    best_of = await site.post("/v1/completions", {"prompt": "a", "best_of": 2, "n": 2})
    assert len(best_of.json()["choices"]) == 2


async def test_an_assistant_may_have_said_nothing(site: Site) -> None:
    silent = ({"role": "assistant", "content": None}, {"role": "assistant"}, {"role": "assistant", "content": None, "tool_calls": None})
    for message in silent:
        reply = await site.post("/v1/chat/completions", {"messages": [*USER, message, *USER]})
        assert reply.status_code == 200
    assert len({request.prompt_ids for request in site.engine.requests}) == 1


async def test_unknown_paths_and_methods(site: Site) -> None:
    unknown = await site.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
    assert "GET /v1/nothing" in unknown.json()["error"]["message"]
    wrong = await site.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"], wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_a_body_that_is_too_large(site: Site) -> None:
    limit = LIMITS.max_body_bytes
    reply = await site.post("/v1/completions", b" " * (limit + 1))
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")
    assert str(limit) in reply.json()["error"]["message"]
    assert (await site.post("/v1/completions", b" " * limit)).status_code == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_value_can_be_shown_briefly(value: object) -> None:
    assert len(show(value)) <= 12 * 41


def error_of(read: Callable[[], object]) -> InvalidRequest | Unsupported | None:
    try:
        read()
    except (InvalidRequest, Unsupported) as error:
        return error
    return None


@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_an_object_or_refused(data: bytes) -> None:
    error = error_of(lambda: parse_json_object(data))
    assert error is None or "expected" in error.message


MODELS: list[type[JsonObject]] = [ChatCompletionBody, CompletionBody]


@given(st.sampled_from(MODELS).flatmap(lambda model: st.tuples(st.just(model), st.sampled_from(sorted(model.model_fields)), json_values)))
def test_any_value_of_any_field_is_read_or_refused_with_its_name(drawn: tuple[type[JsonObject], str, object]) -> None:
    model, field, value = drawn
    valid: dict[str, object] = {"prompt": "a"} if model is CompletionBody else {"messages": USER}
    error = error_of(lambda: parse_body(json.dumps({**valid, field: value}).encode(), model))
    if error is not None:
        name = str(error.param)
        assert re.match(rf"{field}(?=$|[.[])", name)
        assert re.fullmatch(rf"{re.escape(name)} (is|has) .*; expected .*", error.message)


HOSTILE: list[tuple[type[JsonObject], dict[str, object]]] = [
    (ChatCompletionBody, {"messages": [5] * 10_000}),
    (ChatCompletionBody, {"messages": [{"role": "user", "content": [5] * 10_000}]}),
    (ChatCompletionBody, {"messages": USER, "logit_bias": dict.fromkeys(map(str, range(10_000)), "x")}),
    (ChatCompletionBody, {"messages": USER, "logit_bias": dict.fromkeys(map("x{}".format, range(10_000)), 1)}),
    (ChatCompletionBody, {"messages": USER, "stop": [5] * 10_000}),
    (CompletionBody, {"prompt": [1, *["x"] * 10_000]}),
    (CompletionBody, {"prompt": ["x", *[1] * 10_000]}),
    (CompletionBody, {"prompt": [[1], *["x"] * 10_000]}),
    (CompletionBody, {"prompt": [["x"] * 10_000] * 10}),
]


@pytest.mark.parametrize(("model", "body"), HOSTILE)
def test_a_body_full_of_errors_is_refused_at_the_first(model: type[JsonObject], body: dict[str, object]) -> None:
    """An error takes more memory than the wrong item: of 16 MiB of them a coordinator would die."""
    with pytest.raises(ValidationError) as refused:
        model.model_validate(body)
    assert refused.value.error_count() <= 2


async def test_a_field_that_comes_twice_has_its_last_value(site: Site) -> None:
    reply = await site.post("/v1/completions", b'{"prompt": 5, "prompt": "a", "n": 2, "n": 1}')
    assert len(reply.json()["choices"]) == 1
