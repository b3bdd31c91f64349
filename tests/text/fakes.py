"""A tokenizer of bytes and an engine that answers from a script: everything about them is known in advance."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator

from dairllm.coordinator.engine.interface import EngineStats
from dairllm.coordinator.engine.requests import (
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    PrefixReused,
    PromptScored,
    TokenGenerated,
)
from dairllm.coordinator.text import ServedModel
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.ring.frames import TokenLogprob, TokenScore
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.special_texts import SpecialTexts
from dairllm.model_files.tokenizer import Tokenizer
from tests.instruments.descriptions import layer_of, spec_of
from tests.instruments.templates import make_template

BEGIN_ID, END_ID, START_ID = 256, 257, 258
SPECIAL_TEXTS = {BEGIN_ID: "<s>", END_ID: "<|im_end|>", START_ID: "<|im_start|>"}
VOCAB_SIZE = 259
CONTEXT_LENGTH = 512
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8; the special tokens follow."""

    def __init__(self) -> None:
        self.vocab_size = VOCAB_SIZE
        self.end_of_generation_ids = frozenset({END_ID})
        self.longest_token_bytes = max(map(len, SPECIAL_TEXTS.values()))
        self.before, self.bos_id = (BEGIN_ID,), BEGIN_ID

    def encode_in_steps(self, text: str, *, add_special: bool, parse_special: bool) -> Iterator[list[int]]:
        ids = {text: token_id for token_id, text in SPECIAL_TEXTS.items()} if parse_special else {}
        yield [BEGIN_ID] if add_special else []
        for index, piece in enumerate(SpecialTexts(ids).split(text)):
            yield [ids[piece]] if index % 2 else list(piece.encode())

    def encode_prompt_in_steps(self, rendered: str) -> Iterator[list[int]]:
        return self.encode_in_steps(rendered, add_special=True, parse_special=True)

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        return b"".join(self.shown_bytes(token_id, skip_special) for token_id in ids).decode(errors="replace")

    def token_text(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else SPECIAL_TEXTS[token_id].encode()

    def shown_bytes(self, token_id: int, skip_special: bool) -> bytes:
        return b"" if skip_special and token_id >= 256 else self.token_text(token_id)


def logprob_of(token_id: int) -> float:
    return -(token_id % 8 + 1) / 4


def score_of(token_id: int, request: GenerationRequest) -> TokenScore:
    if not request.sampling.logprobs:
        return TokenScore(token_id, float("nan"))
    logprob = logprob_of(token_id)
    top = [TokenLogprob((token_id + i) % 256, logprob - i) for i in range(request.sampling.top_logprobs)]
    return TokenScore(token_id, logprob, tuple(top))


class FakeEngine:
    """Answers with the bytes that `reply` gives, over and over if the end is ignored.

    fail_at: `error` is raised before this token. pause_at: before this token `paused` is set and `resume` is awaited. -1 in both is before
    the prompt is accepted. num_reused: tokens of each prompt that it finds in its cache. num_open: generations under way; `all_ended` is
    set when the last has ended.
    """

    def __init__(self, reply: Callable[[GenerationRequest], bytes] | bytes = b"Hello, world") -> None:
        self.reply = (lambda request: reply) if isinstance(reply, bytes) else reply
        self.context_length = CONTEXT_LENGTH
        self.unready: DairllmError | None = None
        self.error: DairllmError | Exception | None = None
        self.fail_at: int | None = None
        self.pause_at: int | None = None
        self.paused, self.resume, self.all_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.requests: list[GenerationRequest] = []
        self.num_open = self.most_open = self.num_generated = self.num_reused = 0

    def why_unready(self) -> DairllmError | None:
        return self.unready

    def engine_stats(self) -> EngineStats:
        return EngineStats(
            self.num_open,
            0,
            64,
            60,
            sum(len(one.prompt_ids) for one in self.requests),
            self.num_generated,
            self.num_reused * len(self.requests),
            9,
            6,
            0.0,
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        self.requests.append(request)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        self.all_ended.clear()
        try:
            await self._reach(-1)
            if self.num_reused:
                yield PrefixReused(self.num_reused)
            if request.score_prompt:
                yield PromptScored(tuple(score_of(token_id, request) for token_id in request.prompt_ids[1:]))
            async for event in self._answer(request):
                yield event
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self.all_ended.set()

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        reply = self.reply(request)
        room = self.context_length - len(request.prompt_ids)
        for index in range(room if request.max_tokens is None else request.max_tokens):
            await self._reach(index)
            ended = index >= len(reply) and bool(request.end_ids)
            self.num_generated += 1
            yield TokenGenerated(score_of(END_ID if ended else reply[index % len(reply)], request))
            if ended:
                yield GenerationFinished("stop")
                return
            await asyncio.sleep(0)
        yield GenerationFinished("length")

    async def _reach(self, index: int) -> None:
        if index == self.pause_at:
            self.paused.set()
            await self.resume.wait()
        if index == self.fail_at and self.error is not None:
            raise self.error


def make_spec(name: str = "tiny") -> ModelSpec:
    layer = layer_of(intermediate_size=128, num_heads=4, num_kv_heads=2, head_dim=16)
    return spec_of(4, layer=layer, name=name, vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH)


def make_served(
    *,
    with_tokenizer: bool = True,
    with_template: bool = True,
    model_digest: str = "ab" * 32,
    arithmetic: str = "exact",
    created_s: int = 1_700_000_000,
) -> ServedModel:
    tokenizer = ByteTokenizer() if with_tokenizer else None
    template = make_template(TEMPLATE, control_texts=SPECIAL_TEXTS.values()) if with_template else None
    return ServedModel("tiny", model_digest, arithmetic, make_spec(), tokenizer, template, created_s)
