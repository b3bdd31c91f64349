"""Announces a process from `start` to `stop`, and answers whoever asks."""

import asyncio
import ipaddress

from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from dairllm.mesh.discovery.presence import LOOPBACK, Part
from dairllm.mesh.discovery.records import SERVICE_TYPE, Announcement
from dairllm.mesh.interfaces import real_interface_addresses

REPEAT_S = 4.0
"""Where multicast passes in one direction only, this is the longest wait for an announcement; a packet has about 300 bytes."""
_RECORD_TTL_S = 30
"""Short, since a killed process can't take its records back."""


class Announcer(Part):
    def __init__(self, announcement: Announcement) -> None:
        super().__init__()
        self._announcement = announcement
        self._announced: AsyncServiceInfo | None = None
        self._announced_s = 0.0

    def announce(self, announcement: Announcement) -> None:
        """Say this from now on instead; the id and the port stay."""
        assert announcement.id == self._announcement.id
        self._announcement = announcement
        self.hurry.set()

    def _addresses(self) -> tuple[str, ...]:
        """Loopback only where there is nothing else: to another machine it would mean that machine itself."""
        return self._announcement.addresses or tuple(real_interface_addresses()) or (LOOPBACK,)

    @property
    def is_local(self) -> bool:
        return all(ipaddress.ip_address(address).is_loopback for address in self._addresses())

    def _service_info(self) -> AsyncServiceInfo:
        said = self._announcement
        return AsyncServiceInfo(
            SERVICE_TYPE,
            said.instance_name,
            port=said.port,
            parsed_addresses=list(self._addresses()),
            server=f"{said.id}.local.",
            properties=dict(said.properties),
            host_ttl=_RECORD_TTL_S,
            other_ttl=_RECORD_TTL_S,
        )

    async def attach(self, endpoint: AsyncZeroconf) -> None:
        self._note(self._service_info())
        assert self._announced is not None
        # Ids are unique, so nobody is asked whether the name is free: that would take longer than finding.
        await endpoint.async_register_service(self._announced, cooperating_responders=True)

    async def detach(self) -> None:
        """Closing the endpoint takes the records back."""

    async def refresh(self, endpoint: AsyncZeroconf) -> None:
        info = self._service_info()
        if self._announced is None or _content(info) != _content(self._announced):
            self._note(info)
            await endpoint.async_update_service(info)
        elif self._announcement.wants_to_be_found and asyncio.get_running_loop().time() - self._announced_s >= REPEAT_S:
            self._note(info)
            endpoint.zeroconf.async_send(endpoint.zeroconf.generate_service_broadcast(info, None))

    def _note(self, info: AsyncServiceInfo) -> None:
        self._announced, self._announced_s = info, asyncio.get_running_loop().time()


def _content(info: AsyncServiceInfo) -> tuple[bytes, tuple[str, ...]]:
    return info.text or b"", tuple(info.parsed_addresses())
