"""The OpenAPI document as a page for people: written once, without scripts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

_REFERENCE_BEGIN = "#/components/schemas/"


class _Field(NamedTuple):
    name: str
    is_required: bool
    type: Markup
    description: str


class _Answer(NamedTuple):
    status: str
    description: str
    types: Sequence[Markup]


class _Operation(NamedTuple):
    method: str
    path: str
    name: str
    summary: str
    parameters: Sequence[_Field]
    body: Markup | None
    answers: Sequence[_Answer]


class _Object(NamedTuple):
    name: str
    description: str
    fields: Sequence[_Field]
    examples: Sequence[str]


def render_docs(document: Mapping[str, Any]) -> str:
    """HTML for an OpenAPI document as `openapi_document` writes it."""
    source = files("dairllm.coordinator.dashboard").joinpath("docs.html").read_text()
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(info=document["info"], operations=list(_operations(document)), objects=list(_objects(document)))


def _operations(document: Mapping[str, Any]) -> Iterator[_Operation]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parameters = [_Field(one["name"], True, _type(one["schema"]), one["description"]) for one in operation.get("parameters", ())]
            body = next((_type(one["schema"]) for one in _contents(operation.get("requestBody", {}))), None)
            answers = [_answer(status, answer) for status, answer in operation["responses"].items()]
            yield _Operation(method.upper(), path, operation["operationId"], operation["summary"], parameters, body, answers)


def _contents(holder: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return list(holder.get("content", {}).values())


def _answer(status: str, answer: Mapping[str, Any]) -> _Answer:
    types = [Markup("{}: {}").format(media, _type(content["schema"])) for media, content in answer["content"].items()]
    return _Answer(status, answer["description"], types)


def _objects(document: Mapping[str, Any]) -> Iterator[_Object]:
    for name, schema in document["components"]["schemas"].items():
        examples = [json.dumps(one) for one in schema.get("examples", ())]
        yield _Object(name, schema.get("description", ""), list(_fields(schema)), examples)


def _fields(schema: Mapping[str, Any]) -> Iterator[_Field]:
    required = schema.get("required", ())
    for name, one in schema.get("properties", {}).items():
        yield _Field(name, name in required, _type(one), one.get("description", ""))


def _type(schema: Mapping[str, Any]) -> Markup:
    """In words, with links to the objects."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REFERENCE_BEGIN)
        return Markup('<a href="#{0}">{0}</a>').format(name)
    for joint in ("anyOf", "oneOf", "allOf"):
        if joint in schema:
            return Markup(" or ").join(dict.fromkeys(_type(one) for one in schema[joint]))
    if "enum" in schema or "const" in schema:
        return Markup(" or ").join(Markup("<code>{}</code>").format(json.dumps(one)) for one in schema.get("enum", [schema.get("const")]))
    return _plain_type(schema)


def _plain_type(schema: Mapping[str, Any]) -> Markup:
    match schema.get("type"):
        case "array":
            return Markup("list of {}").format(_type(schema.get("items", {})))
        case "string" if "contentSchema" in schema:
            return _type(schema["contentSchema"])
        case "object" if "data" in schema.get("properties", {}):
            return Markup("events of {}").format(_type(schema["properties"]["data"]))
        case "object":
            return escape("object")
        case "integer" | "number" as kind:
            return escape(("whole number" if kind == "integer" else "number") + _range(schema))
        case list(kinds):
            return escape(" or ".join(kinds))
        case kind:
            return escape(kind or "anything")


def _range(schema: Mapping[str, Any]) -> str:
    lowest, above, highest = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
    begin = f" over {above:g}" if above is not None else "" if lowest is None else f" from {lowest}"
    return begin + ("" if highest is None else f" to {highest}")
