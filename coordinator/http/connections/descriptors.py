"""File descriptors: how many the process may have, and quiet where none is left."""

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dairllm.mesh.telemetry import fields

logger = logging.getLogger(__name__)

NO_DESCRIPTOR = "socket.accept() out of system resource"
"""As asyncio's accept loop tells it, before it waits a second."""


def allow_descriptors(wanted: int) -> int:
    """Raises the limit of this process as far as it may itself. Returns what the limit is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited:
        return wanted
    if soft < wanted:
        raised = wanted if hard == unlimited else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return soft


@contextmanager
def descriptors_run_out_quietly() -> Iterator[None]:
    """Within it, a connection that cannot be accepted for want of descriptors is one sentence in the log, not a traceback."""
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") == NO_DESCRIPTOR:
            reason = getattr(context.get("exception"), "strerror", None)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            logger.error("HTTP clients wait: their connections cannot be accepted", extra=fields(reason=reason, descriptors=limit))
        elif previous is not None:
            previous(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(previous)
