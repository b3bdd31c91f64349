"""Text over the engine's tokens: prompts in, answers out. What the HTTP and the gRPC interface have in common.

A stop string ends the answer where the first one is complete; of those complete at one place, the longest counts. Text that may yet
become a stop string is held back, so that no part of one is ever given out, and how the text was cut into tokens does not matter.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from dairllm.coordinator.engine.interface import Engine
from dairllm.coordinator.engine.requests import GenerationFinished, GenerationRequest, PromptScored, TokenGenerated, TokenScore
from dairllm.mesh.errors import ContextExceeded, InvalidRequest, PromptTemplateFailed, UnknownModel, Unsupported
from dairllm.mesh.sampling import MAX_SEED, SamplingParams
from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.errors import InvalidTemplate
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.tokenizer import StreamDecoder, Tokenizer

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model of a coordinator. created_s: seconds since 1970, for lists of models."""

    name: str
    spec: ModelSpec
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    created_s: int = field(default_factory=lambda: int(time.time()))

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, or Unsupported."""
        if self.tokenizer is None:
            raise Unsupported(f"model {self.name!r} has no tokenizer; expected a prompt of token ids", "prompt")
        return self.tokenizer


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """role: one of ROLES."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"the role of a message is {self.role[:40]!r}; expected one of {', '.join(ROLES)}", "messages")


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


class TopToken(NamedTuple):
    token_id: int
    text: str
    data: bytes | None
    logprob: float


class TextToken(NamedTuple):
    """A token of the prompt or the answer.

    text: its bytes as text, 'bytes:\\xe2\\x80' if they are not whole characters, 'token_id:7' without a tokenizer (then data is None).
    logprob: None where it was not asked for, and for the first token of a prompt. offset: where its text begins, in characters of what is
    given out. ends_answer: it is the model's end token, which has no text in the answer.
    """

    token_id: int
    text: str
    data: bytes | None
    logprob: float | None
    top: tuple[TopToken, ...]
    offset: int
    ends_answer: bool


class TextPiece(NamedTuple):
    """Text since the piece before, and the tokens whose text is out by now; either may be empty."""

    text: str
    tokens: tuple[TextToken, ...]


class TextFinished(NamedTuple):
    """The last event. reason: 'stop' (end token or stop string) or 'length'. Times in seconds, 0 without a token.

    first_token_s: from the call to the first token; decode_s: from the first token to the last.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float


TextEvent = TextPiece | TextFinished


class LatencyObserver(Protocol):
    def observe_first_token(self, seconds: float) -> None: ...

    def observe_next_token(self, seconds: float) -> None: ...


def random_seed() -> int:
    return secrets.randbits(64)


class StopFilter:
    """Passes text on up to the first stop string. `found` once one was complete; what comes later is dropped."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be given out by now."""
        if self.found:
            return ""
        pending = self._held + text
        begin = self._first_stop(pending)
        if begin is not None:
            self.found, self._held = True, ""
            return pending[:begin]
        keep = self._length_to_hold(pending)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, pending: str) -> int | None:
        hits = [(begin + len(stop), begin) for stop in self._stops if (begin := pending.find(stop)) >= 0]
        return min(hits)[1] if hits else None

    def _length_to_hold(self, pending: str) -> int:
        longest = min(max((len(stop) for stop in self._stops), default=1) - 1, len(pending))
        for length in range(longest, 0, -1):
            tail = pending[len(pending) - length :]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0


class TokenTexts:
    """Tokens as clients see them, with or without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def describe(self, score: TokenScore, offset: int, ends_answer: bool = False) -> TextToken:
        data = self._data(score.token_id)
        logprob = None if score.logprob != score.logprob else score.logprob
        top = tuple(TopToken(i, self._text(i, data_i), data_i, p) for i, p in score.top for data_i in (self._data(i),))
        return TextToken(score.token_id, self._text(score.token_id, data), data, logprob, top, offset, ends_answer)

    def _data(self, token_id: int) -> bytes | None:
        if self._tokenizer is None or not 0 <= token_id < self._tokenizer.vocab_size:
            return None
        return self._tokenizer.token_text(token_id)

    def _text(self, token_id: int, data: bytes | None) -> str:
        if data is None:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class _Held(NamedTuple):
    token: TextToken
    end: int


class AnswerText:
    """The text of an answer, token by token. `offset`: where it begins, in characters; `stopped` once a stop string was found."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str], end_ids: frozenset[int], offset: int) -> None:
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer, skip_special=True)
        self._filter = StopFilter(stops)
        self._texts = TokenTexts(tokenizer)
        self._end_ids = end_ids
        self._decoded = self._released = offset
        self._held: deque[_Held] = deque()

    @property
    def stopped(self) -> bool:
        return self._filter.found

    def push(self, score: TokenScore) -> TextPiece:
        ends_answer = score.token_id in self._end_ids
        begin = self._decoded
        text = "" if ends_answer or self._decoder is None else self._decoder.push(score.token_id)
        self._decoded += len(text)
        self._held.append(_Held(self._texts.describe(score, begin, ends_answer), self._decoded))
        return self._release(self._filter.push(text))

    def finish(self) -> TextPiece:
        """What was held back. A stop string may still be found in it."""
        text = "" if self._decoder is None else self._decoder.flush()
        self._decoded += len(text)
        return self._release(self._filter.push(text) + self._filter.flush())

    def _release(self, text: str) -> TextPiece:
        self._released += len(text)
        tokens = []
        while self._held and self._is_out(self._held[0]):
            tokens.append(self._held.popleft().token)
        return TextPiece(text, tuple(tokens))

    def _is_out(self, held: _Held) -> bool:
        if self.stopped:
            return held.token.offset < self._released
        return held.end <= self._released


