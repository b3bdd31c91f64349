"""Pages for people: the status page, and the description of the API. They need nothing from elsewhere: machines of a cluster may have no
internet."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from dairllm.coordinator.http.docs_page import render_docs
from dairllm.coordinator.http.error_replies import JSON, to_json
from dairllm.coordinator.http.operations import TEXT, Handler, Operation, OperationAnswer

HTML, CSS, JAVASCRIPT = "text/html", "text/css", "text/javascript"
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def page_operations() -> Sequence[Operation]:
    folder = files("dairllm.coordinator.dashboard")
    page, style, script = (folder.joinpath(name).read_bytes() for name in ("index.html", "dashboard.css", "dashboard.js"))
    return [
        _page("/", "status_page", "The status page", page, HTML),
        _page("/dashboard.css", "status_page_style", "The style of the pages", style, CSS),
        _page("/dashboard.js", "status_page_script", "The script of the status page", script, JAVASCRIPT),
    ]


def document_operations(document: Mapping[str, object]) -> Sequence[Operation]:
    """Not in the document themselves."""
    return [
        _page("/openapi.json", "openapi", "This API for programs", to_json(document), JSON),
        _page("/docs", "docs", "This API for people", render_docs(document).encode(), HTML),
    ]


def _page(path: str, name: str, summary: str, content: bytes, media_type: str) -> Operation:
    answers = {200: OperationAnswer(f"{summary}.", {media_type: TEXT})}
    return Operation("GET", path, name, summary, _file(content, media_type), answers)


def _file(content: bytes, media_type: str) -> Handler:
    content_type = media_type if media_type == JSON else f"{media_type}; charset=utf-8"

    async def page_file(request: Request) -> Response:
        return Response(content, headers={**PAGE_HEADERS, "content-type": content_type})

    return page_file
