"""What a valid body asks for, given the model that is served and its tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypeIs

from dairllm.coordinator.http.bodies.models import (
    DEFAULT_COMPLETION_TOKENS,
    ChatCompletionBody,
    CompletionBody,
    GenerationBody,
    Message,
)
from dairllm.coordinator.http.bodies.refusals import refuse
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.text import ChatContext, ChatMessage, TextRequest, TextService, random_seed
from dairllm.mesh.errors import InvalidRequest, Unsupported
from dairllm.mesh.sampling import MAX_SEED, SamplingParams


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


async def chat_call(body: ChatCompletionBody, text: TextService, limits: HttpLimits) -> Call:
    """Raises the errors of `TextService.encode_chat`, InvalidRequest and UnknownModel."""
    text.require_model(body.model)
    _check_stream_options(body)
    logprobs = bool(body.logprobs)
    if body.top_logprobs is not None and not logprobs:
        raise InvalidRequest(f"top_logprobs is {body.top_logprobs} without logprobs; expected logprobs to be true", "top_logprobs")
    sampling = _sampling(body, logprobs, body.top_logprobs or 0)
    max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    context = ChatContext([tool.as_json() for tool in body.tools or ()], body.chat_template_kwargs or {})
    prompt_ids = await text.encode_chat([_message(message) for message in body.messages], context)
    request = TextRequest(prompt_ids, sampling, max_tokens, _stop(body), bool(body.ignore_eos))
    n = body.n or 1
    return Call(True, tuple(request.choices(n)), n, bool(body.stream), _include_usage(body), logprobs, bool(body.return_token_ids))


async def completion_call(body: CompletionBody, text: TextService, limits: HttpLimits) -> Call:
    """Raises the errors of `TextService.encode_text`, InvalidRequest, UnknownModel and Unsupported."""
    text.require_model(body.model)
    _check_stream_options(body)
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise Unsupported(f"best_of is {body.best_of}, but choosing among answers is not supported; expected it to equal n, {n}", "best_of")
    wants_logprobs = body.logprobs is not None
    sampling = _sampling(body, wants_logprobs, body.logprobs or 0)
    max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    requests: list[TextRequest] = []
    for prompt in await _prompts(body.prompt, text, limits.max_sequences // n):
        request = TextRequest(prompt.ids, sampling, max_tokens, _stop(body), bool(body.ignore_eos), bool(body.echo), prompt.text)
        requests += request.choices(n)
    wants_token_ids = bool(body.return_token_ids) or text.served.tokenizer is None
    return Call(False, tuple(requests), n, bool(body.stream), _include_usage(body), wants_logprobs, wants_token_ids)


def _message(message: Message) -> ChatMessage:
    more: dict[str, Any] = message.model_dump(include={"name", "tool_call_id", "reasoning_content"}, exclude_none=True)
    if message.tool_calls:
        more["tool_calls"] = [call.as_json() for call in message.tool_calls]
    return ChatMessage(_role(message), _content(message), more)


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _content(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


async def _prompts(prompt: str | list[str] | list[int] | list[list[int]], text: TextService, most: int) -> list[_Prompt]:
    if _is_one(prompt):
        return [await _one_prompt("prompt", prompt, text)]
    if len(prompt) > most:
        raise refuse("prompt", prompt, f"at most {most} prompts, given n")
    several: Sequence[str | list[int]] = prompt
    return [await _one_prompt(f"prompt[{index}]", one, text) for index, one in enumerate(several)]


def _is_one(prompt: str | list[str] | list[int] | list[list[int]]) -> TypeIs[str | list[int]]:
    return isinstance(prompt, str) or isinstance(prompt[0], int)


async def _one_prompt(name: str, prompt: str | Sequence[int], text: TextService) -> _Prompt:
    return await _text_prompt(name, prompt, text) if isinstance(prompt, str) else _id_prompt(name, prompt, text)


async def _text_prompt(name: str, prompt: str, text: TextService) -> _Prompt:
    ids = await text.encode_text(prompt)
    if not ids:
        raise refuse(name, prompt, "at least one token")
    return _Prompt(ids, prompt)


def _id_prompt(name: str, ids: Sequence[int], text: TextService) -> _Prompt:
    text.check_length(len(ids), 0)
    highest = text.served.spec.num_tokens - 1
    if min(ids) < 0 or max(ids) > highest:
        index, wrong = next((index, one) for index, one in enumerate(ids) if not 0 <= one <= highest)
        raise refuse(f"{name}[{index}]", wrong, f"a whole number from 0 to {highest}")
    return _Prompt(tuple(ids), None)


def _sampling(body: GenerationBody, logprobs: bool, top_logprobs: int) -> SamplingParams:
    return SamplingParams(
        temperature=_or(body.temperature, 1.0),
        top_k=max(body.top_k or 0, 0),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        seed=random_seed() if body.seed is None or body.seed == -1 else body.seed & MAX_SEED,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _stop(body: GenerationBody) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is an object; expected it only together with stream", "stream_options")


def _include_usage(body: GenerationBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)
