"""Whether the cluster answers, or will soon: the one place where that is decided, for all who ask or are shown it."""

from dairllm.coordinator.cluster.books.books import Books
from dairllm.coordinator.cluster.phases import RING_OPEN, Phase

REOPENING_LIMIT_S = 5.0
"""How long after a ring was closed a failure on the way to the next one is nothing to tell, and new requests wait even though no plan can
be made: shards that only lost their leases, such as when this process was frozen, are back within moments."""


def why_no_answers(books: Books, now_s: float) -> str:
    """'' while a ring is open, through which a frame has gone, or while a switch or a recovery goes on that has not failed yet and has not
    taken longer than answers wait for it. now_s: by the machine's own time."""
    state, closed_s = books.state, books.pause.since_s(now_s)
    if state.phase in RING_OPEN:
        return ""
    patience_s = min(REOPENING_LIMIT_S, books.config.recovery_limit_s) if state.trouble else books.config.recovery_limit_s
    if closed_s is not None and closed_s < patience_s and state.phase is not Phase.WAITING:
        return ""
    return state.explanation
