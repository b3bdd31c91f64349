"""Several sequences at once."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from typing import NamedTuple

from dairllm.coordinator.engine.requests import Asker
from dairllm.coordinator.text.text_events import TextEvent, TextFinished
from dairllm.coordinator.text.text_request import TextRequest
from dairllm.coordinator.text.text_service import TextService
from dairllm.mesh.errors import InvalidRequest

MAX_PROMPT_SCORES = 1 << 20
"""Log-probabilities of prompts, alternatives too, in one answer: each takes some hundred bytes while it is written."""
_CALLS = itertools.count(1)


class ChoiceEvent(NamedTuple):
    """choice: position of the sequence in the list of requests."""

    choice: int
    event: TextEvent


class Choices:
    """Several sequences at once, their events in one stream; an asynchronous context manager whose end cancels what still runs.

    At most `concurrent` of them run at a time, and at most `queue_size` events wait to be taken: a reader that does not read holds up
    only its own sequences. client: who asks, as `client_name` says it. All of them are one call.
    """

    def __init__(
        self, text: TextService, requests: Sequence[TextRequest], *, client: str = "", concurrent: int = 32, queue_size: int = 64
    ) -> None:
        self._text = text
        self._requests = requests
        self._asker = Asker(client, next(_CALLS))
        self._slots = asyncio.Semaphore(concurrent)
        self._queue: asyncio.Queue[ChoiceEvent | Exception] = asyncio.Queue(queue_size)
        self._unfinished = len(requests)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Choices":
        for request in self._requests:
            self._text.check(request)
            await asyncio.sleep(0)  # hundreds of long prompts take long
        self._check_scores()
        self._tasks = [asyncio.create_task(self._run(index, request)) for index, request in enumerate(self._requests)]
        return self

    def _check_scores(self) -> None:
        scores = sum(len(one.prompt_ids) * (1 + one.sampling.top_logprobs) for one in self._requests if one.echo and one.sampling.logprobs)
        if scores > MAX_PROMPT_SCORES:
            raise InvalidRequest(
                f"echo with logprobs asks for {scores} log-probabilities of prompts; expected at most {MAX_PROMPT_SCORES} in one request",
                "logprobs",
            )

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __aiter__(self) -> "Choices":
        return self

    async def __anext__(self) -> ChoiceEvent:
        """The next event; the error of a sequence that failed. Safe to cancel: nothing is lost."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._unfinished -= isinstance(item.event, TextFinished)
        return item

    async def _run(self, index: int, request: TextRequest) -> None:
        try:
            async with self._slots, aclosing(self._text.generate(request, self._asker)) as events:
                async for event in events:
                    await self._queue.put(ChoiceEvent(index, event))
        except Exception as error:  # raised again where the events are taken
            await self._queue.put(error)
