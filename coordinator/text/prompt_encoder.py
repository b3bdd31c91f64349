"""From texts and messages to token ids, beside the event loop.

Threads render and tokenise, without the GIL where it takes long; a long text is tokenised in steps, so that those of several requests
take turns. What cannot fit the context is refused as soon as that is known: by its length before anything is done, else after
the step that makes it twice as long.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from dairllm.coordinator.engine.context_length import too_long
from dairllm.coordinator.text.served_model import ServedModel
from dairllm.coordinator.text.text_request import ChatMessage
from dairllm.coordinator.text.threads import beside_loop, in_rendering_thread
from dairllm.mesh.errors import Busy, InvalidRequest, NotReady, PromptTemplateFailed, Unsupported
from dairllm.model_files.errors import InvalidTemplate, RendererUnavailable
from dairllm.model_files.text_cuts import TextTooLong

RENDER_WAIT_S = 10.0
KNOWN_EXCESS = 2
"""How many times as long as the context a prompt may be for its length to be told exactly."""


class PromptEncoder:
    """For one model. context_length: in tokens, the answer included."""

    def __init__(self, served: ServedModel, context_length: Callable[[], int]) -> None:
        self._served = served
        self._context_length = context_length

    async def encode_text(
        self, text: str, *, add_special: bool, parse_special: bool, param: str, most: int | None = None
    ) -> tuple[int, ...]:
        """Token ids of a text. Unsupported without a tokenizer; ContextExceeded if they are many more than `most` or the context."""
        tokenizer = self._served.text_tokenizer()
        limit = self._context_length() if most is None else most
        self._check_characters(len(text), limit, param)
        steps = tokenizer.encode_in_steps(text, add_special=add_special, parse_special=parse_special)
        return await self._collect(steps, limit, param)

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of the rendered chat template. Unsupported without one, PromptTemplateFailed if it refuses, ContextExceeded."""
        tokenizer, template = self._served.text_tokenizer(), self._served.chat_template
        if template is None:
            raise Unsupported(f"model {self._served.name!r} has no chat template; expected a plain completion", "messages")
        if not messages:
            raise InvalidRequest("messages is empty; expected at least one message", "messages")
        limit = self._context_length()
        self._check_characters(sum(len(message.content) for message in messages), limit, "messages")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            async with asyncio.timeout(RENDER_WAIT_S):
                rendered = await in_rendering_thread(template.render, plain)
        except TimeoutError as error:
            raise Busy(f"other chats are rendered, and this one waited {RENDER_WAIT_S:g} s for them; expected fewer at a time") from error
        except InvalidTemplate as error:
            raise PromptTemplateFailed(str(error), "messages") from error
        except RendererUnavailable as error:
            raise NotReady(str(error)) from error
        return await self._collect(tokenizer.encode_prompt_in_steps(rendered), limit, "messages")

    def _check_characters(self, num_characters: int, limit: int, param: str) -> None:
        """A character takes a byte at least."""
        fewest = num_characters // self._served.text_tokenizer().longest_token_bytes
        if fewest > limit:
            raise too_long(limit, f"at least {fewest}", param)

    async def _collect(self, steps: Iterator[list[int]], limit: int, param: str) -> tuple[int, ...]:
        ids: list[int] = []
        try:
            while (step := await beside_loop(next, steps, None)) is not None:
                ids += step
                if len(ids) > KNOWN_EXCESS * limit:
                    raise too_long(limit, f"at least {len(ids)}", param)
        except TextTooLong as error:
            raise InvalidRequest(str(error), param) from error
        return tuple(ids)
