"""Which member is asked for a unit: pure, told what happened and what time it is.

The last member (the coordinator) is asked only when no other one is left. Different units are fetched from different members, as far as
there are enough.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_PAUSES_S = 1.0, 60.0
_PAUSES_OF_LAST_S = 0.2, 3.0
"""After the first failure, and at most."""
_JUDGED_AFTER_S = 3.0
_SLOWEST_BYTES_PER_S = 64 * 1024
_SLOW_SHARE = 1 / 8


@dataclass(slots=True)
class _Sender:
    """lacks: units that it cannot give. bytes_per_s: of its latest transfer, 0 if unknown."""

    name: str
    lacks: set[int] = field(default_factory=set)
    failures: int = 0
    usable_at_s: float = 0.0
    bytes_per_s: float = 0.0


class WeightSenders:
    """names: unique, best first; the last one is the last resort."""

    def __init__(self, names: Sequence[str]) -> None:
        self._senders = {name: _Sender(name) for name in names}
        self._order = {name: position for position, name in enumerate(names)}
        self._last = names[-1] if names else ""
        self._busy: Counter[str] = Counter()

    def choose(self, unit_index: int, now_s: float) -> str | None:
        """Who is asked now; None if nobody can be: see `pause_s`. The least busy one; units are spread over equal ones."""
        usable = [sender.name for sender in self._having(unit_index) if sender.usable_at_s <= now_s]
        others = [name for name in usable if name != self._last]
        count = max(len(self._order), 1)
        return min(others or usable, key=lambda name: (self._busy[name], (self._order[name] - unit_index) % count), default=None)

    def pause_s(self, unit_index: int, now_s: float) -> float | None:
        """How long until somebody can be asked again; None if nobody has the unit."""
        times_s = [sender.usable_at_s for sender in self._having(unit_index)]
        return max(min(times_s) - now_s, 0.0) if times_s else None

    def begin(self, name: str) -> None:
        self._busy[name] += 1

    def end(self, name: str) -> None:
        self._busy[name] -= 1

    def note_lack(self, name: str, unit_index: int) -> None:
        """It has no such unit."""
        self._senders[name].lacks.add(unit_index)

    def note_wrong(self, names: Collection[str], unit_index: int) -> None:
        """What these sent of the unit was wrong. The last resort is asked again: it is the network that may be to blame."""
        for name in names:
            if name != self._last:
                self.note_lack(name, unit_index)

    def note_failure(self, name: str, now_s: float) -> None:
        sender = self._senders[name]
        first_s, longest_s = _PAUSES_OF_LAST_S if name == self._last else _PAUSES_S
        sender.usable_at_s = now_s + min(first_s * 2**sender.failures, longest_s)
        sender.failures = min(sender.failures + 1, 10)

    def note_progress(self, name: str, received_bytes: int, elapsed_s: float) -> None:
        sender = self._senders[name]
        sender.failures = 0
        if elapsed_s > 0:
            sender.bytes_per_s = received_bytes / elapsed_s

    def is_too_slow(self, name: str, unit_index: int, received_bytes: int, elapsed_s: float, now_s: float) -> bool:
        """Whether the transfer should go on with another member: one that can be asked now."""
        others = [sender for sender in self._having(unit_index) if sender.name != name and sender.usable_at_s <= now_s]
        if elapsed_s < _JUDGED_AFTER_S or not others:
            return False
        expected_bytes_per_s = max(_SLOWEST_BYTES_PER_S, _SLOW_SHARE * max(sender.bytes_per_s for sender in others))
        return received_bytes / elapsed_s < expected_bytes_per_s

    def _having(self, unit_index: int) -> list[_Sender]:
        return [sender for sender in self._senders.values() if unit_index not in sender.lacks]
