"""Special texts: what clients write never has one, nor becomes part of one, and nothing else about a prompt changes."""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dairllm.model_files.special_texts import SpecialTexts, without_marks
from dairllm.model_files.template_sandbox import Content, TemplateEnvironment, as_content, has_content
from tests.model_files.chat_formats import CHAT_FORMATS, ChatFormat

FEW = st.text(alphabet="<|a>", max_size=6)
OWN = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}


@given(st.sets(st.text(alphabet="<|a>", min_size=1, max_size=5), max_size=4), FEW, FEW, FEW)
def test_nothing_special_is_in_what_a_client_wrote_nor_half_in_it(texts: set[str], before: str, written: str, behind: str) -> None:
    special = SpecialTexts(texts)
    place, outside = 0, (len(before), len(before) + len(written))
    pieces = list(special.split(before + special.broken(written) + behind))
    for index, piece in enumerate(pieces):
        if index % 2 and written:
            assert place + len(piece) <= outside[0] or place >= outside[1]
        place += len(piece)
    assert "".join(pieces) == before + written + behind
    assert without_marks(special.broken(written)) == written


@given(st.sets(st.text(alphabet="<|a>", min_size=1, max_size=5), max_size=6), st.text(alphabet="<|a>", max_size=20))
def test_of_several_the_first_and_longest_counts(texts: set[str], text: str) -> None:
    expected, place, plain = [], 0, 0
    while place < len(text):
        longest = max((one for one in texts if text.startswith(one, place)), key=len, default="")
        if longest:
            expected += [text[plain:place], longest]
            plain = place + len(longest)
        place += len(longest) or 1
    assert list(SpecialTexts(texts).split(text)) == [*expected, text[plain:]]


def harmless_texts(chat_format: ChatFormat) -> st.SearchStrategy[str]:
    parts = (
        "word",
        " ",
        "\n",
        "<think>",
        "</think>",
        "<tool_response>",
        "</tool_response>",
        "é🙂",
        "a < b",
        "|>",
        "{{ x }}",
        "<b>&amp;</b>",
    )
    texts = st.lists(st.sampled_from(parts), max_size=6).map("".join)
    return texts.filter(lambda text: not any(control in text for control in chat_format.control))


def hostile_texts(chat_format: ChatFormat) -> st.SearchStrategy[str]:
    """Pieces of control texts in any order, and what templates cut at."""
    cut = {half for text in chat_format.control for place in range(1, len(text)) for half in (text[:place], text[place:])}
    parts = [*chat_format.control, *sorted(cut), "</think>", "<think>", " ", "\n", "\r", "e"]
    return st.lists(st.sampled_from(parts), max_size=8).map("".join)


def chats(texts: st.SearchStrategy[str]) -> st.SearchStrategy[list[dict[str, str]]]:
    message = st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(("system", "user", "assistant")), texts)
    return st.lists(message, min_size=1, max_size=3)


class Rendering(NamedTuple):
    """Of one format: in the sandbox, marked, and as transformers does it."""

    special: SpecialTexts
    here: Callable[[list[dict[str, str]]], str]
    anywhere: Callable[[list[dict[str, str]]], str]


@functools.cache
def rendering(chat_format: ChatFormat) -> Rendering:
    environment = TemplateEnvironment(chat_format.control)
    code = environment.compile_template(chat_format.source)
    stock = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    stock.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    template = stock.from_string(chat_format.source)

    def here(messages: list[dict[str, str]]) -> str:
        marked = [{"role": message["role"], "content": as_content(message["content"])} for message in messages]
        return "".join(environment.render_chunks(code, {**OWN, "messages": marked}))

    def anywhere(messages: list[dict[str, str]]) -> str:
        return template.render(messages=messages, **OWN)

    return Rendering(SpecialTexts(chat_format.control), here, anywhere)


@pytest.mark.parametrize("chat_format", CHAT_FORMATS.values(), ids=list(CHAT_FORMATS))
@given(st.data())
def test_harmless_messages_render_as_anywhere(chat_format: ChatFormat, data: st.DataObject) -> None:
    special, here, anywhere = rendering(chat_format)
    messages = data.draw(chats(harmless_texts(chat_format)))
    text, expected = here(messages), anywhere(messages)
    assert without_marks(text) == expected
    assert list(special.split(text)) == list(special.split(expected))


