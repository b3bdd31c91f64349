"""From chat messages to the text of a prompt, by the Jinja template in the model file.

The interface of templates is that of transformers' `apply_chat_template`: messages, tools, add_generation_prompt, bos_token, eos_token,
raise_exception, strftime_now and a `tojson` that does not escape HTML.
"""

import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import InvalidTemplate, UnsupportedModel
from dairllm.model_files.template_process import Template, TemplateProcesses
from dairllm.model_files.tokenizer import Tokenizer

MAX_TEMPLATE_CHARACTERS = 256 << 10
RENDER_DEADLINE_S = 2.0
COMPILE_DEADLINE_S = 10.0
KNOWN_ROLES = ("system", "user", "assistant", "tool")
"""What templates may write a special token around, like `<|user|>`."""


class ChatTemplate:
    """A compiled template; safe to use from several threads.

    Rendering takes up to RENDER_DEADLINE_S in another process, and may have to wait for that: keep it off the event loop.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        processes: TemplateProcesses,
        control_texts: Iterable[str] = (),
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        """control_texts: those of control tokens. processes: where it is compiled and rendered; whoever made them closes them.

        InvalidTemplate if the source is too long or does not compile.
        """
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidTemplate(f"the chat template has {len(source)} characters; expected at most {MAX_TEMPLATE_CHARACTERS}")
        self.source = source
        self._now = now
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        control = tuple(sorted(control_texts))
        digest = hashlib.sha256("\0".join((source, *control)).encode(errors="surrogatepass"))
        self._template = Template(digest.hexdigest(), source, control)
        self._processes = processes
        processes.compile(self._template, COMPILE_DEADLINE_S)

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
        return self._processes.render(self._template, request, deadline_s)

    def close(self) -> None:
        """Ends the processes; they begin again if need be."""
        self._processes.close()


def load_chat_template(gguf: Container, tokenizer: Tokenizer, processes: TemplateProcesses) -> ChatTemplate:
    """The template of a file; UnsupportedModel if it has none, InvalidTemplate if it does not compile."""
    source = gguf.text("tokenizer.chat_template", "")
    if not source:
        raise UnsupportedModel(f"the model {gguf.path.name} has no chat template; use /v1/completions, which needs none")
    return ChatTemplate(
        source,
        bos_token=tokenizer.special_text(tokenizer.bos_id),
        eos_token=tokenizer.special_text(tokenizer.eos_id),
        processes=processes,
        control_texts=tokenizer.control_texts,
    )
