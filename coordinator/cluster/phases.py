"""The phases of the cluster, and which may follow which."""

from enum import Enum


class Phase(Enum):
    """
    WAITING     no plan is possible, or the first one settles           plan found -> LOADING
    LOADING     no ring is open; a plan is prepared                     all loaded -> ACTIVATING
    SERVING     answers come                                            better plan -> PREPARING
    PREPARING   answers come; another plan is prepared beside           all loaded -> DRAINING, no use any more -> SERVING
    DRAINING    the ring of the old plan empties                        drained -> ACTIVATING, or LOADING for what did not fit beside
    ACTIVATING  shards build the stages of the new plan                 all done -> OPENING
    OPENING     the coordinator dials the first shard                   opened -> SERVING
    RETRYING    the ring is closed; a pause, then a plan of a new epoch

    A lost shard of the plan leads from every phase to LOADING, or to WAITING if the rest does not suffice. The plan that is being
    prepared is the candidate: there is one in LOADING, PREPARING and DRAINING. With ACTIVATING it becomes the active plan.
    """

    WAITING = "waiting"
    LOADING = "loading"
    SERVING = "serving"
    PREPARING = "preparing"
    DRAINING = "draining"
    ACTIVATING = "activating"
    OPENING = "opening"
    RETRYING = "retrying"


ANY_PHASE = frozenset(Phase)
WITH_CANDIDATE = frozenset({Phase.LOADING, Phase.PREPARING, Phase.DRAINING})
ANSWERING = frozenset({Phase.SERVING, Phase.PREPARING})
RING_OPEN = ANSWERING | {Phase.DRAINING}
RING_IN_USE = RING_OPEN | {Phase.OPENING}
"""Phases with a ring that a CloseRing would end."""
STAGES_IN_USE = RING_IN_USE | {Phase.ACTIVATING}

SUCCESSORS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.LOADING}),
    Phase.LOADING: frozenset({Phase.WAITING, Phase.ACTIVATING, Phase.RETRYING}),
    Phase.SERVING: frozenset({Phase.WAITING, Phase.PREPARING, Phase.RETRYING}),
    Phase.PREPARING: frozenset({Phase.WAITING, Phase.SERVING, Phase.DRAINING, Phase.RETRYING}),
    Phase.DRAINING: frozenset({Phase.WAITING, Phase.LOADING, Phase.ACTIVATING, Phase.RETRYING}),
    Phase.ACTIVATING: frozenset({Phase.WAITING, Phase.OPENING, Phase.RETRYING}),
    Phase.OPENING: frozenset({Phase.WAITING, Phase.SERVING, Phase.RETRYING}),
    Phase.RETRYING: frozenset({Phase.WAITING, Phase.LOADING}),
}
"""A phase may also be entered again."""
