"""What is said again and again: once, then rarely, with how often it was kept back.

Two records are the same if their logger, level, text and facts are: the same is told again after a pause that doubles. Warnings and errors
are alike also if they differ in numbers only, such as addresses in a traceback's head: of these a handful a minute is told.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0
ALIKE_PER_MINUTE = 5
MAX_REMEMBERED = 512

_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(slots=True)
class _Pace:
    """num_told: since from_s, of num_allowed within pause_s. num_kept_back: since one was told."""

    from_s: float
    pause_s: float
    num_allowed: int
    num_told: int = 1
    num_kept_back: int = 0

    def judge(self, now_s: float, factor: int) -> int | None:
        if now_s - self.from_s >= self.pause_s:
            is_forgotten = now_s - self.from_s >= 2 * LONGEST_PAUSE_S
            self.pause_s = FIRST_PAUSE_S if is_forgotten and factor > 1 else min(factor * self.pause_s, LONGEST_PAUSE_S)
            self.from_s, self.num_told = now_s, 0
        if self.num_told >= self.num_allowed:
            self.num_kept_back += 1
            return None
        num_kept_back, self.num_kept_back = self.num_kept_back, 0
        self.num_told += 1
        return num_kept_back


class Repetitions:
    """Of the records of one log. Not thread-safe."""

    def __init__(self) -> None:
        self._same: OrderedDict[Hashable, _Pace] = OrderedDict()
        self._alike: OrderedDict[Hashable, _Pace] = OrderedDict()

    def judge(self, record: logging.LogRecord, now_s: float) -> int | None:
        """None to keep the record back, else how many like it were kept back since one was told.

        What happens in its course is told each time: a shard that has joined again has joined.
        """
        if record.levelno < logging.WARNING:
            return 0
        text, facts = record.getMessage(), str(getattr(record, "fields", ""))
        same = self._pace(self._same, (record.name, record.levelno, text, facts), _Pace(now_s, FIRST_PAUSE_S, 1, 0))
        num_same = same.judge(now_s, factor=2)
        if num_same is None:
            return None
        alike = self._pace(self._alike, (record.name, record.levelno, _NUMBERS.sub("#", text)), _Pace(now_s, 60.0, ALIKE_PER_MINUTE, 0))
        num_alike = alike.judge(now_s, factor=1)
        return None if num_alike is None else num_same + num_alike

    def _pace(self, known: OrderedDict[Hashable, _Pace], key: Hashable, new: _Pace) -> _Pace:
        pace = known.setdefault(key, new)
        known.move_to_end(key)
        if len(known) > MAX_REMEMBERED:
            known.popitem(last=False)
        return pace
