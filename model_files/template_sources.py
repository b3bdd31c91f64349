"""Where a model's chat templates are written: metadata of a GGUF file, files of a folder, a distributed-llama tokenizer.

Of a folder, as transformers reads it: chat_template.jinja, then chat_template.json, then tokenizer_config.json, which may name several.
"""

from collections.abc import Mapping
from typing import Any

from dairllm.model_files.chat_template import DEFAULT, MAX_TEMPLATE_CHARACTERS, TOOL_USE, ChatTemplate
from dairllm.model_files.containers import Container
from dairllm.model_files.containers.distributed_llama import TOKENIZER
from dairllm.model_files.containers.regular_files import read_whole
from dairllm.model_files.distributed_llama_tokenizer import read_chat_template
from dairllm.model_files.errors import InvalidTemplate, UnsupportedModel
from dairllm.model_files.hugging_face_tokenizer import TOKENIZER_CONFIG, read_companion
from dairllm.model_files.template_process import TemplateProcesses
from dairllm.model_files.tokenizer import Tokenizer

CHAT_TEMPLATE_JINJA, CHAT_TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"
_GGUF_KEY = "tokenizer.chat_template"
MAX_TEMPLATES = 64


def load_chat_template(container: Container, tokenizer: Tokenizer, processes: TemplateProcesses) -> ChatTemplate:
    """The templates of a model; UnsupportedModel if it has none, InvalidTemplate if one does not compile."""
    sources = read_templates(container)
    if not sources:
        raise UnsupportedModel(f"the model {container.path.name} has no chat template; use /v1/completions, which needs none")
    default = sources.get(DEFAULT) or (next(iter(sources.values())) if len(sources) == 1 else None)
    if default is None:
        names = ", ".join(sorted(sources))[:200]
        raise UnsupportedModel(f"the model {container.path.name} has the chat templates {names}; expected one called {DEFAULT}")
    return ChatTemplate(
        default,
        tool_source=sources.get(TOOL_USE),
        special_texts=tokenizer.template_texts,
        processes=processes,
        control_texts=tokenizer.control_texts,
    )


def read_templates(container: Container) -> Mapping[str, str]:
    """By name, DEFAULT for one without a name."""
    if CHAT_TEMPLATE_JINJA in container.companions:
        data = read_whole(container.companions[CHAT_TEMPLATE_JINJA], 4 * MAX_TEMPLATE_CHARACTERS)
        try:
            return {DEFAULT: data.decode()}
        except UnicodeDecodeError as error:
            raise InvalidTemplate(f"{container.companions[CHAT_TEMPLATE_JINJA]} is not UTF-8; expected a template") from error
    for name in (CHAT_TEMPLATE_JSON, TOKENIZER_CONFIG):
        if found := _named(f"{container.path.name}/{name}", read_companion(container, name).get("chat_template")):
            return found
    if TOKENIZER in container.companions:
        source = read_chat_template(container.companions[TOKENIZER])
        return {DEFAULT: source} if source else {}
    return _in_metadata(container)


def _named(thing: str, value: Any) -> Mapping[str, str]:
    """One text, or a list of objects with name and template, or an object of them."""
    pairs: list[tuple[Any, Any]]
    match value:
        case None:
            return {}
        case str():
            return {DEFAULT: value}
        case list() if all(isinstance(one, dict) for one in value):
            pairs = [(one.get("name"), one.get("template")) for one in value]
        case dict():
            pairs = list(value.items())
        case _:
            pairs = [(None, None)]
    if len(pairs) > MAX_TEMPLATES or not all(isinstance(part, str) for pair in pairs for part in pair):
        raise InvalidTemplate(f"{thing} has {len(pairs)} chat templates of which one is no text; expected up to {MAX_TEMPLATES} with names")
    return dict(pairs)


def _in_metadata(container: Container) -> Mapping[str, str]:
    names = {key: key.removeprefix(f"{_GGUF_KEY}.") for key in container.metadata if key.startswith(f"{_GGUF_KEY}.")}
    found = {name: container.text(key) for key, name in names.items()}
    source = container.text(_GGUF_KEY, "")
    return found | ({DEFAULT: source} if source else {})
