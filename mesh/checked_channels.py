"""Channels on which no answer passes that is out of range: the call is cancelled, and fails as if the other side had failed it.

Only what this project uses of a channel and of a call is there.
"""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import grpc
import grpc.aio

from dairllm.mesh.ranges.decoding import Refused, checked_decoder

REFUSED = grpc.StatusCode.DATA_LOSS

MakeCall = Callable[..., Any]


class CheckedChannel(grpc.aio.Channel):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.unary_unary, _Call, arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.unary_stream, _Call, arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.stream_unary, _Call, arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.stream_stream, _Call, arguments, options)

    async def __aenter__(self) -> "CheckedChannel":
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._channel.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()


class BlockingCheckedChannel(grpc.Channel):
    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.unary_unary, _answer_of, arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.unary_stream, _BlockingCall, arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.stream_unary, _answer_of, arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> MakeCall:
        return _checking(self._channel.stream_stream, _BlockingCall, arguments, options)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False) -> None:
        self._channel.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> "BlockingCheckedChannel":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def _checking(make_method: MakeCall, wrap: Callable[[Any], Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> MakeCall:
    """arguments: of a method of a channel: its path, how requests become bytes, and answers messages."""
    path, *serializers = arguments
    named = {**dict(zip(("request_serializer", "response_deserializer"), serializers, strict=False)), **options}
    method = make_method(path, **{**named, "response_deserializer": checked_decoder(named.get("response_deserializer"))})
    return lambda *call_arguments, **call_options: wrap(method(*call_arguments, **call_options))


class _Call:
    """A call of grpc.aio: one answer is awaited, several are read or iterated over."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def read(self) -> Any:
        return self._checked(await self._call.read())

    async def _only_answer(self) -> Any:
        return self._checked(await self._call)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._only_answer().__await__()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for answer in self._call:
            yield self._checked(answer)

    def _checked(self, answer: Any) -> Any:
        if isinstance(answer, Refused):
            self._call.cancel()
            raise grpc.aio.AioRpcError(REFUSED, grpc.aio.Metadata(), grpc.aio.Metadata(), f"the answer {answer.words}")
        return answer


class _BlockingCall:
    """A call whose answers are iterated over."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        answer = next(self._call)
        if isinstance(answer, Refused):
            self._call.cancel()
            raise RefusedAnswer(answer.words)
        return answer


def _answer_of(answer: Any) -> Any:
    if isinstance(answer, Refused):
        raise RefusedAnswer(answer.words)
    return answer


class RefusedAnswer(grpc.RpcError):
    """What a call without an event loop fails with."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self._words = words

    def code(self) -> grpc.StatusCode:
        return REFUSED

    def details(self) -> str:
        return f"the answer {self._words}"

    def trailing_metadata(self) -> tuple[()]:
        return ()
