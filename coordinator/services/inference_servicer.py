"""InferenceService: what applications call over gRPC. The contract is in protos/dairllm/v1/inference.proto."""

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

import grpc

from dairllm.coordinator.engine.interface import TokenEngine
from dairllm.coordinator.engine.requests import Asker
from dairllm.coordinator.text import (
    ChatMessage,
    LatencyObserver,
    ServedModel,
    TextDelta,
    TextFinished,
    TextRequest,
    TextService,
    TextToken,
    address_of_peer,
    client_name,
    random_seed,
)
from dairllm.mesh.errors import InvalidRequest
from dairllm.mesh.sampling import SamplingParams
from dairllm.v1 import inference_pb2, inference_pb2_grpc, ring_pb2

SERVICE_NAME = "dairllm.v1.InferenceService"
FINISH_REASONS = {
    "stop": inference_pb2.FINISH_REASON_STOP,
    "length": inference_pb2.FINISH_REASON_LENGTH,
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Raises DairllmErrors, which servers of `mesh.channels` turn into statuses. latency: is told how long tokens took, as for HTTP."""

    def __init__(self, served: ServedModel, engine: TokenEngine, latency: LatencyObserver | None = None) -> None:
        self._text = TextService(served, engine, latency)

    async def Generate(
        self, request: inference_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        text_request = await self._read_request(request)
        async with aclosing(self._text.generate(text_request, _asker(context))) as events:
            async for event in events:
                yield _write_delta(event, text_request.sampling) if isinstance(event, TextDelta) else _write_finish(event)

    async def Tokenize(self, request: inference_pb2.TokenizeRequest, context: grpc.aio.ServicerContext) -> inference_pb2.TokenizeResponse:
        self._text.require_model(request.model)
        ids = await self._text.count_text(request.text, add_special=request.add_special, parse_special=request.parse_special)
        return inference_pb2.TokenizeResponse(token_ids=ids)

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.DetokenizeResponse:
        self._text.require_model(request.model)
        return inference_pb2.DetokenizeResponse(text=await self._text.decode(request.token_ids))

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.ListModelsResponse:
        served, engine = self._text.served, self._text.engine
        info = inference_pb2.ModelInfo(
            name=served.name,
            architecture=served.spec.architecture,
            context_length=engine.context_length,
            vocab_size=served.spec.num_tokens,
            has_tokenizer=served.tokenizer is not None,
            has_chat_template=served.chat_template is not None,
            ready=engine.why_unready() is None,
            arithmetic=served.arithmetic,
            system_fingerprint=served.fingerprint,
        )
        return inference_pb2.ListModelsResponse(models=[info])

    async def _read_request(self, request: inference_pb2.GenerateRequest) -> TextRequest:
        self._text.require_model(request.model)
        sampling = SamplingParams.from_proto(request.sampling, SamplingParams(seed=random_seed()))
        max_tokens = request.max_tokens if request.HasField("max_tokens") else None
        return TextRequest(await self._read_prompt(request), sampling, max_tokens, tuple(request.stop), request.ignore_eos)

    async def _read_prompt(self, request: inference_pb2.GenerateRequest) -> tuple[int, ...]:
        match request.WhichOneof("prompt"):
            case "text":
                return await self._text.encode_text(request.text)
            case "token_ids":
                self._text.check_length(len(request.token_ids.ids), None)
                return tuple(request.token_ids.ids)
            case "chat":
                self._text.check_length(len(request.chat.messages), None)
                return await self._text.encode_chat([ChatMessage(one.role, one.content) for one in request.chat.messages])
            case _:
                raise InvalidRequest("prompt is missing; expected text, token_ids or chat", "prompt")


def _asker(context: grpc.aio.ServicerContext) -> Asker:
    """As over HTTP: the API key in the metadata `authorization`, else the peer's address."""
    authorization = dict(context.invocation_metadata() or ()).get("authorization")
    return Asker(client_name(authorization if isinstance(authorization, str) else None, address_of_peer(context.peer())))


def _write_delta(delta: TextDelta, sampling: SamplingParams) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(text=delta.text, tokens=_write_tokens(delta.tokens, sampling.logprobs))


def _write_tokens(tokens: Iterable[TextToken], with_logprobs: bool) -> list[ring_pb2.TokenLogprobs]:
    if not with_logprobs:
        return [ring_pb2.TokenLogprobs(token_id=token.token_id) for token in tokens]
    return [
        ring_pb2.TokenLogprobs(
            token_id=token.token_id,
            logprob=math.nan if token.logprob is None else token.logprob,
            top=[ring_pb2.TopLogprob(token_id=one.token_id, logprob=one.logprob) for one in token.top],
        )
        for token in tokens
    ]


def _write_finish(finished: TextFinished) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        finish=inference_pb2.GenerateFinish(
            reason=FINISH_REASONS[finished.reason],
            prompt_tokens=finished.prompt_tokens,
            cached_tokens=finished.cached_tokens,
            completion_tokens=finished.completion_tokens,
            first_token_s=finished.first_token_s,
            decode_s=finished.decode_s,
        )
    )
