"""Chat templates: what real ones use works, and nothing that a template can say reaches Python or keeps the machine busy."""

import datetime
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.chat_template import ChatTemplate, load_chat_template
from dairllm.model_files.errors import InvalidTemplate, UnsupportedModel
from dairllm.model_files.gguf_file import read_gguf
from dairllm.model_files.tokenizer import load_tokenizer
from tests.tiny_gguf import TinyLlama, add_tokenizer, random_weights, write_llama

MESSAGES = [{"role": "user", "content": "x"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", now=lambda: datetime.datetime(2024, 7, 26))


def outcome(source: str) -> str:
    """What the template renders, or 'refused'; whatever else is raised is a hole in the sandbox."""
    try:
        return template(source).render(MESSAGES, deadline_s=0.5)
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


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% continue %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
        "{% for a in range(99999) %}{% set x = range(99999)|map('string')|join %}{% endfor %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for x in range(99999) recursive %}{{ loop(range(99999)) if loop.depth0 < 3 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}"
        "{% for i in range(99999) %}{% for j in range(9999) %}{% call m() %}a{% endcall %}{% endfor %}{% endfor %}",
        "{{ 'x'*10**10 }}",
        "{{ [0]*10**10 }}",
        "{{ 10**10**9 - 10**(10**9) }}",
        DOUBLING.replace("START", "2").replace("STEP", "n.x*n.x"),
        DOUBLING.replace("START", "'ab'").replace("STEP", "n.x ~ n.x"),
        DOUBLING.replace("START", "'ab'").replace("STEP", "n.x + n.x"),
        DOUBLING.replace("START", "'ab'").replace("STEP", "[n.x, n.x]|join"),
        DOUBLING.replace("START", "'ab'").replace("STEP", "'%s%s' % (n.x, n.x)"),
        DOUBLING.replace("START", "[1]").replace("STEP", "[n.x, n.x]"),
        DOUBLING.replace("START", "[1]").replace("STEP", "n.x + n.x"),
        DOUBLING.replace("START", "[1]").replace("STEP", "dict(a=n.x, b=n.x)"),
        DOUBLING.replace("START", "[1]").replace("STEP", "{'a': n.x, 'b': n.x}"),
        DOUBLING.replace("START", "[1]").replace("STEP", "[n.x, n.x]|sum(start=[])"),
        "{% set n = namespace() %}{% set n.a = n %}{{ n }}{{ [n] }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%(a)9999999999d' % {'a': 1} }}",
        "{{ 'x'.center(10**10) }}",
        "{{ 'x'|center(10**10) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ 'x'.zfill(10**10) }}",
        "{{ '\t'.expandtabs(10**10) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ '%9999999999d'|format(1) }}",
        "{{ (1).to_bytes(10**10, 'big') }}",
        "{{ ('a'*1000000)|replace('a', 'b'*1000000) }}",
        "{{ ('a'*1000000).replace('', 'b'*1000000) }}",
        "{{ (['a'*100000]*80)|join('b'*1000000) }}",
        "{{ ('b'*1000000).join(['a']*1000) }}",
        "{{ (['a'*1000000]*1000)|string }}",
        "{{ [1]|tojson(indent=10**9) }}",
        "{{ [1,2]|tojson(separators=('x'*1000000, ':')) }}",
        "{{ 'a'|indent(10**9) }}",
        "{{ [1]|batch(10**9, 0)|list }}",
        "{{ [1]|slice(10**9)|list }}",
        "{{ 1|round(10**9, 'ceil') }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ lipsum(n=100000) }}",
        "{{ ('a'*4000000).strip('b'*4000000) }}",
        "{% for i in range(99999) %}" + "y" * 100_000 + "{% endfor %}",
        "{% set x %}{% for i in range(99999) %}" + "y" * 100_000 + "{% endfor %}{% endset %}",
        "{% set a = 'x'*8000000 %}" + "{{ a == 'x'*8000000 }}" * 1000,
        "{% set a = 'x'*8000000 %}" + "{{ a < a[1:] }}" * 1000,
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ " + "-" * 100_000 + "1 }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
        "{{ 1 }}" + " " * (257 << 10),
    ],
)
def test_costly_templates_are_stopped(source: str) -> None:
    before = time.process_time()
    with pytest.raises(InvalidTemplate) as caught:
        template(source).render(MESSAGES, deadline_s=0.3)
    assert time.process_time() - before < 3.0
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


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
        load_chat_template(parsed, load_tokenizer(parsed))


def test_template_of_a_file(tmp_path: Path) -> None:
    model = TinyLlama(vocab_size=288)
    parsed = read_gguf(write_llama(tmp_path / "m.gguf", model, random_weights(model, 0), with_tokenizer=True))
    rendered = load_chat_template(parsed, load_tokenizer(parsed)).render(MESSAGES)
    assert rendered == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
