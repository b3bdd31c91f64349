"""The OpenAPI document (https://spec.openapis.org/oas/v3.1.1), written from the operations and the types that they name."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from dairllm.coordinator.http.error_replies import EVENT_STREAM, JSON
from dairllm.coordinator.http.operations import Operation, OperationAnswer, Shape

JsonObject = dict[str, Any]
_REFERENCE = "#/components/schemas/{model}"
_RETRY_AFTER = {
    "retry-after": {"description": "Seconds after which trying again makes sense.", "schema": {"type": "integer", "minimum": 1}}
}


def openapi_document(operations: Iterable[Operation], version: str) -> JsonObject:
    operations = list(operations)
    schemas = _Schemas(operations)
    paths: dict[str, JsonObject] = {}
    for operation in operations:
        paths.setdefault(_path(operation), {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dairllm",
            "version": version,
            "description": "OpenAI's API for the model that this cluster serves, and the state of the cluster.",
        },
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


class _Schemas:
    """Schemas of all types that the operations name. What has a name is among the components."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        inputs: list[tuple[Shape, JsonSchemaMode]] = [(one.body, "validation") for one in operations if one.body is not None]
        outputs: list[tuple[Shape, JsonSchemaMode]] = [(shape, "serialization") for shape in _answer_shapes(operations)]
        adapters: list[tuple[Shape, JsonSchemaMode, TypeAdapter[Any]]] = [
            (shape, mode, TypeAdapter(shape)) for shape, mode in dict.fromkeys([*inputs, *outputs])
        ]
        found, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
        self._by_shape = {shape: schema for (shape, _), schema in found.items()}
        self.components: JsonObject = definitions.get("$defs", {})

    def of(self, shape: Shape) -> Mapping[str, object]:
        return shape if isinstance(shape, Mapping) else self._by_shape[shape]


def _answer_shapes(operations: Iterable[Operation]) -> Iterator[Shape]:
    for operation in operations:
        for answer in operation.answers.values():
            yield from (shape for shape in answer.contents.values() if not isinstance(shape, Mapping))


def _path(operation: Operation) -> str:
    """Without Starlette's converters."""
    return operation.path.replace(":path}", "}")


def _operation(operation: Operation, schemas: _Schemas) -> JsonObject:
    written: JsonObject = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {str(status): _answer(answer, schemas) for status, answer in operation.answers.items()},
    }
    if operation.parameters:
        written["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, **parameter._asdict()}
            for name, parameter in operation.parameters.items()
        ]
    if operation.body is not None:
        written["requestBody"] = {"required": True, "content": {JSON: {"schema": schemas.of(operation.body)}}}
    return written


def _answer(answer: OperationAnswer, schemas: _Schemas) -> JsonObject:
    contents = {media: {"schema": _content(media, schemas.of(shape), answer.last_event)} for media, shape in answer.contents.items()}
    written: JsonObject = {"description": answer.description, "content": contents}
    if answer.retry_after:
        written["headers"] = _RETRY_AFTER
    return written


def _content(media_type: str, schema: Mapping[str, object], last_event: str | None) -> Mapping[str, object]:
    """Of a stream of events, one event: OpenAPI 3.1 has nothing for the stream itself."""
    if media_type != EVENT_STREAM:
        return schema
    data: JsonObject = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
    if last_event is not None:
        data = {"anyOf": [data, {"const": last_event}]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}
