import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.text import (
    AnswerText,
    ChatMessage,
    Choices,
    TextDelta,
    TextEvent,
    TextFinished,
    TextRequest,
    TextService,
    TextToken,
)
from dairllm.mesh.errors import Busy, ContextExceeded, InvalidRequest, PromptTemplateFailed, UnknownModel, Unsupported
from dairllm.mesh.ring.frames import TokenScore
from dairllm.mesh.sampling import MAX_SEED, SamplingParams
from tests.text.fakes import BEGIN_ID, CONTEXT_LENGTH, END_ID, VOCAB_SIZE, ByteTokenizer, FakeEngine, logprob_of, make_served

LOGPROBS = SamplingParams(logprobs=True, top_logprobs=2)


async def collect(engine: FakeEngine, request: TextRequest, with_tokenizer: bool = True) -> tuple[str, list[TextToken], TextFinished]:
    service = TextService(make_served(with_tokenizer=with_tokenizer), engine)
    events: list[TextEvent] = [event async for event in service.generate(request)]
    deltas = [event for event in events if isinstance(event, TextDelta)]
    last = events[-1]
    assert isinstance(last, TextFinished)
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.tokens], last


def prompt(text: str = "Hi") -> tuple[int, ...]:
    return tuple(text.encode())


async def test_an_answer_ends_with_the_end_token() -> None:
    text, tokens, finished = await collect(FakeEngine(b"Hello"), TextRequest(prompt()))
    assert text == "Hello"
    assert [token.text for token in tokens if not token.ends_answer] == list("Hello")
    assert tokens[-1].ends_answer
    assert (finished.reason, finished.prompt_tokens, finished.completion_tokens) == ("stop", 2, 6)


async def test_max_tokens_cuts_within_a_character() -> None:
    text, _, finished = await collect(FakeEngine("é".encode()), TextRequest(prompt(), max_tokens=1))
    assert (text, finished.reason, finished.completion_tokens) == ("�", "length", 1)


async def test_ignore_eos_goes_on() -> None:
    engine = FakeEngine(b"ab")
    text, _, finished = await collect(engine, TextRequest(prompt(), max_tokens=5, ignore_eos=True))
    assert (text, finished.reason) == ("ababa", "length")
    assert engine.requests[0].end_ids == frozenset()


async def test_a_stop_string_ends_the_sequence_in_the_engine() -> None:
    engine = FakeEngine(b"one two three")
    text, tokens, finished = await collect(engine, TextRequest(prompt(), stop=(" two",)))
    assert text == "one"
    assert [token.text for token in tokens] == list("one")
    assert (finished.reason, finished.completion_tokens) == ("stop", 7)
    assert engine.num_open == 0
    assert engine.num_generated == 7


async def test_a_held_back_beginning_comes_out_at_the_end() -> None:
    text, tokens, _ = await collect(FakeEngine(b"one tw"), TextRequest(prompt(), stop=(" two",)))
    assert text == "one tw"
    assert len(tokens) == 7


async def test_logprobs_have_texts_bytes_and_offsets() -> None:
    _, tokens, _ = await collect(FakeEngine("aé".encode()), TextRequest(prompt(), LOGPROBS))
    assert [token.text for token in tokens] == ["a", "bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"]
    assert [token.data for token in tokens] == [b"a", b"\xc3", b"\xa9", b"<|im_end|>"]
    assert [token.offset for token in tokens] == [0, 1, 1, 2]
    assert tokens[0].logprob == logprob_of(ord("a"))
    assert [one.text for one in tokens[0].top] == ["a", "b"]


async def test_logprobs_are_none_where_not_asked_for() -> None:
    _, tokens, _ = await collect(FakeEngine(), TextRequest(prompt()))
    assert {token.logprob for token in tokens} == {None}


