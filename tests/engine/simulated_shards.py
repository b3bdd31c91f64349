"""Shards that compute nothing, but hold what real ones hold and check that it is there: a model of the ring for the scheduler's tests.

The value of a row is the sequence's tokens up to it: that is what it depends on, at every boundary. A layer may only compute a row if
its cache holds the right value for every position before; the head turns a row into the next token.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field

from dairllm.coordinator.cluster.facts import Holder
from dairllm.coordinator.engine.recovery import Placement
from dairllm.coordinator.engine.requests import TokenScore
from dairllm.coordinator.engine.scheduler import Batch, BatchCompleted, RingGeometry, Slice, SliceResult

Row = tuple[int, ...]


def next_token(tokens: Row) -> int:
    """Stands for the model."""
    return hashlib.sha256(repr(list(tokens)).encode()).digest()[0] % 64


@dataclass
class KnownSequence:
    tokens: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)


@dataclass
class SimulatedShard:
    """One life of a shard. cells: (unit, block, offset) -> row value; records: (ring id, boundary) -> row values by position."""

    holder: Holder
    block_tokens: int
    sequences: dict[int, KnownSequence] = field(default_factory=dict)
    cells: dict[tuple[int, int, int], Row] = field(default_factory=dict)
    records: dict[tuple[int, int], list[Row]] = field(default_factory=dict)

    def begin(self, batch: Batch) -> None:
        for begin in batch.begins:
            self.sequences[begin.ring_id] = KnownSequence(list(begin.token_ids), list(begin.block_ids))

    def end(self, batch: Batch) -> None:
        for ring_id in batch.ends:
            self.forget(ring_id)

    def forget(self, ring_id: int) -> None:
        self.sequences.pop(ring_id, None)
        self.records = {key: rows for key, rows in self.records.items() if key[0] != ring_id}

    def compute(self, piece: Slice, rows: list[Row] | None, units: range, num_units: int) -> tuple[list[Row] | None, bool]:
        """What goes on to the next shard, and whether the replay failed."""
        sequence = self.sequences[piece.ring_id]
        assert piece.first_position <= len(sequence.tokens), "rows may be replaced, never left out"
        del sequence.tokens[piece.first_position :]
        sequence.tokens.extend(piece.token_ids)
        if piece.new_block_ids:
            del sequence.block_ids[-(-piece.first_position // self.block_tokens) :]
            sequence.block_ids.extend(piece.new_block_ids)
        assert len(sequence.block_ids) * self.block_tokens >= piece.stop
        first, end = (piece.replay.first_unit, piece.replay.end_unit) if piece.replay else (0, num_units)
        if piece.replay and piece.replay.replay_at == self.holder.name:
            assert units.start <= first <= units.stop
            recorded = self.records.get((piece.ring_id, first), [])[piece.first_position : piece.stop]
            if len(recorded) < len(piece.token_ids):
                return None, True
            rows = recorded
        elif first == 0 and units.start == 0:
            rows = [tuple(sequence.tokens[: p + 1]) for p in range(piece.first_position, piece.stop)]
        if units.stop <= first and not (piece.replay and piece.replay.replay_at == self.holder.name):
            return None, False
        if units.start >= end:
            return None, False
        assert rows is not None, f"{self.holder} got no rows"
        for unit in range(max(units.start, first), min(units.stop, end)):
            self._pass_unit(unit, sequence, piece, rows, num_units)
        if end >= units.stop and units.stop < num_units:
            kept = self.records.setdefault((piece.ring_id, units.stop), [])
            if len(kept) >= piece.first_position:
                del kept[piece.first_position :]
                kept.extend(rows)
        return (rows if end > units.stop or units.stop == num_units else None), False

    def _pass_unit(self, unit: int, sequence: KnownSequence, piece: Slice, rows: list[Row], num_units: int) -> None:
        if not 1 <= unit < num_units - 1:
            return
        for position, row in enumerate(rows, piece.first_position):
            assert row == tuple(sequence.tokens[: position + 1])
            self.cells[unit, *self._cell(sequence, position)] = row
        for position in range(piece.stop):
            cell = (unit, *self._cell(sequence, position))
            assert self.cells.get(cell) == tuple(sequence.tokens[: position + 1]), f"{self.holder} lacks the cache of unit {unit}"

    def _cell(self, sequence: KnownSequence, position: int) -> tuple[int, int]:
        return sequence.block_ids[position // self.block_tokens], position % self.block_tokens


class SimulatedRing:
    """Shards live on while plans change. open() is a plan's activation; lose() ends a life."""

    def __init__(self) -> None:
        self.shards: dict[Holder, SimulatedShard] = {}
        self.geometry: RingGeometry | None = None
        self.queue: deque[Batch] = deque()
        self.before: Placement = ()
        self.transferred: set[tuple[Holder, int]] = set()
        self.replayed_rows = 0
        self.failed_replays: set[int] = set()

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
            shard = self.shards.setdefault(stage.holder, SimulatedShard(stage.holder, geometry.kv_block_tokens))
            for ring_id in set(shard.sequences) - set(alive):
                shard.forget(ring_id)
            shard.cells = {cell: row for cell, row in shard.cells.items() if cell[0] in stage.units and cell[1] < geometry.num_kv_blocks}
        self.geometry = geometry
        return present

    def transfer(self, now: Placement, units: frozenset[int], old: Placement) -> None:
        """Hand the cache of these units over to their new owners."""
        new_owner = {unit: stage.holder for stage in now for unit in stage.units}
        self.transferred = {(new_owner[unit], unit) for unit in units}
        for stage in old:
            source = self.shards.get(stage.holder)
            for cell, row in list(source.cells.items()) if source else []:
                if cell[0] in units:
                    shard = self.shards.setdefault(new_owner[cell[0]], SimulatedShard(new_owner[cell[0]], source.block_tokens))
                    shard.cells[cell] = row

    def close(self) -> None:
        self.queue.clear()
        self.geometry = None

    def send(self, batch: Batch) -> None:
        assert self.geometry is not None
        assert batch.epoch == self.geometry.epoch
        self.queue.append(batch)
        assert len(self.queue) <= self.geometry.num_stages + 1

    def compute_partly(self, num_stages: int) -> None:
        """The first shards compute the oldest frame, and then the ring breaks."""
        assert self.geometry is not None
        if self.queue:
            self._compute(self.queue.popleft(), num_stages)

    def compute(self) -> BatchCompleted:
        assert self.geometry is not None
        batch = self.queue.popleft()
        rows, failed = self._compute(batch, self.geometry.num_stages)
        results = tuple(self._result(piece, rows[piece.ring_id], piece.ring_id in failed) for piece in batch.slices)
        return BatchCompleted(batch.epoch, batch.batch_id, results)

    def _compute(self, batch: Batch, num_stages: int) -> tuple[dict[int, list[Row] | None], set[int]]:
        """What comes out of the last of these stages by ring id, and whose replay failed."""
        assert self.geometry is not None
        num_units = self.geometry.placement[-1].units.stop
        rows: dict[int, list[Row] | None] = {piece.ring_id: None for piece in batch.slices}
        # What follows a failed replay is computed from nothing: its results are of a ring id that nobody waits for any more.
        failed = {piece.ring_id for piece in batch.slices if piece.ring_id in self.failed_replays}
        for stage in self.geometry.placement[:num_stages]:
            shard = self.shards[stage.holder]
            shard.begin(batch)
            for piece in batch.slices:
                assert all(0 <= block < self.geometry.num_kv_blocks for block in piece.new_block_ids)
                if piece.ring_id in failed:
                    continue
                rows[piece.ring_id], has_failed = shard.compute(piece, rows[piece.ring_id], stage.units, num_units)
                if has_failed:
                    failed.add(piece.ring_id)
            shard.end(batch)
        self.replayed_rows += sum(len(piece.token_ids) for piece in batch.slices if piece.replay)
        self.failed_replays |= failed
        return rows, failed

    def _result(self, piece: Slice, rows: list[Row] | None, has_failed: bool) -> SliceResult:
        if has_failed:
            return SliceResult(piece.ring_id, None, (), replay_failed=True)
        sampled = TokenScore(next_token(rows[-1]), -1.0) if piece.sample and rows else None
        assert (sampled is not None) == piece.sample
        scores = tuple(TokenScore(target, float(-target)) for target in piece.score_targets)
        assert len(scores) in (0, len(piece.token_ids))
        return SliceResult(piece.ring_id, sampled, scores)
