"""Every gRPC channel and server is made here, so that limits, keepalive, errors and deadlines have one place, and what comes in is checked.

An error travels as a status from the table in `errors`, with `google.rpc.ErrorInfo` (reason = DairllmError.code, domain, the wrong field's
name) and, if trying again makes sense, `google.rpc.RetryInfo` among its details. `error_from_rpc` makes the same error of it again.
"""

import asyncio
import contextlib
import errno
import functools
import inspect
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from dairllm.mesh.addresses import Address, parse_address
from dairllm.mesh.checked_channels import REFUSED, BlockingCheckedChannel, CheckedChannel
from dairllm.mesh.errors import (
    Busy,
    DairllmError,
    DeadlineExceeded,
    InvalidRequest,
    InvalidSetting,
    PeerUnreachable,
    Unsupported,
)
from dairllm.mesh.ranges.decoding import Refused, checked_decoder
from dairllm.mesh.telemetry import fields, get_logger

MAX_MESSAGE_BYTES = 64 * 1024**2
KEEPALIVE_INTERVAL_S = 10
KEEPALIVE_TIMEOUT_S = 5
ERROR_DOMAIN = "dairllm"

_DETAILS_KEY = "grpc-status-details-bin"
_LAST_WRITE_S = 5.0
_MAX_ERROR_CHARACTERS = 2000
"""Details travel as metadata, which gRPC limits to 8 KiB by default."""
_STAGGER_S = 0.15
_WILDCARDS = ("0.0.0.0", "::")
"""gRPC takes either for both."""

_COMMON_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Bandwidth probes are pings too, and the keepalive waits for one that is under way: by default for a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
]
_CHANNEL_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # A channel of its own is a connection of its own: weights must not queue in front of activations.
    ("grpc.use_local_subchannel_pool", 1),
    # A machine that comes back is found again within seconds, not the default's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_SERVER_OPTIONS = [
    *_COMMON_OPTIONS,
    # Twice as often as clients send pings, so that none counts as abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_INTERVAL_S * 1000 // 2),
    ("grpc.so_reuseport", 0),
]

logger = get_logger(__name__)


def open_channel(address: str | Address) -> grpc.aio.Channel:
    """A channel of its own connection, made within a running event loop; it connects when it is first used. Raises InvalidSetting."""
    target = parse_address(address) if isinstance(address, str) else address
    channel = grpc.aio.insecure_channel(str(target), options=_CHANNEL_OPTIONS, compression=grpc.Compression.NoCompression)
    return CheckedChannel(channel)


def open_blocking_channel(address: str | Address) -> grpc.Channel:
    """As `open_channel`, for programs without an event loop. Raises InvalidSetting."""
    target = parse_address(address) if isinstance(address, str) else address
    channel = grpc.insecure_channel(str(target), options=_CHANNEL_OPTIONS, compression=grpc.Compression.NoCompression)
    return BlockingCheckedChannel(channel)


async def dial(addresses: Sequence[str], timeout_s: float, what: str) -> grpc.aio.Channel:
    """A connected channel to whichever address answers first; earlier ones get a small head start.

    what: whom the addresses belong to, for the message. Raises PeerUnreachable when all have failed or the time is over.
    """
    async with contextlib.aclosing(dial_each(addresses, timeout_s)) as connected:
        async for _, channel in connected:
            return channel
    raise PeerUnreachable(f"{what} does not answer at {', '.join(addresses) or 'any address: it has none'} (waited up to {timeout_s:g} s)")


async def dial_each(addresses: Sequence[str], timeout_s: float) -> AsyncGenerator[tuple[str, grpc.aio.Channel], None]:
    """Connected channels to all of the addresses, each as soon as it answers; earlier ones get a small head start.

    Ends when all have answered or failed, or the time is over. The caller closes what it got; with `contextlib.aclosing` around it, the
    others are closed in time.
    """
    addresses = tuple(addresses)
    channels = [open_channel(address) for address in addresses]
    attempts = [asyncio.create_task(_connect(channel, index * _STAGGER_S)) for index, channel in enumerate(channels)]
    given: set[grpc.aio.Channel] = set()
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    try:
        pending = set(attempts)
        while pending:
            left_s = max(0.0, deadline_s - asyncio.get_running_loop().time())
            done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return
            for index, attempt in enumerate(attempts):
                if attempt in done and attempt.result():
                    given.add(channels[index])
                    yield addresses[index], channels[index]
    finally:
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in channels if channel not in given))


