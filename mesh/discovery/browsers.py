"""Who hears announcements: a shard or a client those of coordinators, a coordinator those of shards."""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable

from zeroconf import DNSQuestionType, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from dairllm.mesh.discovery.candidates import Candidates
from dairllm.mesh.discovery.presence import Part
from dairllm.mesh.discovery.reading import read_coordinator, read_shard, record_of
from dairllm.mesh.discovery.records import SERVICE_TYPE, DiscoveredCoordinator, DiscoveredShard

SUGGESTED_S = 30.0
"""How long a suggestion is tried: as long as a record lives."""
MAX_FOREIGN = 32
_MAX_RESOLVING = 64
"""What comes at the same time beyond that is looked at when it is asked for again."""
_BROWSE_AGAIN_S = 8.0
"""A browser asks after 0, 1, 3 and 7 s and then only listens; a new one begins again."""
_RESOLVE_TIMEOUT_S = 3.0


class _RecordBrowser(Part):
    """Records of SERVICE_TYPE from `start` to `stop`. Each instance has a key of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._browser: AsyncServiceBrowser | None = None
        self._browsing_since_s = 0.0
        self._resolving: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _take(self, key: str, info: AsyncServiceInfo) -> None:
        """There is this record now; nothing in it is checked."""

    @abstractmethod
    def _drop(self, key: str) -> None:
        """There is no such record any more."""

    async def attach(self, endpoint: AsyncZeroconf) -> None:
        self._browsing_since_s = asyncio.get_running_loop().time()
        # Questions for multicast answers only: a unicast answer may reach another process on this machine that shares the port.
        self._browser = AsyncServiceBrowser(
            endpoint.zeroconf, SERVICE_TYPE, handlers=[self._on_service_state_change], question_type=DNSQuestionType.QM
        )

    async def detach(self) -> None:
        browser, self._browser = self._browser, None
        for task in self._resolving:
            task.cancel()
        await asyncio.gather(*self._resolving, return_exceptions=True)
        if browser is not None:
            await browser.async_cancel()

    async def refresh(self, endpoint: AsyncZeroconf) -> None:
        if asyncio.get_running_loop().time() - self._browsing_since_s >= _BROWSE_AGAIN_S:
            await self.detach()
            await self.attach(endpoint)

    def _on_service_state_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self._drop(name)
        elif len(self._resolving) < _MAX_RESOLVING:
            task = asyncio.create_task(self._resolve(zeroconf, name), name="mdns-resolve")
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        info = record_of(name)
        if info is not None and await info.async_request(zeroconf, _RESOLVE_TIMEOUT_S * 1000, question_type=DNSQuestionType.QM):
            self._take(name, info)


class Browser(_RecordBrowser):
    """Looks for coordinators of one cluster from `start` to `stop`."""

    def __init__(self, cluster_hash: str) -> None:
        super().__init__()
        self._cluster_hash = cluster_hash
        self._candidates = Candidates()
        self._foreign: dict[str, DiscoveredCoordinator] = {}

    @property
    def foreign(self) -> tuple[DiscoveredCoordinator, ...]:
        """Coordinators of other clusters on this network, for a message to someone who wonders why nothing is found."""
        return tuple(self._foreign.values())

    def found(self) -> AsyncIterator[DiscoveredCoordinator]:
        """As `Candidates.found`."""
        return self._candidates.found()

    def suggest(self, coordinator: DiscoveredCoordinator) -> None:
        """It is as good as one that was heard, for SUGGESTED_S: somebody else says that it is there."""
        until_s = asyncio.get_running_loop().time() + SUGGESTED_S
        self._candidates.take(f"suggested {coordinator.coordinator_id}", coordinator, until_s)

    def _take(self, key: str, info: AsyncServiceInfo) -> None:
        coordinator = read_coordinator(info)
        if coordinator is None:
            return
        if coordinator.cluster_hash == self._cluster_hash:
            self._candidates.take(key, coordinator)
        elif key in self._foreign or len(self._foreign) < MAX_FOREIGN:
            self._foreign[key] = coordinator

    def _drop(self, key: str) -> None:
        self._candidates.drop(key)
        self._foreign.pop(key, None)


class ShardBrowser(_RecordBrowser):
    """Tells of shards of any cluster from `start` to `stop`: of each when it appears and when its record changes, and when it is gone."""

    def __init__(self, on_seen: Callable[[str, DiscoveredShard], None], on_gone: Callable[[str], None]) -> None:
        """Both get the record's key, which two shards that claim the same id do not share."""
        super().__init__()
        self._on_seen = on_seen
        self._on_gone = on_gone

    def _take(self, key: str, info: AsyncServiceInfo) -> None:
        shard = read_shard(info)
        if shard is not None:
            self._on_seen(key, shard)

    def _drop(self, key: str) -> None:
        self._on_gone(key)
