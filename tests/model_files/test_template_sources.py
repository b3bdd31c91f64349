"""Where chat templates are written, which of several is used, and which variables of theirs a request may give."""

from pathlib import Path
from typing import Any

import pytest

from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.errors import CorruptModelFile, InvalidTemplate, UnsupportedModel
from dairllm.model_files.special_texts import without_marks
from dairllm.model_files.template_sources import load_chat_template, read_templates
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.templates import PROCESSES, make_template
from tests.instruments.tokenizer_files import folder_of, trained

MESSAGES = [{"role": "user", "content": "x"}]
NAMED = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools[0].function.name }}"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"tokenizer_config.json": {"chat_template": "c"}}, {"default": "c"}),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, {one["name"]: one["template"] for one in NAMED}),
        ({"tokenizer_config.json": {"chat_template": "c"}, "chat_template.json": {"chat_template": "j"}}, {"default": "j"}),
        ({"chat_template.json": {"chat_template": {"default": "j", "rag": "r"}}}, {"default": "j", "rag": "r"}),
        ({"chat_template.jinja": "x\u00e9", "tokenizer_config.json": {"chat_template": "c"}}, {"default": "x\u00e9"}),
    ],
)
def test_files_of_a_folder(tmp_path: Path, files: dict[str, Any], expected: dict[str, str]) -> None:
    assert read_templates(folder_of(tmp_path, files)) == expected


@pytest.mark.parametrize("value", [7, ["a"], [{"name": "a"}], [{"name": 1, "template": "x"}], {"default": 3}, [{}] * 100])
def test_what_is_no_template(tmp_path: Path, value: object) -> None:
    with pytest.raises(InvalidTemplate, match=r"tokenizer_config\.json has"):
        read_templates(folder_of(tmp_path, {"tokenizer_config.json": {"chat_template": value}}))


def test_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelFile, match=r"tokenizer_config\.json"):
        read_templates(folder_of(tmp_path, {"tokenizer_config.json": "{"}))


def test_metadata_of_a_gguf_file(tmp_path: Path) -> None:
    metadata: dict[str, Any] = {
        "tokenizer.chat_template": "d",
        "tokenizer.chat_template.tool_use": "t",
        "tokenizer.chat_templates": ["tool_use"],
    }
    container = Container(tmp_path / "a.gguf", metadata, kind="GGUF file", conventions=Conventions.GGUF, name="a", files=(), tensors={})
    assert read_templates(container) == {"default": "d", "tool_use": "t"}


def test_tools_choose_their_own_template(tmp_path: Path) -> None:
    container = folder_of(tmp_path, {"tokenizer.json": trained("byte level"), "tokenizer_config.json": {"chat_template": NAMED}})
    template = load_chat_template(container, load_tokenizer(container), PROCESSES)
    assert template.takes_tools
    assert without_marks(template.render(MESSAGES)) == "d"
    assert without_marks(template.render(MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}])) == "tf"


def test_several_without_a_default_are_refused(tmp_path: Path) -> None:
    value = [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]
    container = folder_of(tmp_path, {"tokenizer.json": trained("byte level"), "tokenizer_config.json": {"chat_template": value}})
    with pytest.raises(UnsupportedModel, match="templates a, b; expected one called default"):
        load_chat_template(container, load_tokenizer(container), PROCESSES)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content }}", set()),
        ("{% if enable_thinking is defined and not enable_thinking %}{{ bos_token }}{% endif %}", {"enable_thinking"}),
        ("{% set x = y|default(1) %}{{ x }}{% for m in messages %}{{ m.z }}{{ loop.index }}{% endfor %}", {"y"}),
        ("{% set ns = namespace(a=1) %}{{ range(2)|list }}{{ strftime_now('%d') }}{{ raise_exception('no') if documents }}", {"documents"}),
        ("{% macro f(a) %}{{ a ~ date_string }}{% endmacro %}{{ f(1) }}{% if tools %}{% endif %}", {"date_string"}),
    ],
)
def test_variables_of_a_template(source: str, expected: set[str]) -> None:
    template = make_template(source)
    assert template.variables == expected
    assert template.takes_tools is ("tools" in source)
