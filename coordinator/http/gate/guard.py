"""What every request passes first: its target is put in one form, and who asks by a strange name, or from a strange page, is refused."""

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dairllm.coordinator.http.error_replies import head_too_large, plain_error_reply
from dairllm.coordinator.http.gate.hosts import Hosts, parse_authority
from dairllm.coordinator.http.gate.origins import Origins

_SHOWN_CHARACTERS = 100


class Access(NamedTuple):
    """By which names, and from whose pages, the API may be used."""

    hosts: Hosts
    origins: Origins


ONLY_LOOPBACK = Access(Hosts(), Origins())


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, access: Access, max_head_bytes: int) -> None:
        self._app = app
        self._access = access
        self._max_head_bytes = max_head_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        _use_origin_form(scope)
        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        size_bytes = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        if size_bytes > self._max_head_bytes:
            return plain_error_reply(*head_too_large(self._max_head_bytes), {"connection": "close"})
        headers = Headers(scope=scope)
        host_header, origin = headers.get("host"), headers.get("origin")
        host = None if host_header is None else parse_authority(host_header)
        if host_header and (host is None or not self._access.hosts.admit(host.host)):
            message = f"this server is not known as {_shown(host_header)}; expected its address, or a name that --allowed-host gives it"
            return plain_error_reply(421, message, "unknown_host")
        if origin is not None and not self._access.origins.admit(origin, host):
            message = f"pages of {_shown(origin)} may not use this API; expected its own pages, or an origin that --cors-origin names"
            return plain_error_reply(403, message, "foreign_origin")
        return None


def _use_origin_form(scope: Scope) -> None:
    """A target may be a whole URL, as clients of proxies send it; its host then counts, not the header (RFC 9112, 3.2.2)."""
    target = scope["raw_path"].decode("latin-1")
    if not target.lower().startswith(("http://", "https://")):
        return
    try:
        _, authority, path, *_ = urlsplit(target)
    except ValueError:
        return
    scope["path"], scope["raw_path"] = unquote(path or "/"), (path or "/").encode("latin-1")
    scope["headers"] = [(b"host", authority.encode("latin-1")), *((name, value) for name, value in scope["headers"] if name != b"host")]


def _shown(text: str) -> str:
    return repr(text[:_SHOWN_CHARACTERS])
