"""Runs `template_child`: a process that renders, is killed when it takes too long, and is there again for the next request."""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from dairllm.model_files.errors import InvalidTemplate, RendererUnavailable
from dairllm.model_files.template_messages import (
    HEADER,
    MAX_ANSWER_BYTES,
    MAX_REQUEST_BYTES,
    MEMORY_BYTES,
    RenderOutcome,
    parse_answer,
    request_bytes,
)

START_DEADLINE_S = 60.0
READ_BYTES = 1 << 20
MAX_TEMPLATES = 16
_FAILURE = "the chat template cannot be rendered:"
_COMMAND = (sys.executable, "-m", "dairllm.model_files.template_child")


class Template(NamedTuple):
    """name: equal for equal ones."""

    name: str
    source: str
    control_texts: tuple[str, ...]

    def preparation(self, deadline_s: float) -> bytes:
        return request_bytes({"template": self.name, "source": self.source, "control_texts": self.control_texts, "cpu_s": deadline_s})


class _Deadline:
    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._ends_at = time.monotonic() + deadline_s

    def wait(self, descriptor: int, event: int) -> None:
        """Until something can be done, or InvalidTemplate."""
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, self._ends_at - time.monotonic()) * 1000):
            raise InvalidTemplate(f"{_FAILURE} it takes longer than {self._deadline_s:g} s")


class TemplateProcess:
    """One child, for one thread at a time. templates: of those that it knows, by name, the variables; is_sound: it can be asked again.

    Everything raises InvalidTemplate, in one sentence.
    """

    def __init__(self) -> None:
        # A session of its own: Ctrl-C is for the parent. The child ends when its stdin does.
        self._child = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._pipes = (self._child.stdin, self._child.stdout)
        self._requests, self._answers = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self._requests, False)
        os.set_blocking(self._answers, False)
        self.templates: dict[str, list[str]] = {}
        self.is_sound = True
        try:
            self._answer(_Deadline(START_DEADLINE_S))
        except InvalidTemplate:
            self.close()
            raise

    def ask(self, request: bytes, deadline_s: float) -> str:
        self.is_sound = False
        deadline = _Deadline(deadline_s)
        self._send(request, deadline)
        outcome, text = self._answer(deadline)
        if outcome is RenderOutcome.OUT_OF_MEMORY:
            raise InvalidTemplate(f"{_FAILURE} it takes more than {MEMORY_BYTES >> 20} MiB of memory")
        self.is_sound = True
        if outcome is RenderOutcome.FAILED:
            raise InvalidTemplate(text)
        return text

    def kill(self) -> None:
        """From any thread; whoever uses it then closes it."""
        self._child.kill()
        self._child.wait()

    def close(self) -> None:
        self.kill()
        for pipe in self._pipes:
            pipe.close()

    def _send(self, data: bytes, deadline: _Deadline) -> None:
        left = memoryview(data)
        while left:
            deadline.wait(self._requests, select.POLLOUT)
            try:
                left = left[os.write(self._requests, left[:READ_BYTES]) :]
            except BrokenPipeError as error:
                raise _ended() from error

    def _answer(self, deadline: _Deadline) -> tuple[RenderOutcome, str]:
        (length,) = HEADER.unpack(self._read(HEADER.size, deadline))
        if length > MAX_ANSWER_BYTES:
            raise _ended()
        return parse_answer(self._read(length, deadline))

    def _read(self, length: int, deadline: _Deadline) -> bytes:
        data = bytearray()
        while len(data) < length:
            deadline.wait(self._answers, select.POLLIN)
            part = os.read(self._answers, min(length - len(data), READ_BYTES))
            if not part:
                raise _ended()
            data += part
        return bytes(data)


def _ended() -> InvalidTemplate:
    return InvalidTemplate(f"{_FAILURE} it ended the process that renders it")


class TemplateProcesses:
    """At most `most` children, begun when they are needed. Safe to use from several threads, which wait for each other."""

    def __init__(self, most: int = 2) -> None:
        self._slots = threading.BoundedSemaphore(most)
        self._idle: list[TemplateProcess] = []
        self._busy: set[TemplateProcess] = set()

    def compile(self, template: Template, deadline_s: float) -> list[str]:
        """Names of the variables that it reads. InvalidTemplate, in one sentence, if it does not compile."""
        with self._child(template, deadline_s) as child:
            return child.templates[template.name]

    def render(self, template: Template, request: Mapping[str, Any], deadline_s: float) -> str:
        """What a template makes of a request, with the marks of `special_texts`. InvalidTemplate, in one sentence, if it cannot be had."""
        try:
            data = request_bytes({**request, "template": template.name, "cpu_s": deadline_s})
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidTemplate("the messages contain something other than JSON") from error
        if len(data) > MAX_REQUEST_BYTES:
            raise InvalidTemplate(f"the messages have {len(data)} bytes; a chat template takes at most {MAX_REQUEST_BYTES}")
        with self._child(template, deadline_s) as child:
            return child.ask(data, deadline_s)

    def close(self) -> None:
        """Ends the children, whatever they do. More may be begun afterwards."""
        while self._idle:
            self._idle.pop().close()
        for child in tuple(self._busy):
            child.kill()

    @contextlib.contextmanager
    def _child(self, template: Template, deadline_s: float) -> Iterator[TemplateProcess]:
        """A child that knows the template. It is used again unless it must not be."""
        with self._slots:
            child = self._idle.pop() if self._idle else _begin_child()
            self._busy.add(child)
            try:
                if template.name not in child.templates:
                    child.templates[template.name] = child.ask(template.preparation(deadline_s), deadline_s).splitlines()
                yield child
            finally:
                self._busy.remove(child)
                if child.is_sound and len(child.templates) < MAX_TEMPLATES:
                    self._idle.append(child)
                else:
                    child.close()


def _begin_child() -> TemplateProcess:
    try:
        return TemplateProcess()
    except (OSError, InvalidTemplate) as error:
        raise RendererUnavailable(f"the process that renders chat templates cannot be started: {error}") from error
