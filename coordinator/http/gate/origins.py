"""Whose pages may use the API: those of this server itself, and others that a setting names (CORS)."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dairllm.coordinator.http.gate.hosts import ANY, Authority, parse_authority
from dairllm.mesh.errors import InvalidSetting

_PORTS = {"http": 80, "https": 443}
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")
"""Of a page, or of an application that shows pages of its own, such as app://name."""


@dataclass(frozen=True, slots=True)
class Origins:
    """allowed: beside the server's own; '*' is any."""

    allowed: frozenset[str] = frozenset()

    def admit(self, origin: str, host: Authority | None) -> bool:
        """host: by which the server was asked, since its own pages come from there, maybe through a proxy that speaks TLS."""
        return ANY in self.allowed or origin in self.allowed or (host is not None and _is_same(origin, host))


def checked_origin(setting: str) -> str:
    """As browsers write it; InvalidSetting for what they call no origin."""
    origin = setting.lower().removesuffix("/")
    if origin in (ANY, "null") or _ORIGIN.fullmatch(origin):
        return origin
    raise InvalidSetting(f"--cors-origin is {setting!r}; expected an origin like http://localhost:3000, or *")


def _is_same(origin: str, host: Authority) -> bool:
    try:
        scheme, netloc, *_ = urlsplit(origin)
    except ValueError:
        return False
    own, default = parse_authority(netloc), _PORTS.get(scheme)
    return own is not None and default is not None and (own.host, own.port or default) == (host.host, host.port or default)
