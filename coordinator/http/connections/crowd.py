"""All connections of the server, of which there are no more than descriptors allow: shards need some, too."""

from typing import Protocol


class Guest(Protocol):
    def leave(self) -> None: ...


class Crowd:
    """Where a newcomer finds no place, the connection that has had nothing to do for longest makes room, else there is none."""

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._busy: set[Guest] = set()
        self._idle: dict[Guest, None] = {}

    def admit(self, guest: Guest) -> bool:
        """Whether there is a place for it; it is idle then."""
        if len(self._busy) + len(self._idle) >= self._max_connections:
            if not self._idle:
                return False
            longest = next(iter(self._idle))
            self.remove(longest)
            longest.leave()
        self._idle[guest] = None
        return True

    def note(self, guest: Guest, is_busy: bool) -> None:
        """For those who were admitted."""
        if is_busy:
            self._idle.pop(guest, None)
            self._busy.add(guest)
        elif guest in self._busy:
            self._busy.remove(guest)
            self._idle[guest] = None

    def remove(self, guest: Guest) -> None:
        self._idle.pop(guest, None)
        self._busy.discard(guest)
