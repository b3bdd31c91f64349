"""One ring after the other: opened when all its stages are ready, watched, drained or broken off."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from dairllm.coordinator.cluster import actions as do
from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.identities import Epoch, Holder
from dairllm.coordinator.engine.actions import ReportRecovery
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.recovery import StagePlace
from dairllm.coordinator.membership.reachability import Places
from dairllm.coordinator.ring import Ring, RingEnds
from dairllm.mesh.errors import PeerUnreachable
from dairllm.mesh.peers import COORDINATOR_NAME

DRAIN_LIMIT_S = 2.0
WATCH_INTERVAL_S = 1.0


class RingLife:
    """handle: takes what happens to the ring."""

    def __init__(self, config: ClusterConfig, ring: Ring, engine: Engine, places: Places, handle: Callable[[on.Event], None]) -> None:
        self._config = config
        self._ring = ring
        self._engine = engine
        self._places = places
        self._handle = handle
        self._opening: asyncio.Task[None] | None = None
        self._draining: Epoch | None = None
        self._is_open = False

    # It opens

    def start_opening(self, action: do.OpenRing) -> None:
        addresses = self._places.addresses(COORDINATOR_NAME, action.first.name)
        previous, self._opening = self._opening, None
        self._opening = asyncio.create_task(self._open(previous, action, addresses), name=f"open-ring-{action.epoch}")

    async def _open(self, previous: asyncio.Task[None] | None, action: do.OpenRing, addresses: tuple[str, ...]) -> None:
        if previous is not None:
            previous.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await previous
        try:
            ends, wire = RingEnds(action.first.name, action.holders[-1].name), self._config.arithmetic.wire
            await self._ring.open(action.epoch, wire, ends, addresses, self._broken, partial(self._at_fault, action.holders))
        except PeerUnreachable as error:
            self._broken(action.epoch, str(error))
            return
        self._is_open = True
        # The engine first: from RingOpened on the machine believes that what the shards lacked is computed again, and it may close the
        # ring in the same call.
        last = partial(self._at_fault, action.holders, action.holders[-1].name)
        self._engine.open_ring(self._geometry(action), self._ring.send, self._recovered, last)
        self._handle(on.RingOpened(action.epoch))

    def _geometry(self, action: do.OpenRing) -> RingGeometry:
        placement = tuple(StagePlace(holder, stage.units) for holder, stage in zip(action.holders, action.plan.stages, strict=True))
        return RingGeometry(
            epoch=action.epoch,
            placement=placement,
            num_kv_blocks=action.plan.num_kv_blocks,
            kv_block_tokens=self._config.kv_block_tokens,
            encoding=self._config.arithmetic.wire,
            present=action.kept | action.transferred,
            intact_blocks=action.intact_blocks,
            has_moved=bool(action.transferred),
            streams=action.plan.streamed_bytes > 0,
        )

    # It is in use

    def awaited(self) -> Iterator[on.FramesAwaited]:
        """What goes around the ring now; none while no ring is open or about to be."""
        if self._ring.epoch:
            yield on.FramesAwaited(Epoch(self._ring.epoch), self._ring.num_back, self._ring.most_work)

    async def watch(self) -> None:
        """Give up on frames that do not come back, and say how long steps take. Until cancelled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            epoch = Epoch(self._ring.epoch)
            overdue_s = self._engine.overdue_s()
            if overdue_s is not None:
                self._broken(epoch, f"a frame did not come back within {overdue_s:.0f} s")
            for shard, step in self._engine.decode_steps().items():
                self._handle(on.StepMeasured(epoch, shard, step.step_s, step.rows))

    def _recovered(self, report: ReportRecovery, duration_s: float) -> None:
        share = report.replayed_work / report.all_work if report.all_work else 0.0
        self._handle(on.AnswersRecovered(report.num_kept, report.num_replayed, report.num_restarted, share, duration_s))

    def _at_fault(self, holders: Sequence[Holder], name: str, reason: str) -> None:
        """One of these who have the stages of a plan."""
        holder = next(holder for holder in holders if holder.name == name)
        self._handle(on.MemberAtFault(holder.name, holder.boot_id, reason))

    def _broken(self, epoch: int, message: str) -> None:
        self._handle(on.RingBroken(Epoch(epoch), message))

    # It closes

    def drain(self, epoch: Epoch) -> None:
        self._draining = epoch
        asyncio.get_running_loop().call_later(DRAIN_LIMIT_S, self._end_draining, epoch)
        self._engine.drain_ring(lambda: self._end_draining(epoch))

    def _end_draining(self, epoch: Epoch) -> None:
        """Also when time is up: what is still in flight is given up, and computed again."""
        if self._draining != epoch:
            return
        self.close()
        self._handle(on.RingDrained(epoch))

    def close(self) -> None:
        self._draining = None
        if self._opening is not None:
            self._opening.cancel()
        if self._is_open:
            self._is_open = False
            self._engine.close_ring()
        self._ring.shut()

    async def stop(self) -> None:
        """For good."""
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        await self._ring.end()