async def _connect(channel: grpc.aio.Channel, delay_s: float) -> bool:
    await asyncio.sleep(delay_s)
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


def create_server() -> grpc.aio.Server:
    """A server without services or ports, made within a running event loop. DairllmErrors of handlers reach the caller as such."""
    return grpc.aio.server(interceptors=[_ErrorInterceptor()], options=_SERVER_OPTIONS, compression=grpc.Compression.NoCompression)


async def bind(server: grpc.aio.Server, host: str, port: int, what: str) -> int:
    """Listen on host and port (0: any free one) and return the port. host "0.0.0.0" or "::" is every interface, IPv4 and IPv6.

    what: what the port is for, in messages. Raises InvalidSetting that names it if the port is in use or the host is not of this machine.
    """
    where = str(Address(host, port))
    await _check_can_listen(host, port, f"{what} can't listen on {where}")
    try:
        bound_port: int = server.add_insecure_port(where)
    except RuntimeError as error:
        raise InvalidSetting(f"{what} can't listen on {where}: {error}") from error
    return bound_port


async def _check_can_listen(host: str, port: int, message: str) -> None:
    """gRPC says only that binding failed, and is content if one of a name's several addresses works: another process may own the other."""
    loop = asyncio.get_running_loop()
    try:
        found = [
            answer
            for name in (_WILDCARDS if host in _WILDCARDS else (host,))
            for answer in await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        ]
    except OSError as error:
        raise InvalidSetting(f"{message}: {host!r} is no host of this machine") from error
    failures = [failure for failure in (_listen_failure(family, address) for family, _, _, _, address in found) if failure]
    in_use = [failure for failure in failures if failure.errno == errno.EADDRINUSE]
    if in_use:
        raise InvalidSetting(f"{message}: port {port} is in use by another process")
    if len(failures) == len(found):
        raise InvalidSetting(f"{message}: {failures[0].strerror}")


def _listen_failure(family: int, address: Any) -> OSError | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


class ServiceHealth(health.aio.HealthServicer):  # pyright: ignore[reportAttributeAccessIssue] (missing in its stubs of gRPC)
    """The standard health service for this server as a whole ("") and each of its services."""

    def __init__(self, service_names: Sequence[str]) -> None:
        super().__init__()
        self._names = ("", *service_names)

    async def set_serving(self, serving: bool) -> None:
        """Before the first call no service is known to health checks."""
        statuses = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)


