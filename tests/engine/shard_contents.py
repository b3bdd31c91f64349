"""What a shard holds, without computing anything: a model for the scheduler's tests and for the simulation of whole clusters.

The value of a row stands for what a model would make of all tokens up to it: that is what a row depends on, at every boundary. A layer may
only compute a row if its cache holds the right value for every position before; the head turns a row into the next token.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, SequenceBegin, SequenceResult, SequenceSlice, TokenScore

Row = int
GARBAGE: Row = -1
"""What is computed for a sequence whose replay has failed: nobody may want it."""
NUM_TOKENS = 64
Cells = dict[int, list[Row | None]]
"""The cache of one layer: block -> row by offset."""


def extend_rows(rows: list[Row], token_ids: Iterable[int]) -> None:
    """Append the rows of these tokens to those before them."""
    row = rows[-1] if rows else 0
    for token_id in token_ids:
        row = hash((row, token_id))
        rows.append(row)


def token_of(row: Row) -> int:
    """Stands for the head."""
    return row % NUM_TOKENS if row != GARBAGE else GARBAGE


def next_token(token_ids: Sequence[int]) -> int:
    """Stands for the whole model."""
    rows: list[Row] = []
    extend_rows(rows, token_ids)
    return token_of(rows[-1])


@dataclass
class KnownSequence:
    """next_token: what the head gave last, behind its position; None before."""

    rows: list[Row] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    next_token: tuple[int, int] | None = None

    def rests_on_wrong_guess(self, slice_: SequenceSlice) -> bool:
        if self.next_token is None or not slice_.num_samples:
            return False
        position, token_id = self.next_token
        return slice_.first_position > position or (slice_.first_position == position and slice_.token_ids[0] != token_id)


@dataclass
class Passage:
    """A batch at a boundary. rows: by ring id, None for sequences without rows there. failed: ring ids whose replay has failed. sampled: by
    the head."""

    batch: MicroBatch
    rows: Mapping[int, list[Row] | None]
    failed: frozenset[int] = frozenset()
    sampled: Mapping[int, list[int]] = field(default_factory=dict)

    @classmethod
    def begin(cls, batch: MicroBatch) -> "Passage":
        return cls(batch, {slice_.sequence_id: None for slice_ in batch.slices})

    def result(self) -> MicroBatchResult:
        """Behind the head."""
        results = tuple(map(self._result, self.batch.slices))
        return MicroBatchResult(self.batch.epoch, self.batch.batch_id, results, ())

    def _result(self, slice_: SequenceSlice) -> SequenceResult:
        if slice_.sequence_id in self.failed:
            return SequenceResult(slice_.sequence_id, (), (), replay_failed=True)
        sampled = tuple(TokenScore(token_id, -1.0) for token_id in self.sampled.get(slice_.sequence_id, ()))
        scores = tuple(TokenScore(target, float(-target)) for target in slice_.score_targets)
        assert len(scores) in (0, len(slice_.token_ids))
        return SequenceResult(slice_.sequence_id, sampled, scores)


@dataclass
class ShardContents:
    """Of one life of a shard. cells: by unit. sent_rows: (ring id, boundary) -> rows by position; most_sent_rows: None for any number."""

    name: str
    block_tokens: int
    most_sent_rows: int | None = None
    sequences: dict[int, KnownSequence] = field(default_factory=dict)
    cells: dict[int, Cells] = field(default_factory=dict)
    sent_rows: dict[tuple[int, int], list[Row]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    """Ring ids whose replay has failed, here or before: whatever comes of them later has no cache to stand on."""

    # -- changes of plan

    def keep_only(self, num_blocks: int, alive: Collection[int]) -> None:
        for ring_id in set(self.sequences) - set(alive):
            self.forget(ring_id)
        self.shrink(num_blocks)

    def shrink(self, num_blocks: int) -> None:
        for cells in self.cells.values():
            for block in [block for block in cells if block >= num_blocks]:
                del cells[block]

    def forget(self, ring_id: int) -> None:
        self.sequences.pop(ring_id, None)
        self.broken.discard(ring_id)
        self.sent_rows = {key: rows for key, rows in self.sent_rows.items() if key[0] != ring_id}

    # -- frames

    def compute(self, passage: Passage, units: range, num_units: int) -> Passage:
        """What goes on to the next shard. Raises AssertionError if something is not where it was believed to be."""
        for begin in passage.batch.begins:
            self._begin(begin)
        rows: dict[int, list[Row] | None] = {}
        sampled: dict[int, list[int]] = {}
        failed = set(passage.failed)
        for slice_ in passage.batch.slices:
            ring_id = slice_.sequence_id
            if units.stop == num_units and self.sequences[ring_id].rests_on_wrong_guess(slice_):
                self._extend(slice_)
                rows[ring_id] = None
                continue
            rows[ring_id] = self._compute_slice(slice_, passage.rows[ring_id], units, num_units, failed)
            if units.stop == num_units and slice_.num_samples and ring_id not in failed:
                sampled[ring_id] = self._sample(slice_, rows[ring_id])
        for ring_id in passage.batch.ends:
            self.forget(ring_id)
        return Passage(passage.batch, rows, frozenset(failed), sampled)

    def _sample(self, slice_: SequenceSlice, rows: list[Row] | None) -> list[int]:
        """For as long as guesses are right."""
        assert rows, f"a token of sequence {slice_.sequence_id} was asked for, and no rows came"
        first = len(rows) - slice_.num_samples
        sampled: list[int] = []
        for row, guess in zip(rows[first:], slice_.token_ids[first:], strict=True):
            if sampled and sampled[-1] != guess:
                break
            sampled.append(token_of(row))
        self.sequences[slice_.sequence_id].next_token = (slice_.first_position + first + len(sampled), sampled[-1])
        return sampled

    def _begin(self, begin: SequenceBegin) -> None:
        known = self.sequences[begin.sequence_id] = KnownSequence([], list(begin.block_ids))
        extend_rows(known.rows, begin.token_ids)

    def _compute_slice(
        self, slice_: SequenceSlice, rows: list[Row] | None, units: range, num_units: int, failed: set[int]
    ) -> list[Row] | None:
        sequence = self._extend(slice_)
        first, end = (slice_.replay.first_unit, slice_.replay.end_unit) if slice_.replay else (0, num_units)
        starts_here = slice_.replay is not None and slice_.replay.replay_at == self.name
        if slice_.sequence_id in failed or slice_.sequence_id in self.broken:
            return self._give_up(slice_, failed)
        if starts_here:
            assert units.start <= first <= units.stop
            rows = self.sent_rows.get((slice_.sequence_id, first), [])[slice_.first_position : slice_.end_position]
            if len(rows) < len(slice_.token_ids):
                return self._give_up(slice_, failed)
        elif first == 0 and units.start == 0:
            rows = sequence.rows[slice_.first_position : slice_.end_position]
        if (units.stop <= first and not starts_here) or units.start >= end:
            return None
        assert rows is not None, f"{self.name} got no rows of sequence {slice_.sequence_id}"
        if rows[-1] == GARBAGE:
            self.broken.add(slice_.sequence_id)
            return rows
        self._pass_units(range(max(units.start, first), min(units.stop, end)), sequence, slice_, rows, num_units)
        if end >= units.stop and units.stop < num_units:
            self._keep(slice_, units.stop, rows)
        return rows if end > units.stop or units.stop == num_units else None

    def _extend(self, slice_: SequenceSlice) -> KnownSequence:
        """Take over its tokens and blocks, as every shard does, whether or not it computes the slice."""
        assert slice_.sequence_id in self.sequences, f"{self.name} was not told of sequence {slice_.sequence_id}"
        sequence = self.sequences[slice_.sequence_id]
        assert slice_.first_position <= len(sequence.rows), "rows may be replaced, never left out"
        del sequence.rows[slice_.first_position :]
        extend_rows(sequence.rows, slice_.token_ids)
        if slice_.new_block_ids:
            del sequence.block_ids[-(-slice_.first_position // self.block_tokens) :]
            sequence.block_ids.extend(slice_.new_block_ids)
        assert len(sequence.block_ids) * self.block_tokens >= slice_.end_position
        return sequence

    def _give_up(self, slice_: SequenceSlice, failed: set[int]) -> list[Row] | None:
        self.broken.add(slice_.sequence_id)
        if slice_.replay is not None:
            failed.add(slice_.sequence_id)
            return None
        return [GARBAGE] * len(slice_.token_ids)

    def _pass_units(self, units: range, sequence: KnownSequence, slice_: SequenceSlice, rows: list[Row], num_units: int) -> None:
        """Fill the caches of these layers with the rows, and read everything before them."""
        assert rows == sequence.rows[slice_.first_position : slice_.end_position], (
            f"{self.name} got other rows of sequence {slice_.sequence_id}"
        )
        size = self.block_tokens
        past = [(block, sequence.rows[i * size : min(slice_.end_position, (i + 1) * size)]) for i, block in enumerate(sequence.block_ids)]
        for unit in range(max(1, units.start), min(units.stop, num_units - 1)):
            cells = self.cells.setdefault(unit, {})
            for position, row in enumerate(rows, slice_.first_position):
                cells.setdefault(sequence.block_ids[position // size], [None] * size)[position % size] = row
            for block, expected in past:
                if expected and cells.get(block, [])[: len(expected)] != expected:
                    raise AssertionError(f"{self.name} was believed to have unit {unit}, and lacks rows of sequence {slice_.sequence_id}")

    def _keep(self, slice_: SequenceSlice, boundary: int, rows: list[Row]) -> None:
        kept = self.sent_rows.setdefault((slice_.sequence_id, boundary), [])
        if len(kept) < slice_.first_position:
            del self.sent_rows[slice_.sequence_id, boundary]
        else:
            kept[slice_.first_position :] = rows
        if slice_.replay is None:
            others = [key for key in self.sent_rows if key[0] == slice_.sequence_id and key[1] != boundary]
            for key in [key for key in others if len(self.sent_rows[key]) < slice_.first_position]:
                del self.sent_rows[key]
        if self.most_sent_rows is not None:
            self._make_room(self.most_sent_rows)

    def _make_room(self, most: int) -> None:
        """Whole sequences go, oldest first."""
        while sum(len(rows) for rows in self.sent_rows.values()) > most:
            oldest = next(iter(self.sent_rows))[0]
            self.sent_rows = {key: rows for key, rows in self.sent_rows.items() if key[0] != oldest}
