"""Bodies of OpenAI's chat and text completions.

Fields that would change the answer but are not supported are refused by name; fields that nobody knows are ignored.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    StringConstraints,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from dairllm.coordinator.http.bodies.chat_template import TemplateVariables, ToolCalls, Tools
from dairllm.coordinator.http.bodies.fields import (
    EMPTY,
    REFUSED,
    TEXT_FORMAT,
    UNCALLED,
    UNSUPPORTED,
    WHOLE_CHARACTERS,
    Expected,
    Flag,
    JsonObject,
    Number,
    Text,
    WholeNumber,
    only,
    refusal,
)
from dairllm.coordinator.http.limits import MAX_CHOICES
from dairllm.coordinator.text import MAX_STOP_LENGTH, MAX_STOP_STRINGS, ROLES
from dairllm.mesh.sampling import LOGIT_BIAS_RANGE, MAX_LOGIT_BIAS, MAX_SEED, MAX_TOP_LOGPROBS, SAMPLING_RANGES

MAX_TOKENS = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16
"""As OpenAI's text completions, unlike chat, have it."""

TokenId = Annotated[int, Strict(), Expected("a token id"), WithJsonSchema({"type": "integer", "minimum": 0})]
"""The vocabulary is the model's: who has the model checks the range."""
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), Expected("a list of at least one token id")]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$"), Expected("a token id")]
Bias = Annotated[float, Number(*LOGIT_BIAS_RANGE)]


def _entry_by_entry(value: object, validate: Callable[[object], dict[str, float]]) -> dict[str, float]:
    """As fail_fast for lists: a hostile object of a million wrong entries makes one error, not a million."""
    if not isinstance(value, dict):
        return validate(value)
    if len(value) > MAX_LOGIT_BIAS:
        raise refusal("fewer")  # in the words of Expected
    return {key: bias for entry in value.items() for key, bias in validate(dict([entry])).items()}


LogitBias = Annotated[
    dict[TokenKey, Bias],
    WrapValidator(_entry_by_entry),
    Expected(f"an object of at most {MAX_LOGIT_BIAS} token ids"),
    Field(json_schema_extra={"additionalProperties": False, "maxProperties": MAX_LOGIT_BIAS}),
]


def _text_or_list(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


def _prompt_form(value: object) -> str | None:
    """By the first item of a list."""
    if not isinstance(value, list):
        return _text_or_list(value)
    match value[:1]:
        case []:
            return None
        case [str()]:
            return "<texts>"
        case [int()]:
            return "<ids>"
        case _:
            return "<lists of ids>"


Prompt = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Text], Field(min_length=1, fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), Tag("<lists of ids>")],
    Discriminator(
        _prompt_form,
        custom_error_type=REFUSED,
        custom_error_message="a string, a list of strings, a list of token ids, or a list of lists of token ids",
    ),
]

StopString = Annotated[
    str,
    Strict(),
    Field(min_length=1, max_length=MAX_STOP_LENGTH),
    Expected(f"a string of 1 to {MAX_STOP_LENGTH} characters"),
    WHOLE_CHARACTERS,
]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")]
    | Annotated[
        list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), Expected(f"at most {MAX_STOP_STRINGS} strings"), Tag("<list>")
    ],
    Discriminator(
        _text_or_list,
        custom_error_type=REFUSED,
        custom_error_message=f"a string or a list of at most {MAX_STOP_STRINGS} strings",
    ),
]


class TextPart(JsonObject):
    """A part of a message. Text is the only kind."""

    expected: ClassVar[str] = "a part of type text"

    type: Annotated[Literal["text"], Expected('"text"', UNSUPPORTED)]
    text: Text


CONTENT_FORMS = "a string or a list of parts of type text"
Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Field(fail_fast=True), Tag("<list>")],
    Discriminator(
        _text_or_list,
        custom_error_type=REFUSED,
        custom_error_message=CONTENT_FORMS,
    ),
]


