"""What the server answers: the routes, and in the same place what the OpenAPI document says of them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from dairllm.coordinator.http.answer_types import ErrorReply
from dairllm.coordinator.http.error_replies import JSON

Handler = Callable[[Request], Awaitable[Response]]
Shape = Any
"""A type that pydantic can describe, or a JSON schema."""
TEXT: Mapping[str, object] = {"type": "string"}


@dataclass(frozen=True, slots=True)
class OperationAnswer:
    """contents: shapes by media type; of an event stream, the shape of the JSON in each event, but for the last if that is `last_event`.

    retry_after: it may have this header.
    """

    description: str
    contents: Mapping[str, Shape]
    retry_after: bool = False
    last_event: str | None = None


def refused(description: str, *, retry_after: bool = False) -> OperationAnswer:
    """An error in OpenAI's form."""
    return OperationAnswer(description, {JSON: ErrorReply}, retry_after)


class Parameter(NamedTuple):
    """Text in the path of an operation."""

    description: str
    example: str


@dataclass(frozen=True, slots=True)
class Operation:
    """path: as Starlette writes it. name: of its own among all operations. parameters: what is in braces in the path."""

    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    answers: Mapping[int, OperationAnswer]
    body: type[BaseModel] | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def route(self) -> Route:
        return ExactRoute(self)


class ExactRoute(Route):
    """Leaves itself in the scope, for whoever counts requests, and answers just the method that it was made for; HEAD where GET is."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation.path, operation.handler, methods=[operation.method], name=operation.name)
        self.methods = {"GET", "HEAD"} if operation.method == "GET" else {operation.method}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self
        await super().handle(scope, receive, send)
