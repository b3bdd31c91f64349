"""What the machine waits for: when a plan is made, when a better one is looked for, how long the ring has been closed, what failed."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class PlanTimer:
    """When to plan again.

    is_urgent: no ring is open, and one is needed with a new epoch. held_from_s: when the first shard joined that held a part of the model.
    """

    due_s: float | None = None
    is_urgent: bool = False
    held_from_s: float | None = None

    def is_due(self, now_s: float) -> bool:
        return self.due_s is not None and now_s >= self.due_s

    def schedule(self, at_s: float) -> None:
        """At the latest. It cuts no pause short that something urgent has set."""
        if not self.is_urgent:
            self.due_s = at_s if self.due_s is None else min(at_s, self.due_s)

    def demand(self, at_s: float) -> None:
        """Then, and with a new epoch, whatever the planner says."""
        self.due_s, self.is_urgent = at_s, True

    def settle_held(self, settled_s: float, now_s: float, patience_s: float, is_covered: bool) -> None:
        """Shards bring parts of the model with them: unless they are all there is, those who have the rest get some time to join, too."""
        self.held_from_s = now_s if self.held_from_s is None else self.held_from_s
        self.due_s = settled_s if is_covered else max(settled_s, self.held_from_s + patience_s)

    def stop(self) -> None:
        self.due_s, self.is_urgent = None, False

    def begin_anew(self) -> None:
        """With another model."""
        self.stop()
        self.held_from_s = None


@dataclass(slots=True)
class BetterPlan:
    """A plan only because it is faster, which nobody has joined, left or asked for.

    What is measured is never quite what it was, and a switch costs. So a better plan has to be found several times in a row, and each
    switch makes the next one harder: it has to wait longer and to gain more, until the one before has been forgotten. What follows a plan
    that was made for another reason is the end of that change, and has to do nothing of that.

    may_exist: than the one that serves since served_from_s. num_found: how often in a row one was found. is_free: the plan that serves was
    not made for speed. begun_s: when plans for speed alone were begun that are remembered.
    considered: shards that could have had a part when a plan was made last.
    """

    may_exist: bool = False
    served_from_s: float = 0.0
    not_before_s: float = -math.inf
    num_found: int = 0
    is_free: bool = True
    begun_s: deque[float] = field(default_factory=deque)
    considered: frozenset[str] = frozenset()

    def is_due(self, now_s: float, after_s: float) -> bool:
        """after_s: how long a plan serves before another is looked for."""
        not_before_s = -math.inf if self.is_free else self.not_before_s
        return self.may_exist and now_s >= max(not_before_s, self.served_from_s + after_s)

    def expect(self) -> None:
        """Something is slower or faster than was planned with."""
        self.may_exist = True

    def note_serving(self, now_s: float) -> None:
        """What was urgent may have a better successor."""
        self.may_exist, self.served_from_s, self.num_found = True, now_s, 0

    def note_looked(self) -> None:
        """For another reason than speed."""
        self.may_exist, self.num_found = False, 0

    def note_considered(self, shards: frozenset[str]) -> frozenset[str]:
        """Those of them that are new."""
        new, self.considered = shards - self.considered, shards
        return new

    def note_change(self) -> None:
        """A plan is prepared for another reason than speed."""
        self.is_free = True

    def note_looked_for(self, is_found: bool, again_s: float, num_needed: int) -> bool:
        """Whether it has been found often enough; if it was found, it is looked for again then."""
        self.num_found = self.num_found + 1 if is_found else 0
        self.may_exist = is_found
        if is_found and self.num_found < num_needed:
            self.not_before_s = max(self.not_before_s, again_s)
        return self.num_found >= num_needed

    def recent(self, now_s: float, memory_s: float) -> int:
        """How many plans for speed alone are remembered."""
        while self.begun_s and now_s - self.begun_s[0] > memory_s:
            self.begun_s.popleft()
        return len(self.begun_s)

    def begin(self, now_s: float, pause_s: float) -> None:
        """One is prepared. pause_s: until the next one may be."""
        self.may_exist, self.num_found, self.is_free = False, 0, False
        self.begun_s.append(now_s)
        self.not_before_s = now_s + pause_s


@dataclass(slots=True)
class RingPause:
    """Answers wait: from when a ring that served was closed until the next one opens. is_switch: closed only to go on with another plan."""

    from_s: float | None = None
    why: str = ""
    is_switch: bool = False

    def since_s(self, now_s: float) -> float | None:
        return None if self.from_s is None else now_s - self.from_s

    def begin(self, why: str, now_s: float, *, is_switch: bool) -> None:
        """If answers wait already, they go on waiting, for another reason."""
        if self.from_s is None:
            self.from_s = now_s
        self.why, self.is_switch = why, is_switch

    def fail(self, why: str) -> None:
        """It was to be a switch, or the end of one; it is a failure now."""
        self.why, self.is_switch = why, False

    def end(self) -> None:
        self.from_s, self.why, self.is_switch = None, "", False


@dataclass(slots=True)
class Backoff:
    """Failures in a row, after each of which a longer pause follows. pause_after_s: how long, after so many of them."""

    pause_after_s: Callable[[int], float]
    failures: int = 0
    not_before_s: float = -math.inf

    @property
    def pause_s(self) -> float:
        """After the last failure."""
        return self.pause_after_s(self.failures)

    def fail(self, now_s: float) -> None:
        self.failures += 1
        self.not_before_s = now_s + self.pause_s

    def succeed(self) -> None:
        self.failures = 0
