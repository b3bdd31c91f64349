"""What came of many questions."""

from collections import Counter
from dataclasses import dataclass, field

from tests.endurance.questions import Receipt


@dataclass(slots=True)
class Tally:
    """failures: how often for each reason. first_s, gaps_s: of answers that were finished. refused: with 429; left: by the client."""

    finished: int = 0
    different: int = 0
    left: int = 0
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def take(self, receipt: Receipt, whole: Receipt) -> None:
        """whole: what a client alone got. Of an answer that failed, what came must be its beginning."""
        self.different += receipt.answer != whole.answer if not receipt.failure else not receipt.begins(whole)
        if receipt.failure:
            self.failures[receipt.failure] += 1
            return
        self.finished += 1
        self.first_s.append(receipt.first_s)
        self.gaps_s += receipt.gaps_s

    @property
    def is_well(self) -> bool:
        return not self.different and not self.failures
