"""Chat templates that share the processes they are rendered in, since each takes a while to begin."""

import datetime
from collections.abc import Callable, Iterable

from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.template_process import TemplateProcesses

PROCESSES = TemplateProcesses()
"""Ended with the tests."""


def make_template(
    source: str, *, control_texts: Iterable[str] = (), now: Callable[[], datetime.datetime] = datetime.datetime.now
) -> ChatTemplate:
    return ChatTemplate(
        source, special_texts={"bos_token": "<s>", "eos_token": "</s>"}, processes=PROCESSES, control_texts=control_texts, now=now
    )
