"""Runs the sequences of a request and writes the answer, whole or as server-sent events, until the client goes away.

Nothing is sent before the first event, so that what fails at once (a full queue, no plan) has an HTTP status of its own; only
when that takes longer than the keep-alive interval does the stream begin with a comment.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from dairllm.coordinator.http.calls import Call
from dairllm.coordinator.http.error_replies import EVENT_STREAM, JSON, error_event, error_reply, to_json, to_json_in_steps
from dairllm.coordinator.http.formats import AnswerFormat, ChatFormat, ChoiceSoFar, CompletionFormat
from dairllm.coordinator.http.gate.request_ids import request_id_of
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.text import Choices, ServedModel, TextEvent, TextFinished, TextService, client_name
from dairllm.mesh.errors import DairllmError, RequestLost
from dairllm.mesh.telemetry import fields

logger = logging.getLogger(__name__)

LAST_EVENT = "[DONE]"
MANY_LOGPROBS = 4096
"""A whole answer with so many is written beside the event loop."""
_LINE_ENDS = {character.encode(): f"\\u{ord(character):04x}".encode() for character in ("\x85", "\u2028", "\u2029")}
KEEP_ALIVE_COMMENT = b": keep-alive\n\n"
EVENT_STREAM_HEADERS = {"content-type": f"{EVENT_STREAM}; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


def sse_event(data: bytes) -> bytes:
    """data: JSON, or a word. What some clients take for the end of a line is escaped: NEL, LINE SEPARATOR and PARAGRAPH SEPARATOR."""
    for character, escaped in _LINE_ENDS.items():
        data = data.replace(character, escaped)
    return b"data: " + data + b"\n\n"


async def run_until_disconnected(receive: Receive, work: AsyncGenerator[Message, None], send: Send) -> None:
    """Sends what `work` yields; when the client goes away, `work` is cancelled at once, also in the middle of a wait."""
    sending = asyncio.create_task(_send_all(work, send))
    watching = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()
        watching.cancel()
        await asyncio.gather(sending, watching, return_exceptions=True)


async def _send_all(work: AsyncGenerator[Message, None], send: Send) -> None:
    async with aclosing(work) as messages:
        async for message in messages:
            await send(message)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def start_event_stream() -> Message:
    headers = [(name.encode(), value.encode()) for name, value in EVENT_STREAM_HEADERS.items()]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def body_part(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


class GenerationResponse(Response):
    """The answer to a call; the sequences begin when it is sent and end with it."""

    def __init__(self, call: Call, text: TextService, limits: HttpLimits) -> None:
        super().__init__()
        self._call, self._text, self._limits = call, text, limits
        self._request_id = ""
        make_format: Callable[[Call, ServedModel], AnswerFormat] = ChatFormat if call.is_chat else CompletionFormat
        self._format = make_format(call, text.served)
        self._client = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._request_id = request_id_of(scope)
        connection = HTTPConnection(scope)
        self._client = client_name(connection.headers.get("authorization"), connection.client.host if connection.client else "")
        await run_until_disconnected(receive, self._stream() if self._call.stream else self._whole(), send)

    def _choices(self) -> Choices:
        return Choices(self._text, self._call.requests, client=self._client, concurrent=self._limits.concurrent_sequences)

    async def _whole(self) -> AsyncGenerator[Message, None]:
        collected = [ChoiceSoFar() for _ in self._call.requests]
        try:
            async with self._choices() as choices:
                async for index, event in choices:
                    collected[index].add(event)
            reply = Response(await self._write_whole(collected), media_type=JSON)
        except DairllmError as error:
            reply = error_reply(error)
        for message in _messages_of(reply):
            yield message

    async def _write_whole(self, collected: list[ChoiceSoFar]) -> bytes:
        if sum(choice.num_written for choice in collected) < MANY_LOGPROBS:
            return self._format.write_whole(collected, to_json)
        return await asyncio.to_thread(self._format.write_whole, collected, to_json_in_steps)

    async def _stream(self) -> AsyncGenerator[Message, None]:
        started = False
        try:
            async with aclosing(self._events()) as events:
                async for data in events:
                    if not started:
                        started = True
                        yield start_event_stream()
                    yield body_part(data)
        except DairllmError as error:
            for message in _failure_messages(error, started):
                yield message
        except Exception:  # the outermost place of an answer under way: the client must hear of it
            if not started:
                raise
            logger.exception("an answer failed", extra=fields(request_id=self._request_id))
            words = f"the answer could not be continued because of an internal error; its id is {self._request_id}"
            for message in _failure_messages(RequestLost(words), started):
                yield message
        else:
            yield body_part(sse_event(LAST_EVENT.encode()), more=False)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        finished: list[TextFinished] = []
        begun: set[int] = set()
        async with self._choices() as choices:
            while len(finished) < len(self._call.requests):
                try:
                    async with asyncio.timeout(self._limits.keep_alive_s):
                        index, event = await anext(choices)
                except TimeoutError:
                    yield KEEP_ALIVE_COMMENT
                    continue
                data = self._write(index, event, is_first=index not in begun)
                begun.add(index)
                if isinstance(event, TextFinished):
                    finished.append(event)
                if data:
                    yield data
        if self._call.include_usage:
            yield sse_event(to_json(self._format.usage_chunk(finished)))

    def _write(self, index: int, event: TextEvent, is_first: bool) -> bytes:
        first = self._format.first_chunk(index) if is_first else None
        chunk = self._format.last_chunk(index, event) if isinstance(event, TextFinished) else self._format.delta_chunk(index, event)
        return b"".join(sse_event(to_json(one)) for one in (first, chunk) if one is not None)


def _messages_of(reply: Response) -> list[Message]:
    body = bytes(reply.body)
    return [{"type": "http.response.start", "status": reply.status_code, "headers": reply.raw_headers}, body_part(body, more=False)]


def _failure_messages(error: DairllmError, started: bool) -> list[Message]:
    if started:
        return [body_part(sse_event(to_json(error_event(error))), more=False)]
    return _messages_of(error_reply(error))
