"""Errors as OpenAI's API shows them: {"error": {"message", "type", "param", "code"}}."""

import json
import math
from collections.abc import Mapping

from fastapi import Response

from dairllm.mesh.errors import Busy, ContextExceeded, DairllmError, UnknownModel

OPENAI_CODES: Mapping[type[DairllmError], str] = {
    UnknownModel: "model_not_found",
    ContextExceeded: "context_length_exceeded",
    Busy: "rate_limit_exceeded",
}
DEFAULT_RETRY_AFTER_S = 2.0


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def error_object(error: DairllmError) -> dict[str, object]:
    code = OPENAI_CODES.get(type(error), error.code)
    return _error_object(error.message, error.meaning.openai_type, error.param, code)


def error_reply(error: DairllmError) -> Response:
    headers = {}
    if error.meaning.retryable:
        retry_after_s = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    return Response(to_json(error_object(error)), error.meaning.http_status, headers, "application/json")


def plain_error_reply(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """For what HTTP itself refuses, such as an unknown path."""
    return Response(plain_error_body(status, message, code), status, dict(headers or {}), "application/json")


def plain_error_body(status: int, message: str, code: str) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return to_json(_error_object(message, kind, None, code))


def _error_object(message: str, kind: str, param: str | None, code: str) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
