"""What is asked for: a prompt and how it is to be continued."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dairllm.mesh.errors import InvalidRequest
from dairllm.mesh.sampling import MAX_SEED, SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
ROLES = ("system", "user", "assistant", "tool")


def random_seed() -> int:
    return secrets.randbits(64)


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """role: one of ROLES. more: what else templates may look at, JSON-like: tool_calls, tool_call_id, name, reasoning_content."""

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"the role of a message is {self.role[:40]!r}; expected one of {', '.join(ROLES)}", "messages")

    def as_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.more}


@dataclass(frozen=True, slots=True)
class ChatContext:
    """What a chat template is told beside the messages. tools: functions that the model may call. variables: the template's own."""

    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One sequence to be continued.

    max_tokens: None means until the context is full, 0 only reads the prompt. echo: the prompt is given out before the answer, with its
    scores if `sampling.logprobs`. prompt_text: what echo gives out; None for the text of the prompt's tokens.

    Raises InvalidRequest for stop strings that are too many, too long or empty.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    echo: bool = False
    prompt_text: str | None = None

    def __post_init__(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop has {len(self.stop)} strings; expected at most {MAX_STOP_STRINGS}", "stop")
        for text in self.stop:
            if not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise InvalidRequest(f"a stop string has {len(text)} characters; expected 1 to {MAX_STOP_LENGTH}", "stop")

    def choices(self, count: int) -> list["TextRequest"]:
        """`count` requests that differ in the seed: the first has this one's, each next one more."""
        return [replace(self, sampling=replace(self.sampling, seed=(self.sampling.seed + i) & MAX_SEED)) for i in range(count)]
