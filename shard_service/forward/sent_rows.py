"""The encoded rows that this shard has sent: of each sequence at a boundary, from position 0 on, so that they can be sent again.

When the machine behind is lost, the rows that went into it are what its successor needs to rebuild the lost KV cache. Sent rows outlive
plans: by the arithmetic of the cluster they are the same under every plan. Without their beginning they are useless, so a sequence's rows
are kept from its first one or not at all.
"""

from collections.abc import Collection

from dairllm.mesh.ring.frames import RingId


class SentRows:
    """row_bytes: of one encoded row. At most budget_bytes are kept: whole sequences are dropped, the one that was first kept first."""

    def __init__(self, row_bytes: int, budget_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._budget_bytes = budget_bytes
        self._sequences: dict[RingId, dict[int, bytearray]] = {}
        self.size_bytes = 0

    def put(self, sequence_id: RingId, boundary: int, first_position: int, rows: bytes) -> None:
        """Rows from this position on, which replace what is kept there and behind.

        Rows behind the end of what is kept would leave a gap: then nothing is kept, and what there was is dropped.
        """
        kept = self._sequences.get(sequence_id, {}).get(boundary)
        if kept is None:
            if first_position:
                return
            kept = self._sequences.setdefault(sequence_id, {})[boundary] = bytearray()
        offset = first_position * self._row_bytes
        if offset > len(kept):
            self._drop(sequence_id, boundary)
            return
        self.size_bytes += offset + len(rows) - len(kept)
        kept[offset:] = rows
        if self.size_bytes > self._budget_bytes:
            self._make_room()

    def get(self, sequence_id: RingId, boundary: int, positions: range) -> bytes | None:
        """The rows at these positions; None unless all of them are kept."""
        kept = self._sequences.get(sequence_id, {}).get(boundary, b"")
        begin, end = positions.start * self._row_bytes, positions.stop * self._row_bytes
        return bytes(kept[begin:end]) if end <= len(kept) else None

    def drop_behind(self, sequence_id: RingId, boundary: int, position: int) -> None:
        """Drop the sequence's rows at other boundaries if they end before this position: rows were sent that they lack for ever."""
        by_boundary = self._sequences.get(sequence_id, {})
        if len(by_boundary) > 1:
            end = position * self._row_bytes
            for other in [other for other, kept in by_boundary.items() if other != boundary and len(kept) < end]:
                self._drop(sequence_id, other)

    def forget(self, sequence_id: RingId) -> None:
        self.size_bytes -= sum(len(kept) for kept in self._sequences.pop(sequence_id, {}).values())

    def keep_only(self, alive: Collection[int]) -> None:
        for sequence_id in [sequence_id for sequence_id in self._sequences if sequence_id not in alive]:
            self.forget(sequence_id)

    def limit(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._make_room()

    def _make_room(self) -> None:
        while self.size_bytes > self._budget_bytes:
            self.forget(next(iter(self._sequences)))

    def _drop(self, sequence_id: RingId, boundary: int) -> None:
        by_boundary = self._sequences[sequence_id]
        self.size_bytes -= len(by_boundary.pop(boundary))
        if not by_boundary:
            del self._sequences[sequence_id]