def add_standard_services(server: grpc.aio.Server, service_names: Sequence[str]) -> ServiceHealth:
    """Add health checking and reflection. service_names: full names, like "dairllm.v1.RingService"."""
    servicer = ServiceHealth(service_names)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection([*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return servicer


async def abort_with(context: grpc.aio.ServicerContext, error: DairllmError) -> NoReturn:
    """End a call with this error."""
    meaning = error.meaning
    info = ErrorInfo(reason=error.code, domain=ERROR_DOMAIN, metadata={"param": error.param} if error.param else {})
    message = error.message[:_MAX_ERROR_CHARACTERS]
    status = Status(code=meaning.grpc_status.value[0], message=message)
    status.details.add().Pack(info)
    if error.retry_delay_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_delay_s * 1e9))
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    await context.abort(meaning.grpc_status, message, ((_DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("ServicerContext.abort always raises")


def error_from_rpc(rpc_error: grpc.RpcError, peer: str = "the other process") -> DairllmError:
    """The error that `abort_with` was called with; for a call that failed otherwise the nearest one, with `peer` in its message."""
    for status in _statuses(rpc_error):
        error = _error_from_details(status)
        if error is not None:
            return error
    code = rpc_error.code()
    if code is _S.INTERNAL and rpc_error.details() == _WRITTEN_TO_AN_ENDED_STREAM:
        return PeerUnreachable(f"{peer}: the stream has ended")
    details = " ".join((rpc_error.details() or "").split())[:_MAX_ERROR_CHARACTERS] or "no details"
    return _CLASS_OF_STATUS.get(code, DairllmError)(f"{peer}: {_TEXT_OF_STATUS.get(code, code.name)} ({details})")


def _statuses(rpc_error: grpc.RpcError) -> Iterator[Status]:
    metadata: Any = rpc_error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            with contextlib.suppress(ValueError):  # DecodeError: another program's idea of details
                yield Status.FromString(value)


def _error_from_details(status: Status) -> DairllmError | None:
    info, retry = ErrorInfo(), RetryInfo()
    found = [info for detail in status.details if detail.Unpack(info)]
    cls = _error_classes().get(info.reason)
    if not found or info.domain != ERROR_DOMAIN or cls is None:
        return None
    retries = [retry for detail in status.details if detail.Unpack(retry)]
    retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9 if retries else None
    return cls(status.message, info.metadata.get("param"), retry_after_s)


@functools.cache
def _error_classes() -> dict[str, type[DairllmError]]:
    pending, classes = [DairllmError], {}
    while pending:
        cls = pending.pop()
        classes[cls("").code] = cls
        pending.extend(cls.__subclasses__())
    return classes


_S = grpc.StatusCode
_WRITTEN_TO_AN_ENDED_STREAM = "Internal error from Core"
"""What grpc.aio says instead of why a stream has ended, if it is written to at that moment (github.com/grpc/grpc/issues/36066)."""
_CLASS_OF_STATUS: dict[grpc.StatusCode, type[DairllmError]] = {
    _S.UNAVAILABLE: PeerUnreachable,
    _S.CANCELLED: PeerUnreachable,
    _S.DEADLINE_EXCEEDED: DeadlineExceeded,
    _S.RESOURCE_EXHAUSTED: Busy,
    _S.INVALID_ARGUMENT: InvalidRequest,
    _S.UNIMPLEMENTED: Unsupported,
}
_TEXT_OF_STATUS = {
    _S.UNAVAILABLE: "does not answer",
    _S.CANCELLED: "the call was cancelled",
    _S.DEADLINE_EXCEEDED: "did not answer in time",
    _S.RESOURCE_EXHAUSTED: "has no room for the request",
    _S.INVALID_ARGUMENT: "refused the request",
    _S.UNIMPLEMENTED: "does not know this call",
    REFUSED: "sent what cannot be",
}

_Handler = Callable[[Any, grpc.aio.ServicerContext], Any]


class _ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns what handlers raise into statuses; an error that is not ours is logged here and tells the caller nothing."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        return handler and _guarded(handler, handler_call_details.method)


def _guarded(handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
    make, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[handler.request_streaming, handler.response_streaming]
    checking = _checking_requests(_as_coroutine(behaviour), method)
    guarded = _reporting_errors(_with_whole_writes(checking) if handler.response_streaming else checking, method)
    return make(
        guarded, request_deserializer=checked_decoder(handler.request_deserializer), response_serializer=handler.response_serializer
    )


def _checking_requests(behaviour: _Handler, method: str) -> _Handler:
    def checked(request: Any) -> Any:
        if isinstance(request, Refused):
            raise InvalidRequest(f"a request to {method} {request.words}", request.field)
        return request

    async def checked_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield checked(request)

    async def with_checks(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return await behaviour(checked_each(request) if hasattr(request, "__aiter__") else checked(request), context)

    return with_checks


def _as_coroutine(behaviour: _Handler) -> Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]:
    """A generator's finally blocks run as soon as its call ends; gRPC itself leaves a cancelled generator to the garbage collector."""
    if not inspect.isasyncgenfunction(behaviour):
        return behaviour

    async def write_all(request: Any, context: grpc.aio.ServicerContext) -> None:
        async with contextlib.aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return write_all


def _with_whole_writes(behaviour: _Handler) -> _Handler:
    """A call cannot be ended while gRPC writes: whoever waited for the write may be cancelled, the write goes on."""

    async def with_whole_writes(request: Any, context: grpc.aio.ServicerContext) -> Any:
        writing: Any = _WholeWrites(context)
        try:
            return await behaviour(request, writing)
        finally:
            await writing.settle()

    return with_whole_writes


class _WholeWrites:
    """The context of a call with responses; one write at a time."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context
        self._write: asyncio.Future[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        self._write = asyncio.ensure_future(self._context.write(message))
        self._write.add_done_callback(lambda write: write.cancelled() or write.exception())  # nobody may be left to ask
        await asyncio.shield(self._write)

    async def settle(self) -> None:
        """Until nothing is being written, or the caller takes nothing any more."""
        if self._write is not None and not self._write.done():
            await asyncio.wait({self._write}, timeout=_LAST_WRITE_S)


def _reporting_errors(behaviour: Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]], method: str) -> _Handler:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await behaviour(request, context)
        except DairllmError as error:
            await abort_with(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            logger.exception("a call failed", extra=fields(method=method))
            await context.abort(grpc.StatusCode.INTERNAL, f"{method} failed; the cause is in the log of this process")

    return guarded
