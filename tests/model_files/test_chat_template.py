"""Chat templates: what real ones use works, and nothing that a template can say reaches Python or costs more than a request may."""

import contextlib
import datetime
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.errors import InvalidTemplate, UnsupportedModel
from dairllm.model_files.special_texts import without_marks
from dairllm.model_files.template_process import TemplateProcesses
from dairllm.model_files.template_sources import load_chat_template
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.templates import PROCESSES, make_template
from tests.tiny_gguf import TinyLlama, add_tokenizer, random_weights, write_llama

MESSAGES = [{"role": "user", "content": "x"}]


def template(source: str) -> ChatTemplate:
    return make_template(source, now=lambda: datetime.datetime(2024, 7, 26))


def outcome(source: str) -> str:
    """What the template renders, or 'refused'; whatever else is raised is a hole in the sandbox."""
    try:
        return template(source).render(MESSAGES)
    except InvalidTemplate:
        return "refused"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ messages[0].role }}{{ eos_token }}", "<s>xuser</s>"),
        ("{% if add_generation_prompt %}yes{% endif %}{{ tools }}", "yesNone"),
        ("{{ [1,'<',{'b':None}]|tojson }}", '[1, "<", {"b": null}]'),
        ("{{ {'b':1,'a':'é'}|tojson(indent=2) }}", '{\n  "b": 1,\n  "a": "é"\n}'),
        ("{{ 'a b'.split(' ')|join('-') }}{{ ' '.join(['c','d']) }}", "a-bc d"),
        (
            "{% set ns=namespace(n=0) %}{% for m in messages %}{% set ns.n=ns.n+1 %}{{ loop.index0 }}{{ loop.last }}{% endfor %}{{ ns.n }}",
            "0True1",
        ),
        ("{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(messages[0].role)|upper }}", "<USER2>"),
        ("{{ messages|map(attribute='role')|list }}", "['user']"),
        ("{{ (messages|selectattr('role','equalto','user')|list)[0].content }}{{ messages|rejectattr('role','eq','user')|list }}", "x[]"),
        ("{{ 'x' in ['x','y'] and messages[0]['content'] is string and y is not defined }}", "True"),
        ("{% generation %}hi{% endgeneration %}", "hi"),
        ("{% for a, b in {'k':1}.items() %}{{ a ~ b }}{% endfor %}", "k1"),
        ("{% for i in range(5) %}{% if i==2 %}{% break %}{% endif %}{{i}}{% endfor %}", "01"),
        ("{{ messages[::-1]|length }}{{ 'a'*3 }}{{ '%s-%d%%' % ('x', 3) }}{{ -7 % 3 }}{{ 2**10 }}", "1aaax-3%21024"),
        ("{{ 'a\n\nb'|indent(2) }}|{{ 'a\nb\n'|indent(2, true) }}|{{ ''|indent }}", "a\n\n  b|  a\n  b\n|"),
        ("{{ ' a '|trim }}{{ ' a '.strip() }}{{ [1,2]|sum }}{{ 2.567|round(1) }}", "aa32.6"),
        ("{{ 'aXa'|replace('a','b') }}{{ 'aa'.replace('a','c',1) }}", "bXbca"),
        ("{%- if true %}\n  a\n  {%- endif %}\n{% if true %}\nb\n{% endif %}", "  ab\n"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ x|upper }}", "X"),
        ("{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}in{% endcall %}", "[in]"),
        ("{% for x in [[1],[2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "12"),
        ("{{ 'abc'|list }}{{ {'a':1}|items|list }}{{ 'a,b'|string }}{{ [3,1]|sort|first }}", "['a', 'b', 'c'][('a', 1)]a,b1"),
    ],
)
def test_what_templates_use(source: str, expected: str) -> None:
    assert template(source).render(MESSAGES) == expected


def test_additional_variables_and_tools() -> None:
    source = "{{ enable_thinking }}{{ tools[0].name }}{{ messages|length }}"
    assert template(source).render(MESSAGES, tools=[{"name": "f"}], variables={"enable_thinking": False, "messages": []}) == "Falsef1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.budget }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ environment.charge() }}",
        "{{ context.environment }}",
        "{{ range.__self__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages|map('attr', '__class__')|map(attribute='__mro__')|join }}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str) -> None:
    assert outcome(source) in {"", "refused"}


