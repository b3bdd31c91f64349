"""What this shard has sent: the encoded rows of each sequence at a boundary, from position 0 on, so that they can be sent again.

When the machine behind is lost, the rows that went into it are what its successor needs to rebuild the lost KV cache. Records outlive
plans. A record without a beginning is useless, so a sequence is recorded from its first row or not at all.
"""

from collections.abc import Collection

from dairllm.kernels_pyx import encoded_row_bytes
from dairllm.mesh.ring.frames import SequenceId


class _Record:
    __slots__ = ("data", "encoding", "row_bytes")

    def __init__(self, encoding: str, row_bytes: int) -> None:
        self.encoding = encoding
        self.row_bytes = row_bytes
        self.data = bytearray()

    @property
    def num_rows(self) -> int:
        return len(self.data) // self.row_bytes


class RecordStore:
    """width: numbers in a row. At most budget_bytes are kept: whole sequences are dropped, the one that was first recorded first."""

    def __init__(self, width: int, budget_bytes: int) -> None:
        self._width = width
        self._budget_bytes = budget_bytes
        self._sequences: dict[SequenceId, dict[int, _Record]] = {}
        self.size_bytes = 0

    def put(self, sequence_id: SequenceId, boundary: int, first_position: int, encoding: str, rows: bytes) -> None:
        """Rows from this position on, which replace what is recorded there and behind.

        Rows behind the record's end would leave a gap: then nothing is recorded, and what there was is dropped.
        """
        record = self._sequences.get(sequence_id, {}).get(boundary)
        if record is None or record.encoding != encoding:
            self._drop(sequence_id, boundary)
            if first_position:
                return
            record = _Record(encoding, encoded_row_bytes(encoding, self._width))
            self._sequences.setdefault(sequence_id, {})[boundary] = record
        offset = first_position * record.row_bytes
        if offset > len(record.data):
            self._drop(sequence_id, boundary)
            return
        self.size_bytes += offset + len(rows) - len(record.data)
        record.data[offset:] = rows
        if self.size_bytes > self._budget_bytes:
            self._make_room()

    def get(self, sequence_id: SequenceId, boundary: int, positions: range, encoding: str) -> bytes | None:
        """The rows at these positions; None unless all of them are recorded in this encoding."""
        record = self._sequences.get(sequence_id, {}).get(boundary)
        if record is None or record.encoding != encoding or positions.stop > record.num_rows:
            return None
        return bytes(record.data[positions.start * record.row_bytes : positions.stop * record.row_bytes])

    def drop_behind(self, sequence_id: SequenceId, boundary: int, position: int) -> None:
        """Drop the sequence's records at other boundaries if they end before this position: rows were sent that they lack for ever."""
        records = self._sequences.get(sequence_id, {})
        if len(records) > 1:
            for other in [other for other, record in records.items() if other != boundary and record.num_rows < position]:
                self._drop(sequence_id, other)

    def forget(self, sequence_id: SequenceId) -> None:
        self.size_bytes -= sum(len(record.data) for record in self._sequences.pop(sequence_id, {}).values())

    def keep_only(self, alive: Collection[int]) -> None:
        for sequence_id in [sequence_id for sequence_id in self._sequences if sequence_id not in alive]:
            self.forget(sequence_id)

    def limit(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._make_room()

    def _make_room(self) -> None:
        while self.size_bytes > self._budget_bytes:
            self.forget(next(iter(self._sequences)))

    def _drop(self, sequence_id: SequenceId, boundary: int) -> None:
        records = self._sequences.get(sequence_id, {})
        if boundary in records:
            self.size_bytes -= len(records.pop(boundary).data)
            if not records:
                del self._sequences[sequence_id]