async def test_echo_scores_the_prompt() -> None:
    ids = (BEGIN_ID, *"aé".encode())
    request = TextRequest(ids, LOGPROBS, max_tokens=0, echo=True, prompt_text="aé")
    text, tokens, finished = await collect(FakeEngine(), request)
    assert text == "aé"
    assert [token.logprob for token in tokens] == [None, *(logprob_of(token_id) for token_id in ids[1:])]
    assert [token.offset for token in tokens] == [0, 0, 1, 1]
    assert (finished.reason, finished.completion_tokens) == ("length", 0)


async def test_echo_of_ids_writes_special_tokens_out_and_offsets_go_on_in_the_answer() -> None:
    text, tokens, _ = await collect(FakeEngine(b"xy"), TextRequest((BEGIN_ID, 97), LOGPROBS, echo=True))
    assert text == "<s>axy"
    assert [token.offset for token in tokens] == [0, 3, 4, 5, 6]


async def test_echo_without_scores() -> None:
    text, tokens, _ = await collect(FakeEngine(b"xy"), TextRequest(prompt("ab"), echo=True))
    assert text == "abxy"
    assert [token.logprob for token in tokens] == [None] * 5


async def test_a_model_without_tokenizer_gives_ids() -> None:
    text, tokens, finished = await collect(FakeEngine(b"ab"), TextRequest((1, 2), LOGPROBS, max_tokens=3), with_tokenizer=False)
    assert text == ""
    assert [token.token_id for token in tokens] == [97, 98, 97]
    assert tokens[0].text == "token_id:97"
    assert tokens[0].data is None
    assert finished.reason == "length"


async def test_latencies_are_observed() -> None:
    class Observer:
        def __init__(self) -> None:
            self.first: list[float] = []
            self.next: list[float] = []

        def observe_first_token(self, seconds: float) -> None:
            self.first.append(seconds)

        def observe_next_token(self, seconds: float) -> None:
            self.next.append(seconds)

    observer = Observer()
    service = TextService(make_served(), FakeEngine(b"abc"), observer)
    events = [event async for event in service.generate(TextRequest(prompt()))]
    assert (len(observer.first), len(observer.next)) == (1, 3)
    assert isinstance(events[-1], TextFinished)
    assert events[-1].decode_s == pytest.approx(sum(observer.next))


@pytest.mark.parametrize(
    ("request_fields", "error", "words"),
    [
        ({"prompt_ids": ()}, InvalidRequest, "no tokens"),
        ({"prompt_ids": (VOCAB_SIZE,)}, InvalidRequest, f"token id {VOCAB_SIZE}"),
        ({"prompt_ids": (1,) * CONTEXT_LENGTH}, ContextExceeded, f"maximum context length is {CONTEXT_LENGTH} tokens"),
        ({"prompt_ids": (1, 2), "max_tokens": CONTEXT_LENGTH}, ContextExceeded, f"at most {CONTEXT_LENGTH - 2}"),
        ({"prompt_ids": (1,), "sampling": SamplingParams(logit_bias={VOCAB_SIZE: 1.0})}, InvalidRequest, "logit_bias"),
    ],
)
async def test_what_cannot_work_is_refused_before_the_engine(request_fields: dict[str, object], error: type, words: str) -> None:
    engine = FakeEngine()
    with pytest.raises(error, match=words):
        await collect(engine, TextRequest(**request_fields))  # type: ignore[arg-type]
    assert engine.requests == []


async def test_a_full_context_can_still_be_scored() -> None:
    _, tokens, _ = await collect(FakeEngine(), TextRequest((97,) * CONTEXT_LENGTH, LOGPROBS, max_tokens=0, echo=True))
    assert len(tokens) == CONTEXT_LENGTH


