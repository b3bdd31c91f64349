"""Bodies of OpenAI's chat and text completions, and what they ask for.

Fields that would change the answer but are not supported are refused by name; fields that nobody knows are ignored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dairllm.coordinator.http.fields import Fields, as_list, as_number, as_text, as_whole_number, refuse, show
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.text import MAX_STOP_STRINGS, ROLES, ChatMessage, TextRequest, TextService, random_seed
from dairllm.mesh.errors import InvalidRequest, Unsupported
from dairllm.mesh.sampling import MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams

MAX_TOKENS = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16
"""As OpenAI's text completions, unlike chat, have it."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request asks for, apart from the sequences. wants_logprobs, wants_token_ids: whether answers carry them."""

    is_chat: bool
    requests: tuple[TextRequest, ...]
    choices_per_prompt: int
    stream: bool
    include_usage: bool
    wants_logprobs: bool
    wants_token_ids: bool


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: tuple[int, ...]
    text: str | None


async def read_chat_call(body: Fields, text: TextService, limits: HttpLimits) -> Call:
    """Raises the errors of `TextService.encode_chat`, InvalidRequest and Unsupported."""
    text.require_model(body.text("model"))
    _refuse_unsupported(body, _CHAT_UNSUPPORTED)
    logprobs = body.flag("logprobs")
    top_logprobs = body.whole_number("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top_logprobs is not None and not logprobs:
        raise InvalidRequest(f"top_logprobs is {top_logprobs} without logprobs; expected logprobs to be true", "top_logprobs")
    messages = _read_messages(body.require("messages", "a list of messages"))
    field = "max_tokens" if body.is_set("max_tokens") else "max_completion_tokens"
    max_tokens = body.whole_number(field, 1, MAX_TOKENS)
    sampling = _read_sampling(body, logprobs, top_logprobs or 0)
    stop, n = _read_stop(body), _read_n(body, limits)
    stream, include_usage = _read_stream(body)
    request = TextRequest(await text.encode_chat(messages), sampling, max_tokens, stop, body.flag("ignore_eos"))
    wants_token_ids = body.flag("return_token_ids")
    return Call(True, tuple(request.choices(n)), n, stream, include_usage, logprobs, wants_token_ids)


async def read_completion_call(body: Fields, text: TextService, limits: HttpLimits) -> Call:
    """Raises the errors of `TextService.encode_text`, InvalidRequest and Unsupported."""
    text.require_model(body.text("model"))
    _refuse_unsupported(body, _COMPLETION_UNSUPPORTED)
    logprobs = body.whole_number("logprobs", 0, MAX_TOP_LOGPROBS)
    echo, n = body.flag("echo"), _read_n(body, limits)
    best_of = body.whole_number("best_of", 1, limits.max_choices)
    if best_of is not None and best_of != n:
        raise Unsupported(f"best_of is {best_of}, but choosing among answers is not supported; expected it to equal n, {n}", "best_of")
    max_tokens = body.whole_number("max_tokens", 0, MAX_TOKENS)
    sampling = _read_sampling(body, logprobs is not None, logprobs or 0)
    stop = _read_stop(body)
    stream, include_usage = _read_stream(body)
    prompts = await _read_prompts(body.require("prompt", "text or token ids"), text, limits.max_sequences // n)
    requests: list[TextRequest] = []
    for prompt in prompts:
        limit = DEFAULT_COMPLETION_TOKENS if max_tokens is None else max_tokens
        request = TextRequest(prompt.ids, sampling, limit, stop, body.flag("ignore_eos"), echo, prompt.text)
        requests += request.choices(n)
    wants_token_ids = body.flag("return_token_ids") or text.served.tokenizer is None
    return Call(False, tuple(requests), n, stream, include_usage, logprobs is not None, wants_token_ids)


def _read_messages(value: object) -> list[ChatMessage]:
    messages = as_list("messages", value)
    if not messages:
        raise refuse("messages", value, "at least one message")
    return [_read_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _read_message(name: str, value: object) -> ChatMessage:
    if not isinstance(value, dict):
        raise refuse(name, value, "an object with role and content")
    fields = Fields(value, f"{name}.")
    role = as_text(fields.name("role"), fields.require("role", f"one of {', '.join(ROLES)}"))
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise refuse(fields.name("role"), role, f"one of {', '.join(ROLES)}")
    for field in ("tool_calls", "function_call"):
        if fields.get(field):
            raise Unsupported(
                f"{fields.name(field)} is set, but calling tools is not supported; expected it to be absent", fields.name(field)
            )
    return ChatMessage(role, _read_content(fields.name("content"), fields.require("content", "a string")))


def _read_content(name: str, value: object) -> str:
    if isinstance(value, list):
        return "".join(_read_part(f"{name}[{index}]", part) for index, part in enumerate(value))
    if not isinstance(value, str):
        raise refuse(name, value, "a string or a list of parts of type text")
    return as_text(name, value)


def _read_part(name: str, value: object) -> str:
    if not isinstance(value, dict):
        raise refuse(name, value, "a part of type text")
    fields = Fields(value, f"{name}.")
    kind = as_text(fields.name("type"), fields.require("type", '"text"'))
    if kind != "text":
        raise Unsupported(f"{fields.name('type')} is {show(kind)}, which is not supported; expected text only", fields.name("type"))
    return as_text(fields.name("text"), fields.require("text", "a string"))


async def _read_prompts(value: object, text: TextService, most: int) -> list[_Prompt]:
    if isinstance(value, str):
        return [await _text_prompt("prompt", value, text)]
    if not isinstance(value, list) or not value:
        raise refuse("prompt", value, "a string, a list of strings, a list of token ids, or a list of lists of token ids")
    if isinstance(value[0], int):
        return [_id_prompt("prompt", value, text)]
    if len(value) > most:
        raise refuse("prompt", value, f"at most {most} prompts, given n")
    if isinstance(value[0], str):
        return [await _text_prompt(f"prompt[{index}]", prompt, text) for index, prompt in enumerate(value)]
    return [_id_prompt(f"prompt[{index}]", prompt, text) for index, prompt in enumerate(value)]


async def _text_prompt(name: str, value: object, text: TextService) -> _Prompt:
    prompt = as_text(name, value)
    ids = await text.encode_text(prompt)
    if not ids:
        raise refuse(name, prompt, "at least one token")
    return _Prompt(ids, prompt)


def _id_prompt(name: str, value: object, text: TextService) -> _Prompt:
    entries = as_list(name, value)
    if not entries:
        raise refuse(name, value, "at least one token id")
    highest = text.served.spec.vocab_size - 1
    return _Prompt(tuple(as_whole_number(f"{name}[{index}]", entry, 0, highest) for index, entry in enumerate(entries)), None)


def _read_sampling(body: Fields, logprobs: bool, top_logprobs: int) -> SamplingParams:
    seed = body.whole_number("seed", -(2**63), MAX_SEED)
    top_k = body.whole_number("top_k", -1, MAX_TOKENS)
    return SamplingParams(
        temperature=body.number("temperature", 1.0),
        top_k=max(top_k or 0, 0),
        top_p=body.number("top_p", 1.0),
        min_p=body.number("min_p", 0.0),
        repetition_penalty=body.number("repetition_penalty", 1.0),
        presence_penalty=body.number("presence_penalty", 0.0),
        frequency_penalty=body.number("frequency_penalty", 0.0),
        seed=random_seed() if seed is None else seed & MAX_SEED,
        logit_bias=_read_logit_bias(body),
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def _read_logit_bias(body: Fields) -> dict[int, float]:
    biases = {}
    for token, bias in body.nested("logit_bias").items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise InvalidRequest(f"logit_bias has the key {show(token)}; expected a token id", "logit_bias")
        biases[int(token)] = as_number(f"logit_bias.{token}", bias)
    return biases


def _read_stop(body: Fields) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None:
        return ()
    if not isinstance(value, str | list):
        raise refuse("stop", value, f"a string or a list of at most {MAX_STOP_STRINGS} strings")
    entries = [value] if isinstance(value, str) else value
    return tuple(as_text("stop" if isinstance(value, str) else f"stop[{index}]", entry) for index, entry in enumerate(entries))


def _read_n(body: Fields, limits: HttpLimits) -> int:
    n = body.whole_number("n", 1, limits.max_choices)
    return 1 if n is None else n


def _read_stream(body: Fields) -> tuple[bool, bool]:
    stream = body.flag("stream")
    if body.is_set("stream_options") and not stream:
        raise refuse("stream_options", body.get("stream_options"), "it only together with stream")
    return stream, body.nested("stream_options").flag("include_usage")


def _is_empty(value: object) -> bool:
    return value in ([], {}, "")


def _is_text_format(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


Harmless = Callable[[object], bool]
_CHAT_UNSUPPORTED: Sequence[tuple[str, Harmless]] = (
    ("tools", _is_empty),
    ("tool_choice", lambda value: value in ("none", "auto")),
    ("functions", _is_empty),
    ("function_call", lambda value: value in ("none", "auto")),
    ("response_format", _is_text_format),
    ("audio", _is_empty),
    ("modalities", lambda value: value in ([], ["text"])),
    ("prediction", _is_empty),
    ("web_search_options", lambda value: False),
    ("echo", lambda value: value is False),
    ("best_of", lambda value: value == 1),
    ("suffix", _is_empty),
)
_COMPLETION_UNSUPPORTED: Sequence[tuple[str, Harmless]] = (
    ("suffix", _is_empty),
    ("response_format", _is_text_format),
    ("tools", _is_empty),
)


def _refuse_unsupported(body: Fields, table: Sequence[tuple[str, Harmless]]) -> None:
    for field, is_harmless in table:
        value = body.get(field)
        if value is not None and not is_harmless(value):
            raise Unsupported(f"{field} is {show(value)}, but it is not supported here; expected it to be absent", field)