class _Stopwatch:
    def __init__(self, latency: LatencyObserver | None) -> None:
        self._latency = latency
        self._begin = self._first = self._last = time.monotonic()
        self.num_tokens = 0

    def count_token(self) -> None:
        now = time.monotonic()
        self.num_tokens += 1
        if self.num_tokens == 1:
            self._first = now
            if self._latency is not None:
                self._latency.observe_first_token(now - self._begin)
        elif self._latency is not None:
            self._latency.observe_next_token(now - self._last)
        self._last = now

    def finished(self, reason: str, prompt_tokens: int) -> TextFinished:
        if self.num_tokens == 0:
            return TextFinished(reason, prompt_tokens, 0, 0.0, 0.0)
        return TextFinished(reason, prompt_tokens, self.num_tokens, self._first - self._begin, self._last - self._first)


class TextService:
    """Generates text with the served model. latency: is told how long tokens took."""

    def __init__(self, served: ServedModel, engine: Engine, latency: LatencyObserver | None = None) -> None:
        self.served = served
        self.engine = engine
        self._latency = latency
        self._texts = TokenTexts(served.tokenizer)

    def require_model(self, name: str | None) -> None:
        """UnknownModel unless it is the served one's name, empty or None."""
        if name and name != self.served.name:
            raise UnknownModel(f"the model {name[:80]!r} is not served; expected {self.served.name!r}", "model")

    async def encode_text(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Token ids of a text; Unsupported if the model has no tokenizer."""
        tokenizer = self.served.text_tokenizer()
        ids = await asyncio.to_thread(tokenizer.encode, text, add_special=add_special, parse_special=parse_special)
        return tuple(ids)

    async def encode_chat(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Token ids of the rendered chat template; Unsupported without one, PromptTemplateFailed if it refuses the messages."""
        tokenizer, template = self.served.text_tokenizer(), self.served.chat_template
        if template is None:
            raise Unsupported(f"model {self.served.name!r} has no chat template; expected a plain completion", "messages")
        if not messages:
            raise InvalidRequest("messages is empty; expected at least one message", "messages")
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = await asyncio.to_thread(template.render, plain, add_generation_prompt=True)
        except InvalidTemplate as error:
            raise PromptTemplateFailed(str(error), "messages") from error
        return tuple(await asyncio.to_thread(tokenizer.encode_prompt, rendered))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens written out; Unsupported without a tokenizer, InvalidRequest for an id out of range."""
        tokenizer = self.served.text_tokenizer()
        self.check_token_ids(token_ids, "token_ids")
        return tokenizer.decode(token_ids, skip_special=False)

    def check_token_ids(self, token_ids: Sequence[int], param: str) -> None:
        """InvalidRequest, with `param`, unless all are ids of the vocabulary."""
        vocab_size = self.served.spec.vocab_size
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(f"{param} has the token id {token_id}; expected 0 to {vocab_size - 1}", param)

    def check(self, request: TextRequest) -> None:
        """Refuses what can be known to fail: InvalidRequest, ContextExceeded, Unsupported."""
        if not request.prompt_ids:
            raise InvalidRequest("the prompt has no tokens; expected at least one", "prompt")
        self.check_token_ids(request.prompt_ids, "prompt")
        self.check_token_ids(list(request.sampling.logit_bias), "logit_bias")
        if request.stop and self.served.tokenizer is None:
            raise Unsupported(f"model {self.served.name!r} has no tokenizer; expected no stop strings", "stop")
        self._check_length(len(request.prompt_ids), request.max_tokens)

    def _check_length(self, prompt_tokens: int, max_tokens: int | None) -> None:
        context_length = self.engine.context_length
        if prompt_tokens + (max_tokens != 0) > context_length:
            raise ContextExceeded(
                f"the prompt has {prompt_tokens} tokens, but the context is {context_length} tokens, answer included; expected less",
                "prompt",
            )
        if max_tokens is not None and prompt_tokens + max_tokens > context_length:
            raise ContextExceeded(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}, but the context is {context_length} tokens; "
                f"expected max_tokens of at most {context_length - prompt_tokens}",
                "max_tokens",
            )

    async def generate(self, request: TextRequest) -> AsyncGenerator[TextEvent, None]:
        """The answer, TextFinished last; `aclose` cancels it. The errors of `check` and of `Engine.generate`."""
        self.check(request)
        end_ids = self._end_ids(request)
        echo = self._echoed_text(request)
        answer = AnswerText(self.served.tokenizer, request.stop, end_ids, len(echo))
        watch = _Stopwatch(self._latency)
        wants_scores = request.echo and request.sampling.logprobs
        engine_request = GenerationRequest(request.prompt_ids, request.sampling, request.max_tokens, end_ids, wants_scores)
        reason, echoed = "stop", not request.echo
        async with aclosing(self.engine.generate(engine_request)) as events:
            async for event in events:
                if not echoed:
                    echoed = True
                    yield TextPiece(echo, self._prompt_tokens(request, echo, event.scores if isinstance(event, PromptScored) else None))
                match event:
                    case TokenGenerated(score):
                        watch.count_token()
                        piece = answer.push(score)
                        if piece.text or piece.tokens:
                            yield piece
                        if answer.stopped:
                            break
                    case GenerationFinished(engine_reason):
                        reason = engine_reason
        if not answer.stopped:
            piece = answer.finish()
            if piece.text or piece.tokens:
                yield piece
        yield watch.finished("stop" if answer.stopped else reason, len(request.prompt_ids))

    def _end_ids(self, request: TextRequest) -> frozenset[int]:
        if request.ignore_eos or self.served.tokenizer is None:
            return frozenset()
        return self.served.tokenizer.end_of_generation_ids

    def _echoed_text(self, request: TextRequest) -> str:
        if not request.echo:
            return ""
        if request.prompt_text is not None:
            return request.prompt_text
        return "" if self.served.tokenizer is None else self.served.tokenizer.decode(request.prompt_ids, skip_special=False)

    def _prompt_tokens(self, request: TextRequest, echo: str, scores: Sequence[TokenScore] | None) -> tuple[TextToken, ...]:
        first, *others = request.prompt_ids
        unknown = float("nan")
        scored = scores if scores is not None else [TokenScore(token_id, unknown) for token_id in others]
        all_scores = [TokenScore(first, unknown), *scored]
        offsets = self._prompt_offsets(request.prompt_ids, echo)
        return tuple(self._texts.describe(score, offset) for score, offset in zip(all_scores, offsets, strict=True))

    def _prompt_offsets(self, token_ids: Sequence[int], echo: str) -> list[int]:
        """Where each token's text begins in the echoed text. Tokens that the tokenizer added before it begin at 0."""
        if self.served.tokenizer is None:
            return [0] * len(token_ids)
        decoder = StreamDecoder(self.served.tokenizer, skip_special=False)
        offsets, length = [], 0
        for token_id in token_ids:
            offsets.append(length)
            length += len(decoder.push(token_id))
        added = max(length + len(decoder.flush()) - len(echo), 0)
        return [max(offset - added, 0) for offset in offsets]


class ChoiceEvent(NamedTuple):
    """choice: position of the sequence in the list of requests."""

    choice: int
    event: TextEvent


class Choices:
    """Several sequences at once, their events in one stream; an asynchronous context manager whose end cancels what still runs.

    At most `concurrent` of them run at a time, and at most `queue_size` events wait to be taken: a reader that does not read holds up
    only its own sequences.
    """

    def __init__(self, text: TextService, requests: Sequence[TextRequest], *, concurrent: int = 32, queue_size: int = 64) -> None:
        self._text = text
        self._requests = requests
        self._slots = asyncio.Semaphore(concurrent)
        self._queue: asyncio.Queue[ChoiceEvent | Exception] = asyncio.Queue(queue_size)
        self._unfinished = len(requests)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Choices":
        for request in self._requests:
            self._text.check(request)
        self._tasks = [asyncio.create_task(self._run(index, request)) for index, request in enumerate(self._requests)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __aiter__(self) -> "Choices":
        return self

    async def __anext__(self) -> ChoiceEvent:
        """The next event; the error of a sequence that failed. Safe to cancel: nothing is lost."""
        if self._unfinished == 0:
            raise StopAsyncIteration
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        self._unfinished -= isinstance(item.event, TextFinished)
        return item

    async def _run(self, index: int, request: TextRequest) -> None:
        try:
            async with self._slots, aclosing(self._text.generate(request)) as events:
                async for event in events:
                    await self._queue.put(ChoiceEvent(index, event))
        except Exception as error:  # raised again where the events are taken
            await self._queue.put(error)
