"""Answers as OpenAI's API has them. They are written as these dictionaries, and described by them in the OpenAPI document."""

from typing import Annotated, Literal, NotRequired

from pydantic import WithJsonSchema
from typing_extensions import TypedDict

ErrorType = Annotated[str, WithJsonSchema({"type": "string", "enum": ["invalid_request_error", "rate_limit_error", "server_error"]})]
FinishReason = Annotated[str, WithJsonSchema({"type": "string", "enum": ["stop", "length"]})]


class PromptTokensDetails(TypedDict):
    """cached_tokens: of the prompt, which an earlier one began with, so that they were not computed."""

    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(TypedDict):
    token: str
    logprob: float | None
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ChatLogprob]
    refusal: None


class ChatAnswer(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(TypedDict):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    token_ids: NotRequired[list[int]]


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str


class ChatChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    token_ids: NotRequired[list[int]]


class CompletionLogprobs(TypedDict):
    """Four lists of one length. The first token of an echoed prompt has null for its log-probabilities."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionText(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    token_ids: NotRequired[list[int]]


class CompletionChoice(CompletionText):
    finish_reason: FinishReason


class CompletionChunkChoice(CompletionText):
    finish_reason: FinishReason | None


class AnswerHead(TypedDict):
    """What every answer and every chunk of one begins with. Answers with one fingerprint come from one arithmetic: the same request with
    the same seed has the same tokens."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(AnswerHead):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class ChatCompletionChunk(AnswerHead):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class Completion(AnswerHead):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(AnswerHead):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]


class ServedModelObject(TypedDict):
    """max_model_len: longest sequence in tokens, prompt and answer together. Two clusters of one model_digest and one arithmetic give the
    same tokens; system_fingerprint is made of both."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    model_digest: str
    arithmetic: str
    system_fingerprint: str


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ServedModelObject]


class ErrorObject(TypedDict):
    """message: one sentence. param: the field that is wrong, if it is one. code: which error it is."""

    message: str
    type: ErrorType
    param: str | None
    code: str


class ErrorReply(TypedDict):
    error: ErrorObject


class ErrorEventObject(ErrorObject):
    """status: as the HTTP status would be. retry_after: seconds; null where trying again does not help."""

    status: int
    retry_after: int | None


class ErrorEvent(TypedDict):
    error: ErrorEventObject


class Liveness(TypedDict):
    status: str
