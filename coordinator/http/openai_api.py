"""OpenAI's API: completions of chats and of texts, and the model."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from dairllm.coordinator.http.answer_types import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    ErrorEvent,
    ModelList,
    ServedModelObject,
)
from dairllm.coordinator.http.answers import LAST_EVENT, GenerationResponse
from dairllm.coordinator.http.bodies.models import ChatCompletionBody, CompletionBody
from dairllm.coordinator.http.bodies.reading import Body, BodyReader
from dairllm.coordinator.http.calls import Call, chat_call, completion_call
from dairllm.coordinator.http.error_replies import EVENT_STREAM, JSON, json_reply
from dairllm.coordinator.http.limits import HttpLimits
from dairllm.coordinator.http.operations import Handler, Operation, OperationAnswer, Parameter, refused
from dairllm.coordinator.text import TextService

_UNKNOWN_MODEL = refused("No model of this name is served.")
_REFUSALS = {
    400: refused("The body is no JSON, has a field that is wrong or not supported, or asks for more than the context holds."),
    404: _UNKNOWN_MODEL,
    408: refused("The body did not arrive in time."),
    413: refused("The body is too large."),
    415: refused("The body is compressed in a way that is not known."),
    429: refused("The queue is full.", retry_after=True),
    500: refused("The answer failed because of an internal error."),
    503: refused("No plan of the cluster serves the model now, or the answer was lost with a shard.", retry_after=True),
}
_STREAM = "With `stream`, events: chunks of the answer; an error, if it fails on the way; `[DONE]` last."


def openai_operations(text: TextService, limits: HttpLimits) -> Sequence[Operation]:
    reader = BodyReader(limits)

    async def models(request: Request) -> Response:
        served: ModelList = {"object": "list", "data": [_model_object(text)]}
        return json_reply(served)

    async def model(request: Request) -> Response:
        text.require_model(request.path_params["name"])
        return json_reply(_model_object(text))

    return [
        Operation(
            "POST",
            "/v1/chat/completions",
            "chat_completions",
            "Continue a chat",
            _generation(ChatCompletionBody, chat_call, reader, text, limits),
            {200: _answer(ChatCompletion, ChatCompletionChunk), **_REFUSALS},
            ChatCompletionBody,
        ),
        Operation(
            "POST",
            "/v1/completions",
            "completions",
            "Continue a text",
            _generation(CompletionBody, completion_call, reader, text, limits),
            {200: _answer(Completion, CompletionChunk), **_REFUSALS},
            CompletionBody,
        ),
        Operation(
            "GET", "/v1/models", "models", "The served model, as a list", models, {200: OperationAnswer("The list.", {JSON: ModelList})}
        ),
        Operation(
            "GET",
            "/v1/models/{name:path}",
            "model",
            "The served model",
            model,
            {200: OperationAnswer("The model.", {JSON: ServedModelObject}), 404: _UNKNOWN_MODEL},
            parameters={"name": Parameter("The model's name; slashes may stand in it as they are.", text.served.name)},
        ),
    ]


def _answer(whole: type, chunk: type) -> OperationAnswer:
    return OperationAnswer(f"The answer. {_STREAM}", {JSON: whole, EVENT_STREAM: chunk | ErrorEvent}, last_event=LAST_EVENT)


def _generation(
    model: type[Body],
    read_call: Callable[[Body, TextService, HttpLimits], Awaitable[Call]],
    reader: BodyReader,
    text: TextService,
    limits: HttpLimits,
) -> Handler:
    async def generate(request: Request) -> Response:
        body = await reader.read(request, model)
        return GenerationResponse(await read_call(body, text, limits), text, limits)

    return generate


def _model_object(text: TextService) -> ServedModelObject:
    served = text.served
    return {
        "id": served.name,
        "object": "model",
        "created": served.created_s,
        "owned_by": "dairllm",
        "max_model_len": text.engine.context_length,
        "model_digest": served.model_digest,
        "arithmetic": served.arithmetic,
        "system_fingerprint": served.fingerprint,
    }
