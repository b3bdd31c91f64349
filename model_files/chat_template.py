"""From chat messages to the text of a prompt, by the Jinja template that comes with the model.

The interface of templates is that of transformers' `apply_chat_template`: messages, tools, add_generation_prompt, bos_token, eos_token,
raise_exception, strftime_now and a `tojson` that does not escape HTML. Which of several templates is used is as there, too: `tool_use`
where there are tools, else `default`.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dairllm.model_files.errors import InvalidTemplate
from dairllm.model_files.template_process import Template, TemplateProcesses

MAX_TEMPLATE_CHARACTERS = 256 << 10
RENDER_DEADLINE_S = 2.0
COMPILE_DEADLINE_S = 10.0
KNOWN_ROLES = ("system", "user", "assistant", "tool")
"""What templates may write a special token around, like `<|user|>`."""
DEFAULT, TOOL_USE = "default", "tool_use"
_GIVEN = frozenset(("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"))
"""Variables that are no matter of a request's."""


class ChatTemplate:
    """A compiled template, maybe with another one for conversations with tools; safe to use from several threads.

    Rendering takes up to RENDER_DEADLINE_S in another process, and may have to wait for that: keep it off the event loop.
    """

    def __init__(
        self,
        source: str,
        *,
        special_texts: Mapping[str, str],
        processes: TemplateProcesses,
        tool_source: str | None = None,
        control_texts: Iterable[str] = (),
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        """special_texts: `Tokenizer.template_texts`. control_texts: those of control tokens. processes: where it is compiled and rendered;
        whoever made them closes them.

        InvalidTemplate if a source is too long or does not compile.
        """
        self._now = now
        self._tokens = special_texts
        self._processes = processes
        control = tuple(sorted(control_texts))
        self._template, names = _compile(source, control, processes)
        self._tool_template, tool_names = (self._template, names) if tool_source is None else _compile(tool_source, control, processes)
        self.takes_tools = "tools" in tool_names
        self.variables = (names | tool_names) - _GIVEN - special_texts.keys()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        deadline_s: float = RENDER_DEADLINE_S,
    ) -> str:
        """The prompt for these messages, for `Tokenizer.encode_prompt`: special texts that the messages contain are marked as none.

        Messages, tools and variables are JSON-like (str, int, float, bool, None, list, dict); `variables` are additional ones, such as
        `enable_thinking`. InvalidTemplate, in one sentence, if the template refuses the messages, fails, or exceeds its time or memory.
        RendererUnavailable.
        """
        request = {
            "given": {**(variables or {}), "messages": list(messages), "tools": tools},
            "own": {**self._tokens, "add_generation_prompt": add_generation_prompt},
            "roles": KNOWN_ROLES,
            "now": self._now().isoformat(),
        }
        return self._processes.render(self._tool_template if tools else self._template, request, deadline_s)

    def close(self) -> None:
        """Ends the processes; they begin again if need be."""
        self._processes.close()


def _compile(source: str, control_texts: tuple[str, ...], processes: TemplateProcesses) -> tuple[Template, frozenset[str]]:
    """With the names of the variables that it reads."""
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidTemplate(f"the chat template has {len(source)} characters; expected at most {MAX_TEMPLATE_CHARACTERS}")
    digest = hashlib.sha256("\0".join((source, *control_texts)).encode(errors="surrogatepass"))
    template = Template(digest.hexdigest(), source, control_texts)
    return template, frozenset(processes.compile(template, COMPILE_DEADLINE_S))
