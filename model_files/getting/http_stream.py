"""One file over HTTP, from any byte on. Redirects lead only where they may, tokens go to nobody but whom they are for, everything has a
limit.

urllib, since it is there, takes proxies and certificates as the machine has them, and can be held to these rules in a few lines.
"""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting.references import is_near, shown

SILENCE_S = 30.0
"""How long a server may take to answer, and to send more."""
_MOST_REDIRECTS = 5
_LONGEST_WAIT_S = 300.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
WORTH_ASKING_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say that it may be different later."""


class HttpProblem(ModelFetchError):
    """status: of the answer, 0 if there was none. wait_s: None if asking again is of no use, else how long to wait at least."""

    def __init__(self, message: str, wait_s: float | None = None, status: int = 0) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.status = status


class HttpStream:
    """The bytes of a file from `start` on; a context manager.

    start: 0 if the server knows no ranges or the file is not the one of `validator` any more. total_bytes: of the whole file, None if it is
    not told. validator: by which it is known later that the file is still the same, '' if there is none.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        start: int = 0,
        end: int | None = None,
        *,
        validator: str = "",
        silence_s: float | None = None,
    ) -> None:
        """end: the byte behind the last one that is wanted; None for all. Raises HttpProblem."""
        wanted = dict(headers) | {"Accept-Encoding": "identity", "User-Agent": f"dairllm/{version('dairllm')}"}
        if start or end is not None:
            wanted["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
            wanted |= {"If-Range": validator} if validator else {}
        self._host = urlsplit(url).hostname or ""
        self._silence_s = SILENCE_S if silence_s is None else silence_s
        self._response = self._opened(urllib.request.Request(url, headers=wanted))
        try:
            self._read_head(start, end)
        except BaseException:
            self._response.close()
            raise

    def read(self, size_bytes: int) -> bytes:
        """At most so many; none at the end. HttpProblem if the connection breaks, also if the end comes before it should."""
        try:
            data: bytes = self._response.read1(size_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes < 0 or (not data and self._left_bytes):
                raise HttpProblem(f"{self._host} ended the connection {self._left_bytes} bytes before the end", wait_s=0)
        return data

    def close(self) -> None:
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _opened(self, request: urllib.request.Request) -> Any:
        try:
            return _OPENER.open(request, timeout=self._silence_s)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error.code, error.reason, error.headers) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error
        except HttpProblem:
            raise
        except ValueError as error:
            raise HttpProblem(f"{self._host} cannot be asked for the file: {error}") from error

    def _read_head(self, start: int, end: int | None) -> None:
        head = self._response.headers
        self.content_type = str(head.get_content_type())
        self.validator = _validator_of(head)
        length = _number(head.get("Content-Length"))
        self._left_bytes = length
        if self._response.status != 206:
            self.start, self.total_bytes = 0, length
            return
        found = _CONTENT_RANGE.fullmatch(head.get("Content-Range", ""))
        if found is None or int(found[1]) != start:
            raise HttpProblem(
                f"{self._host} answers with the range {shown(head.get('Content-Range', ''))}; expected one from byte {start} on"
            )
        self.start, self.total_bytes = start, int(found[3])
        self._left_bytes = min(end or self.total_bytes, self.total_bytes) - start

    def _refused(self, status: int, reason: str, headers: Message) -> HttpProblem:
        wait_s = retry_after_s(headers.get("Retry-After", "")) if status in WORTH_ASKING_AGAIN else None
        return HttpProblem(f"{self._host} answers {status} {reason[:80]}", wait_s, status)

    def _broken(self, error: Exception) -> HttpProblem:
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, TimeoutError):
            return HttpProblem(f"{self._host} sends nothing for {self._silence_s:g} s", wait_s=0)
        return HttpProblem(f"the connection to {self._host} fails: {getattr(cause, 'strerror', None) or cause}", wait_s=0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Never to another scheme than https, except from http to http; never from the internet into this network; tokens stay with their
    host."""

    max_redirections = _MOST_REDIRECTS

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        may = new.scheme == "https" or (new.scheme == old.scheme == "http" and is_near(new.hostname or ""))
        if not may or (is_near(new.hostname or "") and not is_near(old.hostname or "")):
            raise HttpProblem(f"{old.hostname} sends on to {shown(newurl)}; expected a redirect to https:// outside of this network")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            request.remove_header("Authorization")
        return request


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers of other schemes (file, ftp, data)."""
    opener = urllib.request.OpenerDirector()
    handlers = urllib.request
    for handler in (
        *(handlers.ProxyHandler(), handlers.UnknownHandler(), handlers.HTTPHandler(), handlers.HTTPSHandler()),
        *(handlers.HTTPDefaultErrorHandler(), _Redirects(), handlers.HTTPErrorProcessor()),
    ):
        opener.add_handler(handler)
    return opener


_OPENER = _opener()


def _validator_of(head: Any) -> str:
    """Strong ones only, as If-Range demands (RFC 9110, 13.1.5)."""
    etag = str(head.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else ""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 18 else None


def retry_after_s(text: str) -> float:
    """Of the header: seconds, or a date (RFC 9110, 10.2.3); 0 if there is none."""
    seconds = _number(text.strip())
    if seconds is None:
        try:
            seconds = int(parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0), _LONGEST_WAIT_S)