DOUBLING = "{% set n = namespace(x=START) %}{% for i in range(100) %}{% set n.x = STEP %}{% endfor %}{{ n.x }}"
TOO_MUCH = r"takes (longer than 0\.5 s|more than 256 MiB)"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}", TOO_MUCH),
        ("{{ ('a'*9000000).rfind('a'*4000000 + 'b' + 'a'*4000000) }}", TOO_MUCH),
        ("{{ ('f'*6000000)|int(0, 16) // ('f'*3000000)|int(0, 16) > 1 }}", TOO_MUCH),
        ("{{ 'x'*10**10 }}", TOO_MUCH),
        ("{{ '%9999999999d' % 1 }}", TOO_MUCH),
        ("{{ ('a'*1000000)|replace('a', 'b'*1000000) }}", TOO_MUCH),
        (DOUBLING.replace("START", "'ab'").replace("STEP", "n.x ~ n.x"), TOO_MUCH),
        (DOUBLING.replace("START", "[1]").replace("STEP", "n.x + n.x"), TOO_MUCH),
        ("{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}", "a prompt of more than"),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "does not compile"),
        ("{{ " + "-" * 100_000 + "1 }}", "does not compile"),
        ("{% if 1 %}" * 500 + "{% endif %}" * 500, "does not compile"),
        ("{{ 1 }}" + " " * (257 << 10), "expected at most"),
    ],
)
def test_costly_templates_are_stopped(source: str, expected: str) -> None:
    with pytest.raises(InvalidTemplate, match=expected) as caught:
        template(source).render(MESSAGES, deadline_s=0.5)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_child_that_died_is_replaced() -> None:
    processes, before = TemplateProcesses(most=1), set(children_of(os.getpid()))
    with contextlib.closing(processes):
        one = ChatTemplate("{{ messages|length }}", special_texts={}, processes=processes)
        (child,) = set(children_of(os.getpid())) - before
        child.kill()
        child.wait(10)
        with pytest.raises(InvalidTemplate, match="ended the process"):
            one.render(MESSAGES)
        assert one.render(MESSAGES) == "1"
    assert set(children_of(os.getpid())) == before


@pytest.mark.parametrize("source", ["{{ 1 }}", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"])
def test_nothing_outlives_its_parent(source: str) -> None:
    """Whether it waits for a request or is in the middle of one."""
    code = f"""
import sys
from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.special_texts import without_marks
from dairllm.model_files.template_process import TemplateProcesses
one = ChatTemplate({source!r}, special_texts={{}}, processes=TemplateProcesses())
print(flush=True)
one.render([], deadline_s=1)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = children_of(parent.pid)
        parent.kill()
    child.wait(30)


def children_of(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children() if "template_child" in " ".join(one.cmdline())]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for %}", "does not compile.*line 1"),
        ("{{ raise_exception('roles must\nalternate') }}", "refuses these messages: roles must alternate"),
        ("{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "cannot be rendered"),
        ("{{ messages|nonsense }}", "No filter named 'nonsense'"),
        ("{{ cycler }}", "prints a type"),
    ],
)
def test_failures_are_one_sentence(source: str, expected: str) -> None:
    with pytest.raises(InvalidTemplate, match=expected):
        template(source).render(MESSAGES)


def test_messages_must_be_json() -> None:
    with pytest.raises(InvalidTemplate, match="something other than JSON"):
        template("{{ messages }}").render([{"role": "user", "content": object()}])


@given(st.text(alphabet="{}%()[]|~'\" abfor in+*<-=.0\n", max_size=60))
def test_any_text_renders_or_is_refused(source: str) -> None:
    outcome(source)


@given(st.text(), st.text())
def test_contents_come_through_unchanged(role: str, content: str) -> None:
    rendered = template("{% for m in messages %}{{ m['role'] ~ ':' + m.content }}{% endfor %}").render([{"role": role, "content": content}])
    assert rendered == f"{role}:{content}"


def test_long_conversations_are_no_problem() -> None:
    source = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content']|trim + '\n' }}{% endfor %}"
    rendered = template(source).render([{"role": "user", "content": "word " * 200}] * 2000)
    assert len(rendered) == 2000 * (len("<user>\n") + 999)


def test_model_without_template(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    add_tokenizer(writer, 288)
    del writer.kv_data[0]["tokenizer.chat_template"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    parsed = read_gguf(tmp_path / "m.gguf")
    with pytest.raises(UnsupportedModel, match=r"no chat template.*/v1/completions"):
        load_chat_template(parsed, load_tokenizer(parsed), PROCESSES)


def test_template_of_a_file(tmp_path: Path) -> None:
    model = TinyLlama(vocab_size=288)
    parsed = read_gguf(write_llama(tmp_path / "m.gguf", model, random_weights(model, 0), with_tokenizer=True))
    rendered = load_chat_template(parsed, load_tokenizer(parsed), PROCESSES).render(MESSAGES)
    assert without_marks(rendered) == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
