"""What is asked of the engine and what it answers, in tokens. Text belongs to `coordinator.text`."""

from dataclasses import dataclass, field
from typing import NamedTuple, NewType

from dairllm.mesh.ring.frames import TokenScore
from dairllm.mesh.sampling import SamplingParams

SequenceId = NewType("SequenceId", int)


class Asker(NamedTuple):
    """Among whom the cluster is shared. client: an opaque name. call: a number that the sequences of one call have in common; 0 for one
    that is a call of its own."""

    client: str = ""
    call: int = 0


NOBODY = Asker()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to be continued.

    prompt_ids: at least one token id of the model's vocabulary.
    max_tokens: tokens to generate at most; 0 only scores the prompt; None means until the context is full.
    end_ids: token ids that end the answer (they are reported, with finish reason 'stop').
    score_prompt: report the log-probability of every prompt token but the first, with `sampling.top_logprobs` alternatives.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    end_ids: frozenset[int] = frozenset()
    score_prompt: bool = False
    asker: Asker = NOBODY


class PrefixReused(NamedTuple):
    """So many tokens of the prompt, at least one, were not computed, since an earlier one began with them; comes at most once, first."""

    num_tokens: int


class PromptScored(NamedTuple):
    """Scores of prompt tokens 1 … n-1, in order; comes once, before the first TokenGenerated."""

    scores: tuple[TokenScore, ...]


class TokenGenerated(NamedTuple):
    token: TokenScore


class GenerationFinished(NamedTuple):
    """The last event of every generation that does not fail. reason: 'stop' (an end token came) or 'length'."""

    reason: str


GenerationEvent = PrefixReused | PromptScored | TokenGenerated | GenerationFinished
