"""What programs find where they read and write: terminals of any encoding, full disks, pipes that nobody reads, nothing at all."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.foreign_text import escaped_for
from dairllm.mesh.process import EXIT_ERROR, report_error

_LACKING = "dairllm.lacking"

codecs.register_error(_LACKING, escaped_for)


def run_program(program: Callable[[], object]) -> NoReturn:
    """Run it and end with its exit code; one line on stderr and EXIT_ERROR if stdout can't be written."""
    repair_standard_streams()
    code: object = None
    try:
        try:
            program()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
    except _OutputFailed as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python itself flushes once more
        if error.errno == errno.EPIPE:  # its reader has seen enough
            raise SystemExit(code or 1) from None
        report_error(InvalidSetting(f"stdout can't be written: {error.strerror}"))
        raise SystemExit(EXIT_ERROR) from None
    raise SystemExit(code)


def repair_standard_streams() -> None:
    """Those that are closed are /dev/null, so that no connection gets their numbers; characters that a terminal lacks are escaped."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    sys.stdout = _Output.instead_of(sys.stdout or open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors=_LACKING)


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Text is text: nothing in it is taken for markup, an emoji's name or something to be coloured."""
    return Console(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)


class _OutputFailed(OSError):
    """Of stdout, and nothing else."""


class _Output(io.TextIOWrapper):
    @classmethod
    def instead_of(cls, stream: Any) -> "_Output":
        about = {"encoding": stream.encoding, "line_buffering": stream.line_buffering, "write_through": stream.write_through}
        return cls(stream.detach(), errors=_LACKING, **about)

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _OutputFailed(error.errno, error.strerror) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _OutputFailed(error.errno, error.strerror) from error
