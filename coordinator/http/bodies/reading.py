"""Reading a request's body: its bytes within limits of size and time, its JSON, and what the model of the body says of it."""

import asyncio
import json
from codecs import BOM_UTF8
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive

from dairllm.coordinator.http.bodies.compression import BodyTooLarge, unpack
from dairllm.coordinator.http.bodies.json_steps import loads_in_steps
from dairllm.coordinator.http.bodies.refusals import body_error, show
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.mesh.allocator import give_back
from dairllm.mesh.errors import Busy, InvalidRequest

Body = TypeVar("Body", bound=BaseModel)

DISCARD_FACTOR = 4
"""A body that is too large is read on up to so many times the limit, since a client that is cut off while it sends may never see the
answer that tells it why."""
LARGE_BYTES = 1 << 16
"""From here on to read the JSON takes so long that others must go on meanwhile."""


class BodyTooSlow(Exception):
    pass


class ClientGone(Exception):
    pass


class BodyReader:
    """Large bodies are read one at a time: each takes many times its size in memory. Those that wait for it are bounded by their sum."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._held_bytes = 0
        self._reading_large = asyncio.Semaphore(1)

    async def read(self, request: Request, model: type[Body]) -> Body:
        """Busy, BodyTooLarge, BodyTooSlow, ClientGone or UnknownCoding, and the errors of `parse_body`."""
        parts: list[bytes] = []
        try:
            await self._receive(request.receive, parts)
            return await self._parse(request, parts, model)
        finally:
            self._forget(parts)

    async def _parse(self, request: Request, parts: list[bytes], model: type[Body]) -> Body:
        codings = [
            name.strip().lower() for header in request.headers.getlist("content-encoding") for name in header.split(",") if name.strip()
        ]
        if sum(map(len, parts)) < LARGE_BYTES and not codings:
            return parse_body(b"".join(parts), model)
        async with self._reading_large:
            return await asyncio.to_thread(self._parse_large, parts, codings, model)

    def _parse_large(self, parts: list[bytes], codings: list[str], model: type[Body]) -> Body:
        try:
            return parse_body(unpack(b"".join(parts), codings, self._limits.max_body_bytes), model)
        finally:
            give_back()

    async def _receive(self, receive: Receive, parts: list[bytes]) -> None:
        """Put the whole body there. BodyTooLarge, BodyTooSlow, ClientGone or Busy."""
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                await self._receive_all(receive, parts)
        except TimeoutError as error:
            raise BodyTooSlow from error

    async def _receive_all(self, receive: Receive, parts: list[bytes]) -> None:
        refusal: Exception | None = None
        size_bytes, more = 0, True
        while more and size_bytes <= self._limits.max_body_bytes * DISCARD_FACTOR:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size_bytes += len(part)
            refusal = refusal or self._take(part, size_bytes, parts)
            more = message.get("more_body", False)
        if refusal is not None:
            raise refusal

    def _take(self, part: bytes, size_bytes: int, parts: list[bytes]) -> Exception | None:
        """size_bytes: of the body, with this part. Why it is not wanted, if it is not: then nothing of it is kept."""
        most_bytes = self._limits.max_bodies_bytes
        if size_bytes > self._limits.max_body_bytes:
            refusal: Exception = BodyTooLarge()
        elif size_bytes > LARGE_BYTES and self._held_bytes + len(part) > most_bytes:
            refusal = Busy(f"the large bodies of all requests together have more than {most_bytes} bytes; expected fewer of them at once")
        else:
            parts.append(part)
            self._held_bytes += len(part)
            return None
        self._forget(parts)
        return refusal

    def _forget(self, parts: list[bytes]) -> None:
        self._held_bytes -= sum(map(len, parts))
        parts.clear()


def parse_body(data: bytes, model: type[Body]) -> Body:
    """InvalidRequest or Unsupported unless it is an object in JSON that the model accepts."""
    value = parse_json_object(data)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise body_error(error) from None


def parse_json_object(data: bytes) -> dict[str, object]:
    """InvalidRequest unless it is a JSON object in UTF-8, maybe with a mark of that in front. Of a name that comes twice the last value
    counts.

    Not pydantic's own parser: that refuses half a surrogate pair without saying in which field, and takes NaN.
    """
    try:
        value = _loads(data.removeprefix(BOM_UTF8))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body has an invalid byte at offset {error.start}; expected JSON in UTF-8") from error
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}; expected a JSON object") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply; expected a JSON object") from error
    except ValueError as error:  # a number of thousands of digits
        raise InvalidRequest("the body has a number that is too long; expected a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body is {show(value)}; expected a JSON object")
    return value


def _loads(data: bytes) -> object:
    if len(data) < LARGE_BYTES:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    return loads_in_steps(data, _refuse_constant)


def _refuse_constant(name: str) -> object:
    raise InvalidRequest(f"the body has {name}, which is not JSON; expected a number")
