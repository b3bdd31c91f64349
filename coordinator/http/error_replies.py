"""Errors as OpenAI's API shows them: {"error": {"message", "type", "param", "code"}}.

Within an event stream an error has no HTTP status and no Retry-After any more: there the object has `status` and `retry_after`, too.
"""

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

from dairllm.coordinator.http.answer_types import ErrorEvent, ErrorObject
from dairllm.mesh.errors import Busy, ContextExceeded, DairllmError, UnknownModel

JSON, EVENT_STREAM = "application/json", "text/event-stream"
OPENAI_CODES: Mapping[type[DairllmError], str] = {
    UnknownModel: "model_not_found",
    ContextExceeded: "context_length_exceeded",
    Busy: "rate_limit_exceeded",
}


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def to_json_in_steps(value: object) -> bytes:
    """The same, five times as slowly, for a thread: the encoder in C keeps the GIL until it is done."""
    written = bytearray()
    for piece in json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).iterencode(value):
        written += piece.encode()
    return bytes(written)


def head_too_large(max_head_bytes: int) -> tuple[int, str, str]:
    """Status, message and code."""
    return 431, f"the head of the request is too large; expected at most {max_head_bytes} bytes", "head_too_large"


def json_reply(value: object) -> Response:
    return Response(to_json(value), media_type=JSON)


def error_event(error: DairllmError) -> ErrorEvent:
    """For a stream that has begun. retry_after: whole seconds; null if trying again does not help."""
    return {"error": {**_fields_of(error), "status": error.meaning.http_status, "retry_after": _retry_after_s(error)}}


def error_reply(error: DairllmError) -> Response:
    retry_after_s = _retry_after_s(error)
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Response(to_json({"error": _fields_of(error)}), error.meaning.http_status, headers, JSON)


def _retry_after_s(error: DairllmError) -> int | None:
    return None if error.retry_delay_s is None else max(1, math.ceil(error.retry_delay_s))


def plain_error_reply(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """For what HTTP itself refuses, such as an unknown path."""
    return Response(plain_error_body(status, message, code), status, dict(headers or {}), JSON)


def plain_error_body(status: int, message: str, code: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return to_json({"error": _fields(message, kind, None, code)})


def _fields_of(error: DairllmError) -> ErrorObject:
    return _fields(error.message, error.meaning.openai_type, error.param, OPENAI_CODES.get(type(error), error.code))


def _fields(message: str, kind: str, param: str | None, code: str) -> ErrorObject:
    return {"message": message, "type": kind, "param": param, "code": code}
