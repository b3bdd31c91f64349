"""How a row is brought to one scale."""

from collections.abc import Iterator
from dataclasses import dataclass

from dairllm.model_files.bounds import check_fields, one_of, within


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """kind: by the root of the mean square, or by mean and variance. offset_by_one: what is stored is the factor less one. weighted: it is
    followed by a factor for each number; without one nothing is stored."""

    kind: str = one_of("rms", "layer")
    eps: float = within(1e-12, 1.0)
    offset_by_one: bool = False
    weighted: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def features(self) -> Iterator[str]:
        yield f"norm:{self.kind}"
        if self.offset_by_one:
            yield "norm:offset_by_one"
        if not self.weighted:
            yield "norm:unweighted"
