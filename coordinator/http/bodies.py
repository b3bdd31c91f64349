"""Reading a request's body within limits of size and time."""

import asyncio

from starlette.types import Receive

from dairllm.coordinator.http.limits import HttpLimits

DISCARD_FACTOR = 4
"""A body that is too large is read on up to so many times the limit, since a client that is cut off while it sends may never see the
answer that tells it why."""


class BodyTooLarge(Exception):
    pass


class BodyTooSlow(Exception):
    pass


class ClientGone(Exception):
    pass


async def read_body(receive: Receive, limits: HttpLimits) -> bytes:
    """The whole body; BodyTooLarge, BodyTooSlow or ClientGone."""
    try:
        async with asyncio.timeout(limits.request_timeout_s):
            return await _read(receive, limits.max_body_bytes)
    except TimeoutError as error:
        raise BodyTooSlow from error


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size_bytes, more = 0, True
    while more and size_bytes <= limit_bytes * DISCARD_FACTOR:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size_bytes += len(part)
        if size_bytes <= limit_bytes:
            parts.append(part)
        more = message.get("more_body", False)
    if size_bytes > limit_bytes:
        raise BodyTooLarge
    return b"".join(parts)
