"""What must be computed again when the plan changes under running sequences. Pure.

A sequence's KV cache lies, layer by layer, with the shards that computed it. When layers move, their cache is handed over by
the old owner, or it is rebuilt: rows that entered those layers before are sent through them once more. Such rows exist where
shards sent them on: every shard keeps what it sends over its outgoing boundary, and at boundary 0 there are always the token ids.
A row's bits do not depend on when it is computed (docs/kernels.md, 'The same bits everywhere'), so the rebuilt cache is the lost one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dairllm.coordinator.cluster.identities import Holder
from dairllm.mesh.ring.frames import Replay


class StagePlace(NamedTuple):
    holder: Holder
    units: range


Placement = tuple[StagePlace, ...]
"""All stages in ring order; together they hold every unit once."""


SentRowsHolders = Mapping[int, Holder]
"""Of one sequence: boundary -> the shard that has kept every row it sent there."""


def holders_under(placement: Placement) -> SentRowsHolders:
    """Of a sequence whose every row was computed under this placement."""
    return {stage.units.stop: stage.holder for stage in placement[:-1]}


def holders_after(holders: SentRowsHolders, placement: Placement, replay: Replay | None) -> SentRowsHolders:
    """Of a sequence that goes on under the placement, after the replay.

    What a shard has sent over a boundary stays complete while it goes on sending there; where a replay passes a boundary, it is kept anew.
    """
    now = holders_under(placement)
    kept = {boundary: holder for boundary, holder in now.items() if holders.get(boundary) == holder}
    if replay is not None:
        kept |= {boundary: holder for boundary, holder in now.items() if replay.first_unit < boundary <= replay.end_unit}
    return kept


def plan_replay(holders: SentRowsHolders, placement: Placement, present: frozenset[int]) -> Replay | None:
    """The cheapest replay that leaves every layer's cache with its owner under the placement; None if it is there already.

    present: layer units whose owner has the cache of all that was computed: it kept it, or has taken it over from the owner before.
    """
    missing = _missing_layers(placement, present)
    if not missing:
        return None
    usable = [boundary for boundary, holder in holders.items() if boundary <= missing[0] and _can_send(holder, boundary, placement)]
    boundary = max(usable, default=0)
    return Replay(boundary, missing[-1] + 1, holders[boundary].name if boundary else "")


def lacks_layers(placement: Placement, present: frozenset[int]) -> bool:
    """Whether the owner of any layer has no cache of what was computed."""
    return bool(_missing_layers(placement, present))


def _missing_layers(placement: Placement, present: frozenset[int]) -> list[int]:
    return [unit for unit in range(1, placement[-1].units.stop - 1) if unit not in present]


def _can_send(holder: Holder, boundary: int, placement: Placement) -> bool:
    """Rows can enter the ring at the shard that has sent them before if they are needed there or right behind it."""
    return any(stage.holder == holder and stage.units.start <= boundary <= stage.units.stop for stage in placement)
