"""Every answer has an id, the client's own or a new one, by which it is found in the log; also one that failed because of a defect."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dairllm.coordinator.http.error_replies import plain_error_reply
from dairllm.mesh.telemetry import fields

logger = logging.getLogger(__name__)

HEADER = "x-request-id"
_SOUND = re.compile(r"[\x21-\x7e]{1,128}")


def request_id_of(scope: Scope) -> str:
    return str(scope.get("request_id", ""))


class RequestIds:
    """ASGI middleware: leaves the id in the scope. The outermost place of a request, where a defect becomes an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s, status = time.monotonic(), 0
        request_id = scope["request_id"] = _sound_or_new(Headers(scope=scope).get(HEADER))
        facts = {"request_id": request_id, "method": scope["method"], "path": scope["path"][:200]}

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if status:
                raise  # so that the connection is cut
            logger.exception("a request failed", extra=fields(**facts))
            message = f"the request failed because of an internal error; its id is {request_id}"
            await plain_error_reply(500, message, "internal_error")(scope, receive, send_with_id)
        logger.debug("answered", extra=fields(**facts, status=status, duration_s=time.monotonic() - began_s))


def _sound_or_new(asked: str | None) -> str:
    return asked if asked is not None and _SOUND.fullmatch(asked) else uuid.uuid4().hex
