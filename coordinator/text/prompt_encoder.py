"""From texts and messages to token ids, beside the event loop.

Threads render and tokenise, without the GIL where it takes long; a long text is tokenised in steps, so that those of several requests
take turns. What cannot fit the context is refused as soon as that is known: by its length before anything is done, else after
the step that makes it twice as long.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from dairllm.coordinator.engine.context_length import too_long
from dairllm.coordinator.text.served_model import ServedModel
from dairllm.coordinator.text.text_request import ChatContext, ChatMessage
from dairllm.coordinator.text.threads import in_rendering_thread, next_step
from dairllm.mesh.errors import Busy, InvalidRequest, NotReady, PromptTemplateFailed, Unsupported
from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.errors import InvalidTemplate, RendererUnavailable, UnencodableText
from dairllm.model_files.text_cuts import TextTooLong

RENDER_WAIT_S = 10.0
KNOWN_EXCESS = 2
"""How many times as long as the context a prompt may be for its length to be told exactly."""


MAX_COUNTED_TOKENS = 1 << 18
"""Of texts that are tokenised, and ids that are written out, for themselves."""


class _Limit(NamedTuple):
    """tokens: from how many on it is too many; known: up to how many they are counted. exceeded: the error, given a lower bound."""

    tokens: int
    known: int
    exceeded: Callable[[int], InvalidRequest]


class PromptEncoder:
    """For one model. context_length: in tokens, the answer included."""

    def __init__(self, served: ServedModel, context_length: Callable[[], int]) -> None:
        self._served = served
        self._context_length = context_length

    async def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt. Unsupported without a tokenizer; ContextExceeded if they are many more than the context holds."""
        return await self._encode(text, self._limit("prompt"), add_special=True, parse_special=True)

    async def count_text(self, text: str, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """Token ids of a text that need not fit the context. Unsupported without a tokenizer; InvalidRequest if they are too many."""

        def exceeded(fewest: int) -> InvalidRequest:
            return InvalidRequest(f"the text has at least {fewest} tokens; expected at most {MAX_COUNTED_TOKENS}", "text")

        limit = _Limit(MAX_COUNTED_TOKENS, MAX_COUNTED_TOKENS, exceeded)
        return await self._encode(text, limit, add_special=add_special, parse_special=parse_special)

    async def encode_chat(self, messages: Sequence[ChatMessage], context: ChatContext) -> tuple[int, ...]:
        """Token ids of the rendered chat template. Unsupported without one, or if it does not know what it is given;
        PromptTemplateFailed if it refuses, ContextExceeded.
        """
        tokenizer, template = self._served.text_tokenizer(), self._served.chat_template
        if template is None:
            raise Unsupported(f"model {self._served.name!r} has no chat template; expected a plain completion", "messages")
        _check_known(template, context)
        if not messages:
            raise InvalidRequest("messages is empty; expected at least one message", "messages")
        limit = self._limit("messages")
        self._check_characters(sum(len(message.content) for message in messages), limit)
        plain = [message.as_json() for message in messages]

        def render() -> str:
            return template.render(plain, tools=context.tools or None, variables=context.variables)

        try:
            async with asyncio.timeout(RENDER_WAIT_S):
                rendered = await in_rendering_thread(render)
        except TimeoutError as error:
            raise Busy(f"other chats are rendered, and this one waited {RENDER_WAIT_S:g} s for them; expected fewer at a time") from error
        except InvalidTemplate as error:
            raise PromptTemplateFailed(str(error), "messages") from error
        except RendererUnavailable as error:
            raise NotReady(str(error)) from error
        return await self._collect(tokenizer.encode_prompt_in_steps(rendered), limit)

    async def _encode(self, text: str, limit: _Limit, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        tokenizer = self._served.text_tokenizer()
        self._check_characters(len(text), limit)
        return await self._collect(tokenizer.encode_in_steps(text, add_special=add_special, parse_special=parse_special), limit)

    def _limit(self, param: str) -> _Limit:
        context_length = self._context_length()
        return _Limit(context_length, KNOWN_EXCESS * context_length, lambda fewest: too_long(context_length, f"at least {fewest}", param))

    def _check_characters(self, num_characters: int, limit: _Limit) -> None:
        """A character takes a byte at least."""
        fewest = num_characters // self._served.text_tokenizer().longest_token_bytes
        if fewest > limit.tokens:
            raise limit.exceeded(fewest)

    async def _collect(self, steps: Iterator[list[int]], limit: _Limit) -> tuple[int, ...]:
        ids: list[int] = []
        try:
            while (step := await next_step(steps)) is not None:
                ids += step
                if len(ids) > limit.known:
                    raise limit.exceeded(len(ids))
        except (TextTooLong, UnencodableText) as error:
            raise InvalidRequest(str(error)) from error
        return tuple(ids)


def _check_known(template: ChatTemplate, context: ChatContext) -> None:
    """Unsupported for what would have no effect."""
    if context.tools and not template.takes_tools:
        raise Unsupported("tools are given, but the model's chat template takes none; expected none", "tools")
    unknown = sorted(context.variables.keys() - template.variables)
    if unknown:
        name = f"chat_template_kwargs.{unknown[0][:80]}"
        known = ", ".join(sorted(template.variables))[:400] or "none"
        raise Unsupported(f"{name} is no variable of the model's chat template; expected one of those it has: {known}", name)
