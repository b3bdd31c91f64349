"""What a chat carries for the model's template: functions that may be called, earlier calls of them, and variables of its own."""

import json
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, WrapValidator

from dairllm.coordinator.http.bodies.fields import UNSUPPORTED, Expected, JsonObject, Text, refusal

MAX_TOOLS = 128
MAX_TEMPLATE_VARIABLES = 64
MAX_VARIABLES_CHARACTERS = 16 << 10
MAX_DEPTH = 64
_OBJECT = {"type": "object", "additionalProperties": True}


def depth_of(value: object) -> int:
    """How deeply lists and objects are nested, up to a little over MAX_DEPTH."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
        depth += 1
    return depth


def _function(value: object) -> object:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or depth_of(value) > MAX_DEPTH:
        raise refusal("an object with a name")
    return value


def _variables(value: object, validate: Callable[[object], dict[str, Any]]) -> dict[str, Any]:
    words = f"an object of at most {MAX_TEMPLATE_VARIABLES} variables of the template and {MAX_VARIABLES_CHARACTERS} characters"
    if not isinstance(value, dict) or len(value) > MAX_TEMPLATE_VARIABLES or depth_of(value) > MAX_DEPTH:
        raise refusal(words)
    if len(json.dumps(value)) > MAX_VARIABLES_CHARACTERS:
        raise refusal(words)
    return validate(value)


JsonFunction = Annotated[dict[str, Any], BeforeValidator(_function), WithJsonSchema({**_OBJECT, "required": ["name"]})]
TemplateVariables = Annotated[dict[str, Any], WrapValidator(_variables), WithJsonSchema(_OBJECT)]


class Tool(JsonObject):
    """A function that the model may call."""

    expected: ClassVar[str] = "an object with type and function"

    type: Annotated[Literal["function"], Expected('"function"', UNSUPPORTED)]
    function: JsonFunction = Field(description="With name, description and parameters, a JSON schema; the template gets it as it is.")

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, "function": self.function}


class ToolCall(JsonObject):
    """A call in an earlier message."""

    expected: ClassVar[str] = "an object with function"

    id: Text | None = None
    type: Annotated[Literal["function"], Expected('"function"', UNSUPPORTED)] | None = None
    function: JsonFunction = Field(description="With name and arguments, an object or one in JSON.")

    def as_json(self) -> dict[str, Any]:
        """Arguments as an object, as templates expect them."""
        function = {**self.function, "arguments": _object_of(self.function.get("arguments"))}
        return {"type": "function", "function": function} | ({} if self.id is None else {"id": self.id})


Tools = Annotated[
    list[Tool],
    Field(max_length=MAX_TOOLS, fail_fast=True),
    Expected(f"a list of at most {MAX_TOOLS} functions"),
]
ToolCalls = Annotated[
    list[ToolCall],
    Field(max_length=MAX_TOOLS, fail_fast=True),
    Expected(f"a list of at most {MAX_TOOLS} calls"),
]


def _object_of(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) and depth_of(value) <= MAX_DEPTH else arguments
