"""A ring of simulated shards that live on while plans change, for the scheduler's tests."""

from collections import deque
from collections.abc import Collection

from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.engine.events import BatchCompleted
from dairllm.coordinator.engine.facts import RingGeometry
from dairllm.coordinator.engine.recovery import Placement
from dairllm.mesh.ring.frames import MicroBatch
from tests.engine.shard_contents import Passage, ShardContents


class SimulatedRing:
    """open() is a plan's activation."""

    def __init__(self) -> None:
        self.shards: dict[Holder, ShardContents] = {}
        self.geometry: RingGeometry | None = None
        self.queue: deque[MicroBatch] = deque()
        self.before: Placement = ()
        self.transferred: set[tuple[Holder, int]] = set()
        self.replayed_rows = 0

    def open(self, geometry: RingGeometry, alive: tuple[int, ...]) -> frozenset[int]:
        """Layer units whose owner has their cache: it had them under the plan before, or they were transferred to it."""
        owned = {(stage.holder, unit) for stage in self.before if stage.holder in self.shards for unit in stage.units}
        owned |= self.transferred
        present = frozenset(unit for stage in geometry.placement for unit in stage.units if (stage.holder, unit) in owned)
        self.before, self.transferred = geometry.placement, set()
        self.queue.clear()
        for holder in [holder for holder in self.shards if holder not in {stage.holder for stage in geometry.placement}]:
            del self.shards[holder]
        for stage in geometry.placement:
            shard = self._shard(stage.holder, geometry.kv_block_tokens)
            shard.cells = {unit: cells for unit, cells in shard.cells.items() if unit in stage.units}
            shard.keep_only(geometry.num_kv_blocks, alive)
        self.geometry = geometry
        return present

    def _shard(self, holder: Holder, block_tokens: int) -> ShardContents:
        return self.shards.setdefault(holder, ShardContents(holder.name, block_tokens))

    def transfer(self, now: Placement, units: frozenset[int], old: Placement, block_ids: Collection[int]) -> None:
        """Hand these blocks of the cache of these units over to their new owners."""
        new_owner = {unit: stage.holder for stage in now for unit in stage.units}
        self.transferred = {(new_owner[unit], unit) for unit in units}
        for stage in old:
            source = self.shards.get(stage.holder)
            if source is None:
                continue
            for unit in units & source.cells.keys():
                cells = {
                    block: list(rows) for block, rows in source.cells[unit].items() if block in block_ids or new_owner[unit] == stage.holder
                }
                self._shard(new_owner[unit], source.block_tokens).cells[unit] = cells

    def close(self) -> None:
        self.queue.clear()
        self.geometry = None

    def send(self, batch: MicroBatch) -> None:
        assert self.geometry is not None
        assert batch.epoch == self.geometry.epoch
        self.queue.append(batch)
        assert len(self.queue) <= self.geometry.frames_at_once + 1

    def compute_partly(self, num_stages: int) -> None:
        """The first shards compute the oldest frame, and then the ring breaks."""
        assert self.geometry is not None
        if self.queue:
            self._compute(self.queue.popleft(), num_stages)

    def compute(self) -> BatchCompleted:
        assert self.geometry is not None
        batch = self.queue.popleft()
        return BatchCompleted(self._compute(batch, len(self.geometry.placement)).result())

    def _compute(self, batch: MicroBatch, num_stages: int) -> Passage:
        """What comes out of the last of these stages."""
        assert self.geometry is not None
        assert all(0 <= block < self.geometry.num_kv_blocks for slice_ in batch.slices for block in slice_.new_block_ids)
        num_units = self.geometry.placement[-1].units.stop
        passage = Passage.begin(batch)
        for stage in self.geometry.placement[:num_stages]:
            passage = self.shards[stage.holder].compute(passage, stage.units, num_units)
        self.replayed_rows += sum(len(slice_.token_ids) for slice_ in batch.slices if slice_.replay)
        return passage
