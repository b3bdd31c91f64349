"""From chat messages to the text of a prompt, by the Jinja template in the model file.

The interface of templates is that of transformers' `apply_chat_template`: messages, tools, add_generation_prompt, bos_token, eos_token,
raise_exception, strftime_now and a `tojson` that does not escape HTML.
"""

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from types import CodeType
from typing import Any, NoReturn

import jinja2

from dairllm.model_files.errors import InvalidTemplate, UnsupportedModel
from dairllm.model_files.gguf_file import GgufFile
from dairllm.model_files.template_sandbox import GuardedEnvironment, TemplateLimitExceeded, is_plain, weigh
from dairllm.model_files.tokenizer import Tokenizer

MAX_TEMPLATE_CHARACTERS = 256 << 10
MAX_INPUT_WEIGHT = 32 << 20
MAX_OUTPUT_CHARACTERS = 16 << 20
RENDER_DEADLINE_S = 2.0

# What an expression on plain values can raise. Anything else would be a defect of the sandbox and must not be hidden.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_DATE_FORMAT = re.compile(r"(?:[^%]|%[-#]?[A-Za-z%]){0,256}")


class _RaisedByTemplate(jinja2.TemplateError):
    """The template called raise_exception."""


class ChatTemplate:
    """A compiled template; safe to use from several threads.

    Rendering is CPU work of up to RENDER_DEADLINE_S: keep it off the event loop.
    """

    def __init__(
        self, source: str, *, bos_token: str, eos_token: str, now: Callable[[], datetime.datetime] = datetime.datetime.now
    ) -> None:
        """InvalidTemplate if the source is too long or does not compile."""
        self.source = source
        self._now = now
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._code = _compile(source)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        deadline_s: float = RENDER_DEADLINE_S,
    ) -> str:
        """The prompt for these messages; `variables` are additional ones, such as `enable_thinking`.

        Messages, tools and variables are JSON-like (str, int, float, bool, None, list, dict). InvalidTemplate, in one
        sentence, if the template refuses the messages, fails, or exceeds its time or size.
        """
        given = {**(variables or {}), "messages": list(messages), "tools": tools}
        if weigh(given) > MAX_INPUT_WEIGHT or not is_plain(given):
            raise InvalidTemplate("the messages are too large for the chat template, or contain something other than JSON")
        environment = GuardedEnvironment(deadline_s)
        functions = {"raise_exception": _raise_exception, "strftime_now": self._strftime_now}
        return _render(environment, self._code, {**given, **self._tokens, **functions, "add_generation_prompt": add_generation_prompt})

    def _strftime_now(self, date_format: str) -> str:
        if not isinstance(date_format, str) or not _DATE_FORMAT.fullmatch(date_format):
            raise jinja2.TemplateRuntimeError("it asks for the date in a format with field widths, or one that is too long")
        return self._now().strftime(date_format)


def load_chat_template(gguf: GgufFile, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of a file; UnsupportedModel if it has none, InvalidTemplate if it does not compile."""
    source = gguf.text("tokenizer.chat_template", "")
    if not source:
        raise UnsupportedModel(f"the model {gguf.path.name} has no chat template; use /v1/completions, which needs none")
    bos_token, eos_token = tokenizer.special_text(tokenizer.bos_id), tokenizer.special_text(tokenizer.eos_id)
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token)


def _compile(source: str) -> CodeType:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidTemplate(f"the chat template has {len(source)} characters; expected at most {MAX_TEMPLATE_CHARACTERS}")
    try:
        return GuardedEnvironment(RENDER_DEADLINE_S).compile_guarded(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidTemplate(f"the chat template does not compile: {error.message} in line {error.lineno}") from error
    except _TEMPLATE_FAILURES as error:
        raise InvalidTemplate(f"the chat template does not compile: {_in_one_line(error)}") from error


def _render(environment: GuardedEnvironment, code: CodeType, variables: Mapping[str, object]) -> str:
    try:
        return _collect(environment, code, variables)
    except _RaisedByTemplate as error:
        raise InvalidTemplate(f"the chat template refuses these messages: {_in_one_line(error)}") from error
    except _TEMPLATE_FAILURES as error:
        raise InvalidTemplate(f"the chat template cannot be rendered: {_in_one_line(error)}") from error


def _collect(environment: GuardedEnvironment, code: CodeType, variables: Mapping[str, object]) -> str:
    chunks: list[str] = []
    length = 0
    for chunk in environment.render_chunks(code, variables):
        length += len(chunk)
        if length > MAX_OUTPUT_CHARACTERS:
            raise TemplateLimitExceeded(f"it makes a prompt of more than {MAX_OUTPUT_CHARACTERS} characters")
        chunks.append(chunk)
    return "".join(chunks)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedByTemplate(message if isinstance(message, str) else "no reason given")
