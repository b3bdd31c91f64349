"""How a shard gets into the cluster and back into it: pure, the shell is `joiner`.

    Started, PauseOver ──► Seek ──Found──► Join ──┬─ JoinFailed ──► Pause, longer each time: nobody answered
                                                   ├─ JoinRefused ─► Pause, long, and longer each time: it will likely be refused again
                                                   └─ LeaseLost ───► Pause, short: it was a member until now

Every event has one action as its answer, and the outcome of the action is the next event. It goes on for ever: a cluster may come back
after days, and the weights in memory are worth waiting for.
"""

from dataclasses import dataclass

from dairllm.mesh.errors import DairllmError, NameTaken

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 3.0
NAME_TAKEN_PAUSE_S = 2.0
REFUSED_PAUSE_S = 10.0
LONGEST_REFUSED_PAUSE_S = 60.0
JITTER = 0.5


@dataclass(frozen=True, slots=True)
class Started:
    pass


@dataclass(frozen=True, slots=True)
class Found:
    """A coordinator may be at these addresses."""

    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinFailed:
    """jitter: a random number in [0, 1), so that many shards do not come back in the same instant."""

    error: DairllmError
    jitter: float


@dataclass(frozen=True, slots=True)
class JoinRefused:
    error: DairllmError
    jitter: float


@dataclass(frozen=True, slots=True)
class LeaseLost:
    error: DairllmError
    jitter: float


@dataclass(frozen=True, slots=True)
class PauseOver:
    pass


@dataclass(frozen=True, slots=True)
class Seek:
    pass


@dataclass(frozen=True, slots=True)
class Join:
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """tell: one sentence for the log, where there is news."""

    delay_s: float
    tell: str | None


Event = Started | Found | JoinFailed | JoinRefused | LeaseLost | PauseOver
Action = Seek | Join | Pause


class Joining:
    def __init__(self) -> None:
        self._failures = 0
        self._refusals = 0
        self._told = ""

    def handle(self, event: Event) -> Action:
        match event:
            case Started() | PauseOver():
                return Seek()
            case Found(addresses):
                return Join(addresses)
            case JoinFailed(error, jitter):
                self._failures += 1
                self._refusals = 0
                return Pause(
                    _jittered(_backoff_s(self._failures, FIRST_PAUSE_S, LONGEST_PAUSE_S), jitter),
                    self._news(f"can't join the cluster: {error}"),
                )
            case JoinRefused(error, jitter):
                self._failures = 0
                self._refusals += 1
                first_s = NAME_TAKEN_PAUSE_S if isinstance(error, NameTaken) else REFUSED_PAUSE_S
                again = f"it is asked again after {first_s:g} s, later every {LONGEST_REFUSED_PAUSE_S:g} s"
                pause_s = _backoff_s(self._refusals, first_s, LONGEST_REFUSED_PAUSE_S)
                return Pause(_jittered(pause_s, jitter), self._news(f"the coordinator refuses this shard: {error}; {again}"))
            case LeaseLost(error, jitter):
                self._failures = self._refusals = 0
                self._told = ""
                return Pause(_jittered(FIRST_PAUSE_S, jitter), f"the lease has ended and is asked for again: {error}")

    def _news(self, sentence: str) -> str | None:
        if sentence == self._told:
            return None
        self._told = sentence
        return sentence


def _backoff_s(failures: int, first_s: float, longest_s: float) -> float:
    return float(min(longest_s, first_s * 2 ** min(failures - 1, 16)))


def _jittered(pause_s: float, jitter: float) -> float:
    """Between half of it and all of it."""
    return pause_s * (1.0 - JITTER * jitter)
