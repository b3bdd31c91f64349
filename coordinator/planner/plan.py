"""What the planner answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Stage:
    """weights_bytes: in memory. predicted_step_s: without reading. streamed: units that are read anew for every step. streamed_bytes: that
    such a step of one row reads of weights. expert_places: so many experts are in memory, 0: all; experts_touched: so many a row
    chooses; missed_share: of these, how many have to be read if all are equally likely."""

    shard: str
    units: range
    weights_bytes: int
    kv_cache_bytes: int
    predicted_step_s: float
    streamed: tuple[int, ...] = ()
    streamed_bytes: int = 0
    expert_places: int = 0
    experts_touched: int = 0
    missed_share: float = 0.0

    @property
    def is_below_cliff(self) -> bool:
        """Of the experts that a row chooses, not all have room at once."""
        return self.expert_places < self.experts_touched


class InMemory(NamedTuple):
    """The same stages with so much more memory: nothing would be streamed."""

    missing_bytes: int
    step_s: float


class LeftOut(NamedTuple):
    """A shard without a part in the plan. The reason is a predicate for people: 'does not know …'."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """stages: in ring order. fastest_step_s: the least T found, which predicted_step_s exceeds by at most BALANCE_SLACK, or by
    what hysteresis allows where units stayed. in_memory: None where nothing is streamed."""

    stages: tuple[Stage, ...]
    num_kv_blocks: int
    predicted_step_s: float
    fastest_step_s: float
    left_out: tuple[LeftOut, ...] = ()
    in_memory: InMemory | None = None
    placement: Mapping[str, range] = field(init=False, repr=False, compare=False)
    """Units by shard, in ring order."""

    def __post_init__(self) -> None:
        placement = MappingProxyType({stage.shard: stage.units for stage in self.stages})
        object.__setattr__(self, "placement", placement)

    @classmethod
    def of_placement(cls, placement: Mapping[str, range]) -> "Plan":
        """What lies where, without numbers: a previous plan of which nothing else is known."""
        return cls(tuple(Stage(shard, units, 0, 0, 0.0) for shard, units in placement.items()), 0, 0.0, 0.0)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that all stages read anew for every step."""
        return sum(stage.streamed_bytes for stage in self.stages)

    @property
    def predicted_decode_tok_s(self) -> float:
        return 1 / self.predicted_step_s if self.predicted_step_s > 0 else 0.0

    def same_work_as(self, other: "Plan") -> bool:
        """Whether every shard has the same to do, at the same place, with the same cache."""
        own, others = ([(stage.shard, stage.units, stage.streamed, stage.expert_places) for stage in plan.stages] for plan in (self, other))
        return own == others and self.num_kv_blocks == other.num_kv_blocks


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan is possible. missing_bytes: 0 if memory is not what is missing."""

    reason: str
    missing_bytes: int = 0
    left_out: tuple[LeftOut, ...] = ()
