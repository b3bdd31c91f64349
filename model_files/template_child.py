"""The process in which chat templates are compiled and rendered: `python -m dairllm.model_files.template_child`.

Requests come on stdin and answers go to stdout, each a message of `template_messages`; the first answer, to no request, says that it has
begun. It ends when stdin does. The kernel holds it to MEMORY_BYTES more than it began with, and to the CPU time that each request names.
Wall time is the parent's matter (`template_process`), which kills it.
"""

import contextlib
import datetime
import math
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, NoReturn

import jinja2

from dairllm.model_files.template_messages import MEMORY_BYTES, RenderOutcome, read_message, write_message
from dairllm.model_files.template_sandbox import TemplateEnvironment, as_content

MAX_OUTPUT_CHARACTERS = 16 << 20

# What an expression on plain values can raise. Anything else would be a defect of the sandbox and must not be hidden.
_TEMPLATE_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _RaisedByTemplate(jinja2.TemplateError):
    """The template called raise_exception."""


class _Compiled(NamedTuple):
    environment: TemplateEnvironment
    code: CodeType


_templates: dict[str, _Compiled] = {}


def compile_template(request: Mapping[str, Any]) -> str:
    """Names of the variables that it reads, one a line."""
    environment = TemplateEnvironment(request["control_texts"])
    try:
        code, names = environment.compile_template(request["source"]), environment.variables_of(request["source"])
    except jinja2.TemplateSyntaxError as error:
        raise _Failed(f"the chat template does not compile: {error.message} in line {error.lineno}") from error
    except _TEMPLATE_FAILURES as error:
        raise _Failed(f"the chat template does not compile: {_in_one_line(error)}") from error
    _templates[request["template"]] = _Compiled(environment, code)
    return "\n".join(sorted(names))


def render(request: Mapping[str, Any]) -> str:
    environment, code = _templates[request["template"]]
    now = datetime.datetime.fromisoformat(request["now"])
    given = {name: as_content(value) for name, value in request["given"].items()}
    given["messages"] = [_with_known_role(message, request["roles"]) for message in given["messages"]]
    functions = {"raise_exception": _raise_exception, "strftime_now": now.strftime}
    try:
        return _collect(environment, code, {**given, **request["own"], **functions})
    except _RaisedByTemplate as error:
        raise _Failed(f"the chat template refuses these messages: {_in_one_line(error)}") from error
    except _TEMPLATE_FAILURES as error:
        raise _Failed(f"the chat template cannot be rendered: {_in_one_line(error)}") from error


class _Failed(Exception):
    """With the sentence that the client reads."""


def _with_known_role(message: Any, roles: list[str]) -> Any:
    """Templates write `<|user|>` around roles: a role that is one of ours is no text of the client's."""
    if isinstance(message, dict) and message.get("role") in roles:
        return {**message, "role": str(message["role"])}
    return message


def _collect(environment: TemplateEnvironment, code: CodeType, variables: Mapping[str, object]) -> str:
    chunks: list[str] = []
    length = 0
    for chunk in environment.render_chunks(code, variables):
        length += len(chunk)
        if length > MAX_OUTPUT_CHARACTERS:
            raise jinja2.TemplateRuntimeError(f"it makes a prompt of more than {MAX_OUTPUT_CHARACTERS} characters")
        chunks.append(chunk)
    return "".join(chunks)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedByTemplate(str(message) if isinstance(message, str) else "no reason given")


def _answer(request: Mapping[str, Any]) -> tuple[RenderOutcome, str]:
    try:
        return RenderOutcome.DONE, render(request) if "given" in request else compile_template(request)
    except _Failed as failed:
        return RenderOutcome.FAILED, str(failed)
    except MemoryError:
        return RenderOutcome.OUT_OF_MEMORY, ""


def _limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _lower_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    _lower_limit(resource.RLIMIT_CORE, 0)


def _limit_cpu_time(seconds: float) -> None:
    """For when the parent is gone as well. The kernel counts whole seconds from the begin of the process."""
    if sys.platform != "linux":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower_limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1)


def _lower_limit(kind: int, limit: int) -> None:
    """The soft one, to no more than the hard one allows."""
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(BrokenPipeError):
        write_message(answers, RenderOutcome.DONE, "")
        while (request := read_message(requests)) is not None:
            _limit_cpu_time(request["cpu_s"])
            write_message(answers, *_answer(request))


if __name__ == "__main__":
    main()
