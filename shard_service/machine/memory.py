"""How much memory the shard may use, and what it is used for: an explicit budget, never the page cache's mercy.

The budget covers weights, KV cache, sent rows, the kernels' scratch and the process itself. The coordinator leaves the `reserve` free for
the last three when it plans; what they take is summed up by the same functions there and here (`model_files/memory.py`).
"""

from dataclasses import dataclass

from dairllm.mesh.errors import NotEnoughMemory
from dairllm.mesh.settings import format_size
from dairllm.model_files.memory import Reserve, reserve_of, sent_rows_bytes

DEFAULT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    total_bytes: int

    @property
    def sent_rows_bytes(self) -> int:
        """For sent rows, which may have to be sent again."""
        return sent_rows_bytes(self.total_bytes)

    @property
    def reserve(self) -> Reserve:
        return reserve_of(self.total_bytes)

    def missing_bytes(self, demand: "MemoryDemand") -> int:
        """By how much the demand exceeds the budget; 0 if it fits."""
        besides = self.reserve.with_scratch(demand.scratch_bytes)
        return max(0, demand.weights_bytes + demand.kv_cache_bytes + besides - self.total_bytes)

    def require(self, demand: "MemoryDemand", what: str = "the assignment") -> None:
        """what: what makes the demand. Raises NotEnoughMemory, with the numbers."""
        missing_bytes = self.missing_bytes(demand)
        if missing_bytes:
            besides = self.reserve.with_scratch(demand.scratch_bytes)
            raise NotEnoughMemory(
                f"{what} needs {format_size(demand.weights_bytes)} of weights, {format_size(demand.kv_cache_bytes)} of KV cache "
                f"and {format_size(besides)} besides, but the memory budget is {format_size(self.total_bytes)}: "
                f"{format_size(missing_bytes)} too little",
                missing_bytes=missing_bytes,
            )


@dataclass(frozen=True, slots=True)
class MemoryDemand:
    weights_bytes: int
    kv_cache_bytes: int
    scratch_bytes: int


def default_budget_bytes(available_bytes: int) -> int:
    return int(available_bytes * DEFAULT_SHARE)