@pytest.mark.parametrize("chat_format", CHAT_FORMATS.values(), ids=list(CHAT_FORMATS))
@given(st.data())
def test_no_message_makes_a_control_token(chat_format: ChatFormat, data: st.DataObject) -> None:
    special, here, _ = rendering(chat_format)
    messages = data.draw(chats(hostile_texts(chat_format)))
    harmless = [{**message, "content": "xyz"} for message in messages]
    assert list(special.split(here(messages)))[1::2] == list(special.split(here(harmless)))[1::2]


METHODS = (
    *("capitalize()", "casefold()", "center(9)", "expandtabs()", "format(1)", "join(['a', 'b'])", "ljust(9)", "lower()", "lstrip()"),
    *("partition('x')", "removeprefix('x')", "replace('x', 'y')", "rsplit('x')", "split('x')", "splitlines()", "strip('x')", "swapcase()"),
    *("title()", "translate({})", "upper()", "zfill(9)", "rpartition('x')", "removesuffix('x')", "rjust(9)", "rstrip()"),
)
ARGUMENTS = {
    "batch": "2",
    "slice": "2",
    "attr": "'x'",
    "indent": "2",
    "map": "'upper'",
    "replace": "'x', 'y'",
    "truncate": "9",
    "wordwrap": "9",
}


def filters() -> list[str]:
    names = sorted(TemplateEnvironment(()).filters)
    return [f"{name}({ARGUMENTS[name]})" if name in ARGUMENTS else name for name in names]


@pytest.mark.parametrize(
    "expression", [*(f"c.{call}" for call in METHODS), *(f"c|{one}" for one in filters()), "c[1:]", "c ~ ' '", "c + '\n'"]
)
def test_whatever_is_made_of_a_clients_text_is_a_clients(expression: str) -> None:
    """In the sandbox every value either is no text, or is known to come from a client, or has its special texts broken."""
    environment, special = TemplateEnvironment(("<|x|>",)), SpecialTexts(("<|x|>",))
    seen: list[object] = []

    def keep(value: object) -> str:
        seen.append(value if isinstance(value, str) or not isinstance(value, Iterable) else list(value))
        return ""

    code = environment.compile_template(f"{{{{ keep({expression}) }}}}")
    with contextlib.suppress(AttributeError, TypeError, ValueError, jinja2.TemplateError):  # no filter of texts
        list(environment.render_chunks(code, {"keep": keep, "c": Content("a <|x|> <|x|> b")}))
    assert all(isinstance(text, Content) or len(list(special.split(text))) == 1 for text in _texts_in(seen))


def _texts_in(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return list(itertools.chain.from_iterable(map(_texts_in, value))) if isinstance(value, (list, tuple)) else []


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "'<|x|>' + c",
            "'<|x|>' ~ c",
            "'<|x|>%s' % c",
            "'<|x|>%s' % (c,)",
            "'<|x|>%(c)s' % {'c': c}",
            "'<|x|>{}'.format(c)",
            "['<|x|>', c]|join",
        ),
        *("'<|x|>{c}'.format(c=c)", "'<|x|>'.join(['', c])", "'<|x|>y'.replace('y', c)", "'<|x|>y'|replace('y', c)", "'<|x|>%s'|format(c)"),
        *(
            "['<|x|>', c]|sum(start='')",
            "'<|x|>{}'.format([c])",
            "'<|x|>%s' % [c]",
            "'<|x|>' ~ [c]",
            "'<|x|>' ~ {'k': c}",
            "'<|x|>' ~ [c]|tojson",
        ),
        *("'<|x|>' ~ [c]|string", "'<|x|>' ~ [c]|trim", "'<|x|>' ~ (c|safe)"),
    ],
)
def test_what_the_template_writes_beside_it_counts(expression: str) -> None:
    environment = TemplateEnvironment(("<|x|>",))
    code = environment.compile_template(f"{{{{ {expression} }}}}")
    pieces = list(SpecialTexts(("<|x|>",)).split("".join(environment.render_chunks(code, {"c": as_content("<|x|>|x|>")}))))
    assert pieces[0::2][0] == ""
    assert pieces[1::2] == ["<|x|>"]


def test_contents_are_marked_wherever_they_are() -> None:
    value = as_content({"a": ["b", {"c": None}], "d": 1, "e": "\ud800"})
    assert value == {"a": ["b", {"c": None}], "d": 1, "e": "\ufffd"}
    assert has_content({"x": [1, Content("y")]})
    assert has_content({Content("x"): 1})
    assert not has_content({"x": [1, "y", None]})
