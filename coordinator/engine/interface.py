"""What the text layer and the APIs need of an engine: the whole of their contract with it."""

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from dairllm.coordinator.engine.requests import GenerationEvent, GenerationRequest
from dairllm.mesh.errors import DairllmError


class EngineStats(NamedTuple):
    running: int
    waiting: int
    kv_blocks_total: int
    kv_blocks_free: int
    prompt_tokens: int
    generated_tokens: int
    reused_tokens: int
    """Tokens of prompts that were in the cache already."""
    guessed_tokens: int
    """Tokens that were computed before it was known that they come."""
    guessed_right: int
    """Of these, those that came."""
    decode_step_s: float
    """Smoothed time once around the ring for a frame that only decodes; 0 if none was seen."""


class TokenEngine(Protocol):
    @property
    def context_length(self) -> int:
        """Longest sequence, prompt and answer together, in tokens."""
        ...

    def why_unready(self) -> DairllmError | None:
        """None while requests are served, else what they fail with."""
        ...

    def engine_stats(self) -> EngineStats:
        """Load now, and counters since the start."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """The events of one sequence, GenerationFinished last; `aclose` cancels it and frees its resources.

        Raises InvalidRequest, ContextExceeded, Busy, NotReady before the first event; RequestLost, NotReady at any time.
        """
        ...
