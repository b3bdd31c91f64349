"""Since when something has been as it is."""

from dataclasses import dataclass


@dataclass(slots=True)
class Watch:
    """from_s, from_beat: the time, and the heartbeat of whoever it is about, when it became so."""

    what: tuple[object, ...] | None = None
    from_s: float = 0.0
    from_beat: int = 0

    def see(self, what: tuple[object, ...] | None, now_s: float, beat: int) -> None:
        if what is None or what != self.what:
            self.what, self.from_s, self.from_beat = what, now_s, beat
