"""Logs of both services: one line per record, as text for people or as JSON for machines.

    2026-01-31T12:00:00.123Z INFO dairllm.shard_service.membership.joiner joined the cluster | coordinator=10.0.0.5:8701 epoch=3

Facts belong into fields, so that messages can be searched for:

    logger.info("joined the cluster", extra=fields(coordinator=address, epoch=epoch))

Nobody who logs waits for whoever reads the log (`line_writer`), and what is said again and again is told rarely (`repetition`), by a
record with the fact `repeated`: how many like it were kept back.
"""

import copy
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.line_writer import LineWriter
from dairllm.mesh.repetition import Repetitions

FLUSH_S = 1.0
"""So long the end of a process waits for whoever reads its log."""

LEVELS = ("debug", "info", "warning", "error")

_NOISY = ("asyncio", "httpx", "httpcore", "uvicorn.access", "zeroconf", "grpc")
"""Libraries whose news below a warning is about themselves."""


def get_logger(name: str) -> logging.Logger:
    """name: the module's `__name__`."""
    return logging.getLogger(name)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """Facts of a record, for the `extra` argument of a logger's methods."""
    return {"fields": values}


def configure_logging(level: str = "info", as_json: bool = False, stream: TextIO | None = None) -> None:
    """Send all records of the process from this level on to stream (stderr); what was configured before is replaced.

    Raises InvalidSetting for an unknown level.
    """
    if level.lower() not in LEVELS:
        raise InvalidSetting(f"log level {level!r} is unknown; expected one of {', '.join(LEVELS)}")
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_handler(_JsonFormatter() if as_json else _TextFormatter(), stream))
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    if stream is None:
        _log_what_python_prints()


def say_last(line: str) -> None:
    """A line for people on stderr, after all that was logged. Waits a moment at most if the log goes there."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _PatientHandler):
            handler.writer.write(line)
            handler.flush()
            return
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)


def _handler(formatter: logging.Formatter, stream: TextIO | None) -> logging.Handler:
    handler: logging.Handler
    if stream is not None:
        handler = logging.StreamHandler(stream)
    elif sys.stderr is None:  # it was closed when the process began
        handler = logging.NullHandler()
    else:
        handler = _PatientHandler(sys.stderr.fileno(), formatter)
    handler.setFormatter(formatter)
    return handler


class _PatientHandler(logging.Handler):
    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()

        def describe_drop(number: int) -> str:
            words = "records of the log are missing here: nobody read them, or they could not be written"
            record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, words, None, None)
            vars(record).update(fields(number=number))
            return formatter.format(record)

        self.writer = LineWriter(descriptor, describe_drop)
        self._repetitions = Repetitions()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            num_kept_back = self._repetitions.judge(record, time.monotonic())
            if num_kept_back is None:
                return
            if num_kept_back:
                record = copy.copy(record)
                vars(record).update(fields(**_facts(record), repeated=num_kept_back))
            self.writer.write(self.format(record))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        self.writer.flush(FLUSH_S)

    def close(self) -> None:
        self.writer.close()
        super().close()


def _log_what_python_prints() -> None:
    """Warnings, and exceptions that nobody can catch: Python itself would write them to stderr, and wait."""
    logging.captureWarnings(True)
    logger = get_logger(__name__)

    def unraisable(what: Any) -> None:
        logger.error("an exception was ignored: %s", what.err_msg or "in a place that nobody calls", exc_info=what.exc_value)

    def thread_ended(what: Any) -> None:
        logger.error("a thread ended by an exception: %s", what.thread.name if what.thread else "", exc_info=what.exc_value)

    sys.unraisablehook, threading.excepthook = unraisable, thread_ended


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={_as_text(value)}" for key, value in _facts(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {on_one_line(record.getMessage())}{' |' + facts if facts else ''}"
        return f"{line}\n{_lines(self.formatException(record.exc_info))}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((key, value) for key, value in _facts(record).items() if key not in line)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _facts(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _as_text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if text and text.isprintable() and not any(c in text for c in ' "=') else json.dumps(text)


def _lines(text: str) -> str:
    return "\n".join(map(on_one_line, text.split("\n")))
