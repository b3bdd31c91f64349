"""Types of the fields of bodies: what is accepted, and in which words everything else is refused.

JSON has types, so none is converted: "1", 1.0 and true are no whole numbers. What a field takes stands here once, for the check and for the
OpenAPI document.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, LiteralString

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, Strict, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

REFUSED, UNSUPPORTED, HALF_CHARACTER = "refused", "unsupported", "half_character"
"""What can be wrong with a value, as `refusals` tells it. The words of the first two are what was expected."""
_LEAVES = frozenset({"int", "float", "str", "bool", "literal"})


class Expected:
    """In an annotation: whatever is wrong with the value itself is told in `words`. Items and fields inside it have words of their own."""

    def __init__(self, words: str, kind: LiteralString = REFUSED) -> None:
        self._words = words
        self._kind: LiteralString = kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if schema["type"] in _LEAVES:  # stays out of Python, for lists of 100,000 token ids
            return core_schema.custom_error_schema(schema, self._kind, custom_error_message=self._words)
        return core_schema.no_info_wrap_validator_function(self._check, schema)

    def _check(self, value: object, validate: Callable[[object], object]) -> object:
        try:
            return validate(value)
        except ValidationError as error:
            if all(one["loc"] for one in error.errors(include_url=False, include_context=False)):
                raise
            raise refusal(self._words, self._kind) from None


def refusal(words: str, kind: LiteralString = REFUSED) -> PydanticCustomError:
    return PydanticCustomError(kind, "{words}", {"words": words})


class WholeNumber:
    """For an int from `lowest` to `highest`."""

    def __init__(self, lowest: int, highest: int) -> None:
        self._lowest, self._highest = lowest, highest

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.int_schema(strict=True, ge=self._lowest, le=self._highest)
        words = f"a whole number from {self._lowest} to {self._highest}"
        return core_schema.custom_error_schema(schema, REFUSED, custom_error_message=words)


class Number:
    """For a float from `lowest` to `highest`; above: `lowest` itself is refused, too."""

    def __init__(self, lowest: float, highest: float, *, above: bool = False) -> None:
        self._lowest, self._highest, self._above = lowest, highest, above

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        low, high, above = self._lowest, self._highest, self._above
        schema = core_schema.float_schema(strict=True, gt=low if above else None, ge=None if above else low, le=high)
        words = f"a number {f'over {low:g}, at most' if above else f'from {low:g} to'} {high:g}"
        return core_schema.custom_error_schema(schema, REFUSED, custom_error_message=words)


def _whole_characters(value: object) -> object:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PydanticCustomError(HALF_CHARACTER, "{start}", {"start": error.start}) from None
    return value


WHOLE_CHARACTERS = BeforeValidator(_whole_characters)
Text = Annotated[str, Strict(), Expected("a string"), WHOLE_CHARACTERS]
Flag = Annotated[bool, Strict(), Expected("true or false")]


class NotSupported:
    """In an annotation of Any: a field that would change the answer. Only values that ask for nothing are accepted, and mean absent."""

    def __init__(self, is_harmless: Callable[[object], bool], *harmless: JsonSchemaValue) -> None:
        self._is_harmless = is_harmless
        self._harmless = harmless

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> JsonSchemaValue:
        return {"anyOf": [*self._harmless, {"type": "null"}], "description": "Not supported: refused with any other value."}

    def _check(self, value: object) -> None:
        if value is not None and not self._is_harmless(value):
            raise refusal("it to be absent", UNSUPPORTED)


def only(*harmless: object) -> NotSupported:
    """A field of which just these values are harmless."""
    return NotSupported(lambda value: any(_same(value, one) for one in harmless), *({"const": one} for one in harmless))


def _same(value: object, other: object) -> bool:
    """As JSON has it: true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _is_text_format(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


EMPTY = only([], {}, "")
UNCALLED = NotSupported(
    lambda value: value in ([], {}, ""),
    {"type": "array", "description": "Passed over if none may be called."},
    {"const": {}},
    {"const": ""},
)
TEXT_FORMAT = NotSupported(_is_text_format, {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]})


class JsonObject(BaseModel):
    """An object of a body. null counts as absent everywhere, as in OpenAI's API; fields that nobody knows are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    expected: ClassVar[str] = "an object"

    @model_validator(mode="before")
    @classmethod
    def _read_object(cls, value: object) -> object:
        """What is required and absent becomes null, so that the field's own words tell what was expected."""
        if not isinstance(value, dict):
            raise refusal(cls.expected)
        required = {name: None for name, field in cls.model_fields.items() if field.is_required()}
        return required | value
