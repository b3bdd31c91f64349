"""What the process has done since it began."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Only the event loop writes it."""

    frames: int = 0
    rows: int = 0
    compute_us: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
