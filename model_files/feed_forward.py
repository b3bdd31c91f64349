"""What a layer does with each row by itself: one gated block, or a few of many experts that a router chooses.

All of them compute down(activation(gate(x)) * up(x)).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dairllm.model_files.bounds import check_fields, one_of, within
from dairllm.model_files.errors import CorruptModelFile

MAX_INTERMEDIATE = 1 << 20
MAX_EXPERTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """kind: of the gate. silu_clamped: silu with a steepness of `alpha`, gate and up bounded by `limit`, up raised by one."""

    kind: str = one_of("silu", "gelu_tanh", "silu_clamped")
    alpha: float = within(1e-3, 1e3, default=1.0)
    limit: float | None = within(1e-3, 1e6, default=None)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind != "silu_clamped" and (self.alpha, self.limit) != (1.0, None):
            raise CorruptModelFile(f"activation {self.kind} has an alpha of {self.alpha:g} and the limit {self.limit}; expected neither")

    @property
    def features(self) -> Iterator[str]:
        yield f"activation:{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeedForward:
    intermediate_size: int = within(1, MAX_INTERMEDIATE)
    activation: Activation
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def features(self) -> Iterator[str]:
        yield "feed_forward:dense"
        yield from self.activation.features
        if self.bias:
            yield "feed_forward:bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How experts are chosen and weighed.

    kind: scores are a softmax over all experts, a sigmoid of each, or a softmax over the chosen ones. normalised: the weights of the chosen
    ones are made to sum to one; then they are multiplied by `scale`. selection_bias: added to the scores to choose by, not to weigh by.
    num_groups, num_groups_used: only experts of the best groups may be chosen; a group is as good as the sum of its best `group_best`
    scores.
    """

    kind: str = one_of("softmax", "sigmoid", "softmax_of_chosen")
    normalised: bool = False
    scale: float = within(1e-3, 1e3, default=1.0)
    bias: bool = False
    selection_bias: bool = False
    num_groups: int = within(1, MAX_EXPERTS, default=1)
    num_groups_used: int = within(1, MAX_EXPERTS, default=1)
    group_best: int = within(1, MAX_EXPERTS, default=2)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_groups_used > self.num_groups:
            raise CorruptModelFile(f"num_groups_used is {self.num_groups_used}; expected at most num_groups, {self.num_groups}")

    @property
    def features(self) -> Iterator[str]:
        yield f"router:{self.kind}"
        if self.num_groups > 1:
            yield "router:groups"
        if self.bias or self.selection_bias:
            yield "router:bias"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertFeedForward:
    """intermediate_size: of one expert. shared_intermediate_size: of the expert that every row passes, 0 if there is none; shared_gate: it
    is weighed by a sigmoid of the row. bias: experts have biases."""

    num_experts: int = within(1, MAX_EXPERTS)
    num_experts_used: int = within(1, MAX_EXPERTS)
    intermediate_size: int = within(1, MAX_INTERMEDIATE)
    activation: Activation
    router: Router
    shared_intermediate_size: int = within(0, MAX_INTERMEDIATE, default=0)
    shared_gate: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_experts_used > self.num_experts:
            raise CorruptModelFile(f"num_experts_used is {self.num_experts_used}; expected at most num_experts, {self.num_experts}")
        if self.num_experts % self.router.num_groups:
            raise CorruptModelFile(f"num_experts is {self.num_experts}; expected a multiple of num_groups, {self.router.num_groups}")
        in_groups = self.num_experts // self.router.num_groups * self.router.num_groups_used
        if self.num_experts_used > in_groups:
            raise CorruptModelFile(f"num_experts_used is {self.num_experts_used}; expected at most the {in_groups} of the groups used")
        if self.router.num_groups > 1 and self.router.group_best > self.num_experts // self.router.num_groups:
            raise CorruptModelFile(f"group_best is {self.router.group_best}; expected at most the experts of one group")
        if self.shared_gate and not self.shared_intermediate_size:
            raise CorruptModelFile("shared_gate is True; expected False where there is no shared expert")

    @property
    def features(self) -> Iterator[str]:
        yield "feed_forward:experts"
        yield from self.activation.features
        yield from self.router.features
        if self.shared_intermediate_size:
            yield "feed_forward:shared_expert"
        if self.bias:
            yield "feed_forward:bias"

    def experts_read(self, rows: int) -> float:
        """How many different experts a step of so many rows reads, if each is as likely as the others."""
        if rows == 1:
            return self.num_experts_used
        return self.num_experts * (1 - (1 - self.num_experts_used / self.num_experts) ** rows)


FeedForward = DenseFeedForward | ExpertFeedForward
