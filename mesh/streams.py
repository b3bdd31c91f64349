"""What the two ends of a long-lived stream have in common."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any, TypeVar

import grpc

from dairllm.mesh.errors import DeadlineExceeded, InvalidRequest
from dairllm.v1 import cluster_pb2, ring_pb2

FIRST_REQUEST_DEADLINE_S = 5.0

Request = TypeVar("Request", ring_pb2.ForwardRequest, cluster_pb2.JoinRequest)


async def first_request(requests: AsyncIterator[Request], name: str) -> Request:
    """The first message of a stream, which must be the one of this name. Raises InvalidRequest, DeadlineExceeded."""
    try:
        async with asyncio.timeout(FIRST_REQUEST_DEADLINE_S):
            first = await anext(aiter(requests), None)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no `{name}` came within {FIRST_REQUEST_DEADLINE_S:g} s") from error
    if first is None or first.WhichOneof("message") != name:
        raise InvalidRequest(f"the first message of the stream was not `{name}`")
    return first


async def next_message(call: Any) -> Any:
    """The next message of a stream that this side has opened, None at its end. Raises grpc.aio.AioRpcError if the call has failed."""
    message = await call.read()
    return None if message is grpc.aio.EOF else message  # pyright: ignore[reportAttributeAccessIssue] (missing in its stubs of gRPC)


async def first_to_end(*works: Coroutine[Any, Any, None]) -> None:
    """Runs them at once until one ends or fails, which ends all. If several have failed, the first of them in the given order tells why."""
    await _together(works, asyncio.FIRST_COMPLETED)


async def first_to_fail(*works: Coroutine[Any, Any, None]) -> None:
    """As `first_to_end`, but one that only ends leaves the others running."""
    await _together(works, asyncio.FIRST_EXCEPTION)


async def _together(works: Iterable[Coroutine[Any, Any, None]], until: str) -> None:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=until)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if task in done:
            task.result()
