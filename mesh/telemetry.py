"""Logs of both services: one line per record, as text for people or as JSON for machines.

    2026-01-31T12:00:00.123Z INFO dairllm.shard_service.membership.joiner joined the cluster | coordinator=10.0.0.5:8701 epoch=3

Facts belong into fields, so that messages can be searched for:

    logger.info("joined the cluster", extra=fields(coordinator=address, epoch=epoch))
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from dairllm.mesh.errors import InvalidSetting

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
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={_as_text(value)}" for key, value in _facts(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {_one_line(record.getMessage())}{' |' + facts if facts else ''}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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


def _one_line(text: str) -> str:
    """A peer's text in a message must not look like a record of its own."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