class Message(JsonObject):
    """A message of a chat."""

    expected: ClassVar[str] = "an object with role and content"

    role: Annotated[Literal["system", "developer", "user", "assistant", "tool"], Expected(f"one of {', '.join(ROLES)}")]
    name: Text | None = None
    tool_calls: ToolCalls | None = None
    tool_call_id: Text | None = None
    reasoning_content: Text | None = Field(None, description="What the assistant thought before it answered.")
    function_call: Annotated[Any, EMPTY] = None
    content: Annotated[Content | None, Field(None, validate_default=True)]

    @field_validator("content")
    @classmethod
    def _only_the_assistant_may_be_silent(cls, value: object, info: ValidationInfo) -> object:
        """As a model is that only called tools; such histories come without the calls, too."""
        if value is None and info.data.get("role") != "assistant":
            raise refusal(CONTENT_FORMS)
        return value


class StreamOptions(JsonObject):
    """What a stream carries beside the answer."""

    include_usage: Flag | None = Field(None, description="Send the usage in a last chunk without choices.")


class GenerationBody(JsonObject):
    """What both kinds of completions take."""

    model: Text | None = Field(None, description="The served model's name; may be left out.")
    n: Annotated[int, WholeNumber(1, MAX_CHOICES)] | None = Field(None, description="Answers to each prompt; 1 if absent.")
    temperature: Annotated[float, Number(*SAMPLING_RANGES["temperature"])] | None = Field(None, description="0: the most probable token.")
    top_k: Annotated[int, WholeNumber(-1, 2**31 - 1)] | None = None
    top_p: Annotated[float, Number(*SAMPLING_RANGES["top_p"])] | None = Field(None, description="0: the most probable token.")
    min_p: Annotated[float, Number(*SAMPLING_RANGES["min_p"])] | None = None
    repetition_penalty: Annotated[float, Number(*SAMPLING_RANGES["repetition_penalty"], above=True)] | None = None
    presence_penalty: Annotated[float, Number(*SAMPLING_RANGES["presence_penalty"])] | None = None
    frequency_penalty: Annotated[float, Number(*SAMPLING_RANGES["frequency_penalty"])] | None = None
    seed: Annotated[int, WholeNumber(-(2**63), MAX_SEED)] | None = Field(None, description="Random if absent or -1.")
    logit_bias: LogitBias | None = Field(None, description="By token id.")
    stop: Stop | None = None
    ignore_eos: Flag | None = Field(None, description="Go on behind the model's end token.")
    stream: Flag | None = None
    stream_options: StreamOptions | None = Field(None, description="Only together with stream.")
    return_token_ids: Flag | None = None
    tools: Annotated[Any, EMPTY] = None
    response_format: Annotated[Any, TEXT_FORMAT] = None
    suffix: Annotated[Any, EMPTY] = None


class ChatCompletionBody(GenerationBody):
    """The body of a chat completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}]})

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True), Expected("a list of at least one message")]
    max_tokens: Annotated[int, WholeNumber(1, MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, WholeNumber(1, MAX_TOKENS)] | None = Field(None, description="Where max_tokens is absent.")
    logprobs: Flag | None = None
    top_logprobs: Annotated[int, WholeNumber(0, MAX_TOP_LOGPROBS)] | None = Field(None, description="Only together with logprobs.")
    tools: Tools | None = Field(None, description="Told to the model by its template. Calls come as the model writes them, as text.")
    chat_template_kwargs: TemplateVariables | None = Field(
        None, description="Variables of the model's chat template, such as enable_thinking; only those that it has."
    )
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, UNCALLED] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    audio: Annotated[Any, EMPTY] = None
    modalities: Annotated[Any, only([], ["text"])] = None
    prediction: Annotated[Any, EMPTY] = None
    web_search_options: Annotated[Any, only()] = None
    echo: Annotated[Any, only(False)] = None
    best_of: Annotated[Any, only(1)] = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_may_not_be_called(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        choices = {"tools": "tool_choice", "functions": "function_call"}
        uncalled = {name for name, choice in choices.items() if value.get(choice) == "none" and isinstance(value.get(name), list)}
        return {name: held for name, held in value.items() if name not in uncalled}


class CompletionBody(GenerationBody):
    """The body of a text completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_tokens": 32}]})

    prompt: Prompt
    max_tokens: Annotated[int, WholeNumber(0, MAX_TOKENS)] | None = Field(None, description=f"{DEFAULT_COMPLETION_TOKENS} if absent.")
    logprobs: Annotated[int, WholeNumber(0, MAX_TOP_LOGPROBS)] | None = None
    echo: Flag | None = None
    best_of: Annotated[int, WholeNumber(1, MAX_CHOICES)] | None = Field(None, description="Only as many as n.")
