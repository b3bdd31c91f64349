"""The text layer itself: from text to token ids, and from the engine's tokens to text."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from dairllm.coordinator.engine.context_length import require_room
from dairllm.coordinator.engine.interface import TokenEngine
from dairllm.coordinator.engine.requests import (
    NOBODY,
    Asker,
    GenerationFinished,
    GenerationRequest,
    PrefixReused,
    PromptScored,
    TokenGenerated,
)
from dairllm.coordinator.text.answer_text import AnswerText
from dairllm.coordinator.text.echoed_prompt import EchoedPrompt
from dairllm.coordinator.text.prompt_encoder import MAX_COUNTED_TOKENS, PromptEncoder
from dairllm.coordinator.text.served_model import ServedModel
from dairllm.coordinator.text.stopwatch import LatencyObserver, Stopwatch
from dairllm.coordinator.text.text_events import TextEvent
from dairllm.coordinator.text.text_request import ChatContext, ChatMessage, TextRequest
from dairllm.coordinator.text.threads import beside_loop, next_step
from dairllm.mesh.errors import InvalidRequest, UnknownModel, Unsupported


class TextService:
    """Generates text with the served model. latency: is told how long tokens took."""

    def __init__(self, served: ServedModel, engine: TokenEngine, latency: LatencyObserver | None = None) -> None:
        self.served = served
        self.engine = engine
        self._latency = latency
        self._prompts = PromptEncoder(served, lambda: engine.context_length)

    def require_model(self, name: str | None) -> None:
        """UnknownModel unless it is a name of the served one, empty or None."""
        if name and name != self.served.name and name not in self.served.aliases:
            raise UnknownModel(f"the model {name[:80]!r} is not served; expected {self.served.name!r}", "model")

    async def encode_text(self, text: str) -> tuple[int, ...]:
        """See PromptEncoder."""
        return await self._prompts.encode_text(text)

    async def count_text(self, text: str, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        """See PromptEncoder."""
        return await self._prompts.count_text(text, add_special=add_special, parse_special=parse_special)

    async def encode_chat(self, messages: Sequence[ChatMessage], context: ChatContext | None = None) -> tuple[int, ...]:
        """See PromptEncoder."""
        return await self._prompts.encode_chat(messages, context or ChatContext())

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens written out. Unsupported without a tokenizer; InvalidRequest for wrong or too many ids."""
        tokenizer = self.served.text_tokenizer()
        if len(token_ids) > MAX_COUNTED_TOKENS:
            raise InvalidRequest(f"token_ids has {len(token_ids)} ids; expected at most {MAX_COUNTED_TOKENS}", "token_ids")

        def decode() -> str:
            self.check_token_ids(token_ids, "token_ids")
            return tokenizer.decode(token_ids, skip_special=False)

        return await beside_loop(decode)

    def check_token_ids(self, token_ids: Sequence[int], param: str) -> None:
        """InvalidRequest, with `param`, unless all are ids of the vocabulary."""
        highest = self.served.spec.num_tokens - 1
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) <= highest):
            wrong = next(token_id for token_id in token_ids if not 0 <= token_id <= highest)
            raise InvalidRequest(f"{param} has the token id {wrong}; expected 0 to {highest}", param)

    def check(self, request: TextRequest) -> None:
        """Refuses what can be known to fail: InvalidRequest, ContextExceeded, Unsupported."""
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no tokens; expected at least one", "prompt")
        self.check_length(len(request.prompt_ids), request.max_tokens)
        self.check_token_ids(request.prompt_ids, "prompt")
        self.check_token_ids(list(request.sampling.logit_bias), "logit_bias")
        if request.stop and self.served.tokenizer is None:
            raise Unsupported(f"model {self.served.name!r} has no tokenizer; expected no stop strings", "stop")

    def check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        """ContextExceeded, in the words by which clients know it."""
        require_room(self.engine.context_length, prompt_tokens, max_tokens)

    async def generate(self, request: TextRequest, asker: Asker = NOBODY) -> AsyncGenerator[TextEvent, None]:
        """The answer, TextFinished last; `aclose` cancels it. The errors of `check` and of `TokenEngine.generate`."""
        self.check(request)
        end_ids = self._end_ids(request)
        prompt = EchoedPrompt(self.served.tokenizer, request)
        answer = AnswerText(self.served.tokenizer, request.stop, end_ids, len(prompt.text))
        watch = Stopwatch(self._latency)
        wants_scores = request.echo and request.sampling.logprobs
        engine_request = GenerationRequest(request.prompt_ids, request.sampling, request.max_tokens, end_ids, wants_scores, asker)
        reason, echoed, cached = "stop", not request.echo, 0
        async with aclosing(self.engine.generate(engine_request)) as events:
            async for event in events:
                if not echoed:
                    echoed = True
                    deltas = prompt.deltas(event.scores if isinstance(event, PromptScored) else None)
                    while delta := await next_step(deltas):
                        yield delta
                match event:
                    case TokenGenerated(score):
                        watch.count_token()
                        if delta := answer.push(score):
                            yield delta
                        if answer.stopped:
                            break
                    case PrefixReused(num_tokens):
                        cached = min(num_tokens, len(request.prompt_ids))
                    case GenerationFinished(engine_reason):
                        reason = engine_reason
        if not answer.stopped and (delta := answer.finish()):
            yield delta
        yield watch.finished("stop" if answer.stopped else reason, len(request.prompt_ids), cached)

    def _end_ids(self, request: TextRequest) -> frozenset[int]:
        if request.ignore_eos or self.served.tokenizer is None:
            return frozenset()
        return self.served.tokenizer.end_of_generation_ids
