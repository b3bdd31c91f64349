"""How a next token is chosen: the parameters that travel with a sequence from the API to the shard that holds the head."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dairllm.mesh.errors import InvalidRequest
from dairllm.v1 import ring_pb2

MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**64 - 1
SAMPLING_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 100.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}
"""Lowest and highest value, both allowed, but for repetition_penalty, which must be over 0."""
LOGIT_BIAS_RANGE = (-100.0, 100.0)
MAX_LOGIT_BIAS = 1024
"""Entries."""
_MAY_BE_ABSENT = ("temperature", "top_p", "repetition_penalty", "seed")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Values as in OpenAI's API, where it has them; the others as vLLM and llama.cpp name them.

    temperature 0 chooses the most probable token, as does top_p 0. `off` values: top_k 0, top_p 1, min_p 0, repetition_penalty 1, the
    other penalties 0. With `logprobs`, log-probabilities of the model's own distribution (before temperature and penalties) are reported,
    with those of the `top_logprobs` most probable tokens.

    Raises InvalidRequest, with `param`, for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidRequest(f"{name} is {value}; expected a number from {low:g} to {high:g}", name)
        for name, highest in (("top_k", 2**31 - 1), ("seed", MAX_SEED), ("top_logprobs", MAX_TOP_LOGPROBS)):
            value = getattr(self, name)
            if not 0 <= value <= highest:
                raise InvalidRequest(f"{name} is {value}; expected a whole number from 0 to {highest}", name)
        if self.repetition_penalty <= 0:
            raise InvalidRequest(f"repetition_penalty is {self.repetition_penalty}; expected a number over 0", "repetition_penalty")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(f"logit_bias has {len(self.logit_bias)} tokens; expected at most {MAX_LOGIT_BIAS}", "logit_bias")
        low, high = LOGIT_BIAS_RANGE
        for token_id, bias in self.logit_bias.items():
            if not (math.isfinite(bias) and low <= bias <= high):
                raise InvalidRequest(f"logit_bias of token {token_id} is {bias}; expected a number from {low:g} to {high:g}", "logit_bias")

    def to_proto(self) -> ring_pb2.SamplingParams:
        return ring_pb2.SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            logit_bias=dict(self.logit_bias),
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
        )

    @classmethod
    def from_proto(cls, message: ring_pb2.SamplingParams, absent: "SamplingParams") -> "SamplingParams":
        """absent: has the values of the fields that the message lacks and that may be lacking."""
        given = {name: getattr(message if message.HasField(name) else absent, name) for name in _MAY_BE_ABSENT}
        return cls(
            **given,
            top_k=message.top_k,
            min_p=message.min_p,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            logit_bias=dict(message.logit_bias),
            logprobs=message.logprobs,
            top_logprobs=message.top_logprobs,
        )