@pytest.mark.parametrize("stop", [("",), ("a",) * 17, ("a" * 1025,)])
def test_bad_stop_strings_are_refused(stop: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        TextRequest((1,), stop=stop)


async def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(Unsupported, match="no tokenizer"):
        await collect(FakeEngine(), TextRequest((1,), stop=("a",)), with_tokenizer=False)


def test_choices_differ_in_the_seed() -> None:
    seeds = [one.sampling.seed for one in TextRequest((1,), SamplingParams(seed=MAX_SEED)).choices(3)]
    assert seeds == [MAX_SEED, 0, 1]


async def test_chat_is_rendered_with_the_template() -> None:
    ids = await TextService(make_served(), FakeEngine()).encode_chat([ChatMessage("user", "Hi")])
    assert ByteTokenizer().decode(ids, skip_special=False) == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def test_chat_errors() -> None:
    service = TextService(make_served(), FakeEngine())
    with pytest.raises(PromptTemplateFailed, match="no tools here"):
        await service.encode_chat([ChatMessage("tool", "42")])
    with pytest.raises(InvalidRequest, match="at least one message"):
        await service.encode_chat([])
    with pytest.raises(InvalidRequest, match="'robot'"):
        ChatMessage("robot", "")
    with pytest.raises(Unsupported, match="no chat template"):
        await TextService(make_served(with_template=False), FakeEngine()).encode_chat([ChatMessage("user", "Hi")])


def test_an_unknown_model_is_told_the_served_one() -> None:
    service = TextService(make_served(), FakeEngine())
    for name in (None, "", "tiny"):
        service.require_model(name)
    with pytest.raises(UnknownModel, match="'other' is not served; expected 'tiny'"):
        service.require_model("other")


async def test_choices_run_at_most_so_many_at_a_time() -> None:
    engine = FakeEngine(b"abc")
    async with Choices(TextService(make_served(), engine), TextRequest((1,)).choices(9), concurrent=2) as choices:
        finished = [choice async for choice, event in choices if isinstance(event, TextFinished)]
    assert sorted(finished) == list(range(9))
    assert engine.most_open == 2


async def test_leaving_choices_cancels_what_runs() -> None:
    engine = FakeEngine(b"abc")
    engine.pause_at = 1
    async with Choices(TextService(make_served(), engine), TextRequest((1,)).choices(3)) as choices:
        await anext(choices)
        await engine.paused.wait()
    assert engine.num_open == 0


async def test_a_reader_that_does_not_read_stops_the_generation() -> None:
    engine = FakeEngine(b"a" * 400)
    async with Choices(TextService(make_served(), engine), [TextRequest((1,))], queue_size=8):
        for _ in range(2000):
            await asyncio.sleep(0)
        assert engine.num_open == 1
        assert engine.num_generated <= 12


async def test_the_error_of_one_choice_is_raised() -> None:
    engine = FakeEngine()
    engine.error, engine.fail_at = Busy("full"), 2
    async with Choices(TextService(make_served(), engine), TextRequest((1,)).choices(2)) as choices:
        for _ in range(4):
            await anext(choices)
        with pytest.raises(Busy, match="full"):
            await anext(choices)


async def test_closing_a_generation_closes_the_engine() -> None:
    engine = FakeEngine()
    async with aclosing(TextService(make_served(), engine).generate(TextRequest((1,)))) as events:
        await anext(events)
        assert engine.num_open == 1
    assert engine.num_open == 0


answers = st.lists(st.one_of(st.sampled_from(list(b"ab \n")), st.integers(0, 255), st.just(258)), max_size=40)


@given(answers, st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3), st.booleans())
def test_tokens_and_text_belong_together(ids: list[int], stops: list[str], ends: bool) -> None:
    answer = AnswerText(ByteTokenizer(), stops, frozenset({END_ID}), 0)
    deltas = []
    for token_id in [*ids, END_ID] if ends else ids:
        deltas.append(answer.push(TokenScore(token_id, -1.0)))
        if answer.stopped:
            break
    if not answer.stopped:
        deltas.append(answer.finish())
    text = "".join(delta.text for delta in deltas)
    tokens = [token for delta in deltas for token in delta.tokens]
    whole = ByteTokenizer().decode(ids, skip_special=True)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    assert answer.stopped == any(stop in whole for stop in stops)
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)
    assert all(token.offset <= len(text) for token in tokens)
    if not answer.stopped:
        assert text == whole
        assert [token.token_id for token in tokens] == [*ids, END_ID][: len(ids) + ends]
