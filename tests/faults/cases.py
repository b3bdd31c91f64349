"""What can go wrong, where and when, as a table, and what a client may see of it. Pure."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product


class Fault(StrEnum):
    """FROZEN, HUNG, LINK_DOWN, BAD_LINK: for longer than a lease lasts, then over. HUNG: the threads that compute and load stand still, the
    rest of the process lives. BAD_LINK: 200 ms of delay, 20 % of packets lost, both ways.
    FULL_DISK: nothing can be written to the cache folder any more, and the shard starts again and must get its weights by network."""

    KILLED = "kill -9"
    FROZEN = "SIGSTOP, SIGCONT"
    HUNG = "compute thread stopped"
    TERMINATED = "SIGTERM"
    LINK_DOWN = "link down"
    BAD_LINK = "200 ms, 20 % loss"
    FULL_DISK = "full disk"


class Place(StrEnum):
    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"
    NEIGHBOURS = "two neighbours"
    ALL_BUT_ONE = "all but one"
    COORDINATOR = "coordinator"


class Moment(StrEnum):
    """LOADING: all shards were lost while answers ran, and what has come back loads. MOVE: a shard of the ring hands over its layers."""

    IDLE = "idle"
    LOADING = "loading"
    PREFILL = "prefill"
    DECODE = "decode"
    MOVE = "move"


class Outcome(StrEnum):
    """What each client may see. All but the first: of the undisturbed answer's tokens the first ones, then this; and a cluster that serves
    again when the coordinator does."""

    SAME_ANSWER = "same answers"
    ERROR_EVENT = "same tokens, then an error event"
    CONNECTION_LOST = "same tokens, then the connection ends"


@dataclass(frozen=True, slots=True)
class Case:
    fault: Fault
    place: Place
    moment: Moment

    def __str__(self) -> str:
        return f"{self.fault}-{self.place}-{self.moment}"

    @property
    def expected(self) -> Outcome:
        """Only a coordinator that ends may cost an answer: it holds the connections of the clients."""
        if self.place is not Place.COORDINATOR or self.moment is Moment.IDLE:
            return Outcome.SAME_ANSWER
        ends = {Fault.KILLED: Outcome.CONNECTION_LOST, Fault.TERMINATED: Outcome.ERROR_EVENT}
        return ends.get(self.fault, Outcome.SAME_ANSWER)


def _can_be(fault: Fault, place: Place) -> bool:
    """A coordinator computes nothing."""
    return fault is not Fault.HUNG or place is not Place.COORDINATOR


ALL_CASES: Sequence[Case] = tuple(Case(*values) for values in product(Fault, Place, Moment) if _can_be(*values[:2]))

_PAIRS: Sequence[Callable[[Case], tuple[str, str]]] = (
    lambda case: (case.fault, case.place),
    lambda case: (case.place, case.moment),
    lambda case: (case.fault, case.moment),
)


def pairs_of(case: Case) -> frozenset[tuple[int, str, str]]:
    """Every two of its three values, with the number of the two columns."""
    return frozenset((number, *pair(case)) for number, pair in enumerate(_PAIRS))


def pairwise_subset(cases: Iterable[Case]) -> Iterator[Case]:
    """Few of the cases, in which every pair of values that occurs in one of them occurs: always the one with the most new pairs next."""
    left = list(cases)
    missing = set[tuple[int, str, str]]().union(*map(pairs_of, left))
    while missing:
        best = max(left, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        left.remove(best)
        yield best


def targets(place: Place, ring: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Names of the shards that the fault meets. ring: at least three, in their order; others: members that the plan does not use."""
    if place is Place.COORDINATOR:
        return ("coordinator",)
    everyone = (*ring, *others)
    return {
        Place.FIRST: everyone[:1],
        Place.MIDDLE: (ring[len(ring) // 2],),
        Place.LAST: (ring[-1],),
        Place.NEIGHBOURS: (ring[-2], ring[-1]),
        Place.ALL_BUT_ONE: everyone[:-1],
    }[place]


def mover(hit: Sequence[str], ring: Sequence[str]) -> str:
    """The shard of the ring that hands over its layers when the fault comes: one that the fault spares, if there is any."""
    return next((name for name in ring if name not in hit), ring[0])
