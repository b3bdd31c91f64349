"""A server that speaks the hub's protocol as far as models are fetched by it, with the faults that networks and servers have.

What it answers: https://huggingface.co/docs/hub/api and what huggingface_hub reads of it. Large files are redirected to a server of their
own (`content`), as the hub does, which must never see a token.
"""

import hashlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit

LFS_FROM_BYTES = 4096
TOKEN = "hf_theRightTokenOfTheTests"


@dataclass(frozen=True)
class Repository:
    """files: by name. commit: of its only revision, `main`. gated: only with TOKEN; private: the same, and it is not told that it
    exists."""

    files: Mapping[str, bytes]
    licence: str = "apache-2.0"
    gated: bool = False
    private: bool = False
    tells_digests: bool = True

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((name, git_sha1(data)) for name, data in self.files.items())).encode()).hexdigest()


class Asked(NamedTuple):
    """A request that came. server: 'hub' or 'content'."""

    server: str
    method: str
    path: str
    range: str
    authorization: str


@dataclass
class Fault:
    """What happens to a request, instead of or besides an answer. after_bytes: cut the connection then. content: sent in place of the file.
    length: claimed in place of the true one. silent_s: nothing comes for so long."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    after_bytes: int | None = None
    content: bytes | None = None
    length: int | None = None
    silent_s: float = 0.0
    ignores_ranges: bool = False


class Hub:
    """A context manager. repositories: by OWNER/NAME. web: other files, by path from '/files/' on, with headers of their own.
    content_faults, api_faults: what happens to the next requests for content, for listings; each once."""

    def __init__(self, repositories: Mapping[str, Repository] | None = None) -> None:
        self.repositories = dict(repositories or {})
        self.web: dict[str, tuple[bytes, Mapping[str, str]]] = {}
        self.content_faults: deque[Fault] = deque()
        self.api_faults: deque[Fault] = deque()
        self.asked: list[Asked] = []
        self._servers = [_server(self, name) for name in ("hub", "content")]
        hub, content = (server.server_address[1] for server in self._servers)
        # Another host for the library, too, which sends tokens to every port of the hub's.
        self.url, self.content_url = f"http://127.0.0.1:{hub}", f"http://localhost:{content}"

    def asked_for(self, beginning: str) -> list[Asked]:
        """GET requests of these paths."""
        return [one for one in self.asked if one.method == "GET" and one.path.startswith(beginning)]

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True, name="hub").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _server(hub: Hub, name: str) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "server_name": name}))
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    server_name: str

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        self.hub.asked.append(Asked(self.server_name, self.command, path, headers.get("Range", ""), headers.get("Authorization", "")))
        found = next(((answer, match) for pattern, answer in _ROUTES if (match := re.fullmatch(pattern, path))), None)
        try:
            if found is None:
                self._refuse(404, {})
            else:
                found[0](self, *found[1].groups())
        except OSError:  # whoever asked has gone
            self.close_connection = True

    def listing(self, name: str, revision: str | None) -> None:
        if self.hub.api_faults:
            fault = self.hub.api_faults.popleft()
            time.sleep(fault.silent_s)
            if fault.status:
                self._refuse(fault.status, fault.headers)
                return
        found = self._repository(name, revision)
        if found is not None:
            siblings = [_sibling(file, data, found.tells_digests) for file, data in found.files.items()]
            tags = [f"license:{found.licence}"]
            about = {"id": name, "sha": found.commit, "siblings": siblings, "tags": tags, "gated": "auto" if found.gated else False}
            self._send(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def resolve(self, name: str, revision: str, file: str) -> None:
        found = self._repository(name, revision, of_content=True)
        if found is None:
            return
        data = found.files.get(file)
        about = {"X-Repo-Commit": found.commit}
        if data is None:
            self._refuse(404, about | {"X-Error-Code": "EntryNotFound"})
        elif len(data) < LFS_FROM_BYTES:
            self._content(data, about | {"ETag": f'"{git_sha1(data)}"'})
        else:
            linked = {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
            self._send(302, about | linked | {"Location": f"{self.hub.content_url}/content/{sha256(data)}"}, b"")

    def content(self, digest: str) -> None:
        for repository in self.hub.repositories.values():
            for data in repository.files.values():
                if sha256(data) == digest:
                    self._content(data, {"ETag": f'"{digest[:32]}"'})
                    return
        self._refuse(404, {})

    def web_file(self, path: str) -> None:
        if path not in self.hub.web:
            self._refuse(404, {})
            return
        data, headers = self.hub.web[path]
        if "Location" in headers:
            self._send(302, headers, b"")
        else:
            self._content(data, headers)

    def _repository(self, name: str, revision: str | None, of_content: bool = False) -> Repository | None:
        found = self.hub.repositories.get(name)
        allowed = self.headers.get("Authorization", "") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            self._refuse(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif found.gated and of_content and not allowed:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            self._refuse(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif revision not in (None, "main", found.commit):
            self._refuse(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def _refuse(self, status: int, headers: Mapping[str, str]) -> None:
        self._send(status, headers, b'{"error": "refused"}')

    def _content(self, data: bytes, headers: Mapping[str, str]) -> None:
        fault = self.hub.content_faults.popleft() if self.hub.content_faults and self.command == "GET" else Fault()
        time.sleep(fault.silent_s)
        if fault.status:
            self._refuse(fault.status, fault.headers)
            return
        data = data if fault.content is None else fault.content
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, headers.get("ETag"))
        if found and unchanged and not fault.ignores_ranges:
            start, end = int(found[1]), int(found[2]) + 1 if found[2] else len(data)
            if start >= len(data):
                self._refuse(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            end = min(end, len(data))
            self._send(206, dict(headers) | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end], fault)
        else:
            self._send(200, headers, data, fault)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, fault: Fault | None = None) -> None:
        length = len(body) if fault is None or fault.length is None else fault.length
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = None if fault is None else fault.after_bytes
        self.wfile.write(body if cut is None else body[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True


def _sibling(name: str, data: bytes, tells_digests: bool) -> dict[str, object]:
    about: dict[str, object] = {"rfilename": name}
    if tells_digests:
        about |= {"size": len(data), "blobId": git_sha1(data)}
        if len(data) >= LFS_FROM_BYTES:
            about["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
    return about


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (rf"/api/models/{_NAME}", lambda handler, name: handler.listing(name, None)),
    (rf"/api/models/{_NAME}/revision/(.+)", _Handler.listing),
    (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"/content/([0-9a-f]{64})", _Handler.content),
    (r"/files/(.+)", _Handler.web_file),
)
