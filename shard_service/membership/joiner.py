"""Finds the coordinator and keeps the shard a member. The decisions are `joining`'s."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from dairllm.mesh.channels import dial
from dairllm.mesh.discovery.browsers import Browser
from dairllm.mesh.errors import DairllmError, DeadlineExceeded, NotReady, PeerUnreachable, RequestLost
from dairllm.mesh.telemetry import fields
from dairllm.shard_service.membership.joining import (
    Action,
    Event,
    Found,
    Join,
    JoinFailed,
    Joining,
    JoinRefused,
    LeaseLost,
    Pause,
    PauseOver,
    Seek,
    Started,
)
from dairllm.shard_service.membership.lease import JoinUnsuccessful, Lease, OrderTaker
from dairllm.v1 import cluster_pb2

_DIAL_DEADLINE_S = 5.0
_TELL_NOT_FOUND_S = 15.0
_AWAY = (PeerUnreachable, DeadlineExceeded, NotReady, RequestLost)
"""Errors after which the same attempt may work in a moment."""

log = logging.getLogger(__name__)

MakeHello = Callable[[], cluster_pb2.Hello]


class Joiner:
    """coordinator: its address, or None to look for it with `browser`. on_change: the shard has become a member, or is none any more.

    on_refused: whether it may ask again at once, since it asks for something else.
    """

    def __init__(
        self,
        coordinator: str | None,
        browser: Browser | None,
        make_hello: MakeHello,
        member: OrderTaker,
        on_change: Callable[[], None],
        on_refused: Callable[[DairllmError], bool],
    ) -> None:
        assert (coordinator is None) != (browser is None), "either an address or discovery"
        self._coordinator = coordinator
        self._browser = browser
        self._candidates = browser.found() if browser is not None else None
        self._make_hello = make_hello
        self._member = member
        self._on_change = on_change
        self._on_refused = on_refused
        self._lease: Lease | None = None
        self._lease_ended = asyncio.Event()
        self._is_leaving = False
        self.coordinator_addresses: tuple[str, ...] = ()

    @property
    def is_member(self) -> bool:
        return self._lease is not None

    def send(self, request: cluster_pb2.JoinRequest) -> None:
        """Nothing while the shard is not a member: the coordinator then makes a new assignment anyway."""
        if self._lease is not None:
            self._lease.send(request)

    async def run(self) -> None:
        """Until cancelled, or until the shard has left."""
        joining = Joining()
        event: Event = Started()
        while not self._is_leaving:
            event = await self._perform(joining.handle(event))

    async def lease_ended(self) -> None:
        """Waits while the shard is a member."""
        if self._lease is not None:
            await self._lease_ended.wait()

    async def leave(self, reason: str) -> None:
        self._is_leaving = True
        if self._lease is not None:
            await self._lease.leave(reason)

    async def _perform(self, action: Action) -> Event:
        match action:
            case Seek():
                return Found(await self._seek())
            case Join(addresses):
                return await self._join(addresses)
            case Pause(delay_s, tell):
                if tell is not None:
                    log.warning(tell)
                await asyncio.sleep(delay_s)
                return PauseOver()

    async def _seek(self) -> tuple[str, ...]:
        if self._coordinator is not None:
            return (self._coordinator,)
        telling = asyncio.create_task(self._tell_not_found())
        try:
            assert self._candidates is not None
            return (await anext(self._candidates)).addresses
        finally:
            telling.cancel()

    async def _tell_not_found(self) -> None:
        assert self._browser is not None
        await asyncio.sleep(_TELL_NOT_FOUND_S)
        foreign = [address for coordinator in self._browser.foreign for address in coordinator.addresses]
        others = f" (coordinators of other clusters are at {', '.join(foreign)})" if foreign else ""
        log.warning("no coordinator found on this network yet%s; `--coordinator HOST:PORT` works without multicast", others)

    async def _join(self, addresses: tuple[str, ...]) -> Event:
        try:
            channel = await dial(addresses, _DIAL_DEADLINE_S, "the coordinator")
        except DairllmError as error:
            return JoinFailed(error, random.random())
        lease = Lease(channel, self._make_hello(), self._member)
        try:
            await lease.keep(lambda: self._became_member(lease, addresses))
        except JoinUnsuccessful as unsuccessful:
            if isinstance(unsuccessful.error, _AWAY):
                return JoinFailed(unsuccessful.error, random.random())
            if self._on_refused(unsuccessful.error):
                return PauseOver()
            return JoinRefused(unsuccessful.error, random.random())
        except DairllmError as error:
            return LeaseLost(error, random.random())
        finally:
            self._lease = None
            self._lease_ended.set()
            self._on_change()
            with contextlib.suppress(asyncio.CancelledError):
                await channel.close()
        raise AssertionError("a lease ends with an error")

    def _became_member(self, lease: Lease, addresses: tuple[str, ...]) -> None:
        self._lease = lease
        self._lease_ended.clear()
        self.coordinator_addresses = addresses
        self._on_change()
        log.info("joined the cluster", extra=fields(coordinator=", ".join(addresses)))
