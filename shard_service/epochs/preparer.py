"""Loading what an assignment needs, beside what is computed for the plan that is active.

Threads that load have a lower priority than those that compute, so that running answers hardly notice it.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from dairllm.mesh.errors import InvalidModel, NotEnoughMemory
from dairllm.mesh.peers import COORDINATOR_NAME, Peer
from dairllm.model_files.memory import STREAM_READERS
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.epochs.compute_thread import name_thread
from dairllm.shard_service.forward.building import StageParts, build_stage, check_stage, scratch_bytes
from dairllm.shard_service.kv_cache.layers import KvCaches
from dairllm.shard_service.machine.memory import MemoryBudget, MemoryDemand
from dairllm.shard_service.weights.assembler import LoadedUnit
from dairllm.shard_service.weights.direct import require_allowed
from dairllm.shard_service.weights.disk_cache import WeightsCache
from dairllm.shard_service.weights.embedding_rows import EmbeddingRows
from dairllm.shard_service.weights.experts import ExpertStore
from dairllm.shard_service.weights.fetching import FetchedUnits, WeightMembers
from dairllm.shard_service.weights.reading import StreamMeter
from dairllm.shard_service.weights.sources import LocalFiles, UnitSource, find_local_files
from dairllm.shard_service.weights.store import LayerStore, LoadCounts, bytes_together
from dairllm.shard_service.weights.streaming import WeightStream
from dairllm.shard_service.weights.streams import NO_STREAMS, Streams

T = TypeVar("T")

LOADER_THREADS = 3
_LOADER_NICENESS = 10

log = logging.getLogger(__name__)


class LoadReport(Protocol):
    """Is told how far loading is, and why it does not go on."""

    def __call__(self, counts: LoadCounts) -> None: ...
    def trouble(self, reason: str) -> None: ...


class NeedsExclusive(NotEnoughMemory):
    """The assignment fits, but not beside the active one."""


class Prepared(NamedTuple):
    """An assignment whose weights are loaded. Nothing of it is computed yet."""

    assignment: AssignmentFacts
    parts: StageParts
    scratch_bytes: int
    streams: Streams = NO_STREAMS


def make_loader_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="loader", initializer=_give_way)


def _give_way() -> None:
    name_thread("loader")
    if sys.platform == "linux":  # where every thread has a priority of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOADER_NICENESS)


class Preparer:
    """coordinator_addresses: where weights are fetched that no file here has. cache: where they are kept, if they are. direct: whether the
    URLs are asked that a coordinator names."""

    def __init__(
        self,
        store: LayerStore,
        caches: KvCaches,
        threads: ThreadPoolExecutor,
        model_dirs: Sequence[Path],
        coordinator_addresses: Callable[[], Sequence[str]],
        cache: WeightsCache | None,
        direct: bool = False,
    ) -> None:
        self._readers = ThreadPoolExecutor(STREAM_READERS, thread_name_prefix="reader", initializer=name_thread, initargs=("reader",))
        self.stream_meter = StreamMeter()
        self._store = store
        self._caches = caches
        self._threads = threads
        self._model_dirs = model_dirs
        self._coordinator_addresses = coordinator_addresses
        self._cache = cache
        self._direct = direct

    async def prepare(
        self, assignment: AssignmentFacts, active: AssignmentFacts | None, budget: MemoryBudget, report: LoadReport
    ) -> Prepared:
        """active: what must stay as it is meanwhile. May be cancelled; units that were complete stay.

        Raises NotEnoughMemory if it does not fit, NeedsExclusive if only not beside the active one, and what the sources raise.
        """
        await self._in_loader(lambda: check_stage(assignment))
        demand = demand_of(assignment)
        budget.require(demand)
        self._make_room(assignment, active, demand, budget)
        streams = await self._in_loader(lambda: self._streams_of(assignment))
        units = await self._load(assignment, report, streams)
        parts = await self._in_loader(lambda: build_stage(assignment, units))
        streams.start()
        return Prepared(assignment, parts, demand.scratch_bytes, streams)

    def _streams_of(self, assignment: AssignmentFacts) -> Streams:
        threads, meter, experts = self._readers, self.stream_meter, assignment.expert_units
        return Streams(
            meter,
            WeightStream(streamed, threads, meter) if (streamed := assignment.streamed_units) else None,
            ExpertStore(experts, assignment.experts_used, assignment.expert_places, threads, meter) if experts else None,
            EmbeddingRows(assignment.units[0], assignment.geometry.max_batch_rows, meter) if assignment.has_embedding_rows else None,
        )

    def close(self) -> None:
        """Nothing is prepared or streamed any more."""
        self._readers.shutdown(wait=True)

    def _make_room(self, assignment: AssignmentFacts, active: AssignmentFacts | None, demand: MemoryDemand, budget: MemoryBudget) -> None:
        """Free what nobody needs, as far as there is no room for it: it may be wanted again when the plan changes back."""
        used = [assignment] if active is None else [assignment, active]
        own_layers = range(0) if active is None else active.layer_units
        together = replace(demand, weights_bytes=bytes_together(*used), kv_cache_bytes=self._caches.bytes_with(assignment, own_layers))
        if budget.missing_bytes(together):
            try:
                budget.require(together, "the assignment together with the active one")
            except NotEnoughMemory as error:
                raise NeedsExclusive(error.message) from error
        besides = self._store.bytes_besides(*used)
        if budget.missing_bytes(replace(together, weights_bytes=together.weights_bytes + besides)):
            self._store.keep_only(*used)
            besides = 0
        all_caches_bytes = self._caches.bytes_with(assignment, self._caches.units)
        if budget.missing_bytes(replace(together, weights_bytes=together.weights_bytes + besides, kv_cache_bytes=all_caches_bytes)):
            self._caches.keep_only({*assignment.layer_units, *own_layers})

    async def _load(self, assignment: AssignmentFacts, report: LoadReport, streams: Streams) -> tuple[LoadedUnit, ...]:
        found = await self._in_loader(lambda: find_local_files(assignment, self._model_dirs))
        peers = weight_peers(assignment.weight_sources, self._coordinator_addresses())
        urls = await self._in_loader(lambda: self._direct_urls(assignment))
        members = WeightMembers(peers, assignment.model_digest, urls=urls, on_trouble=report.trouble)
        keep = frozenset(unit.digest for unit in assignment.units)
        fetched = FetchedUnits(members, self._cache, self._threads, keep)
        sources: list[UnitSource] = [*(LocalFiles(paths, self._threads) for paths in found), fetched]
        try:
            return await self._store.load(assignment, sources, report, streams)
        finally:
            await members.close()

    def _direct_urls(self, assignment: AssignmentFacts) -> tuple[str, ...]:
        """Where the coordinator's model was fetched, if that may be asked from here."""
        if not self._direct or not assignment.model_urls:
            return ()
        from dairllm.model_files.getting.hub import endpoint  # takes a while

        try:
            require_allowed(assignment.model_urls, endpoint())
        except InvalidModel as error:
            log.warning("%s", error)
            return ()
        return assignment.model_urls

    async def _in_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def demand_of(assignment: AssignmentFacts) -> MemoryDemand:
    return MemoryDemand(bytes_together(assignment), assignment.kv_cache_bytes, scratch_bytes(assignment))


def weight_peers(sources: Sequence[Peer], coordinator_addresses: Sequence[str]) -> list[Peer]:
    """Members to fetch weights from, the coordinator last: also where this shard has joined."""
    named = [address for peer in sources if peer.name == COORDINATOR_NAME for address in peer.addresses]
    coordinator = Peer(COORDINATOR_NAME, tuple(dict.fromkeys([*named, *coordinator_addresses])))
    others = {peer.name: peer for peer in sources if peer.name != COORDINATOR_NAME}
    return [*others.values(), coordinator]
