"""InferenceService over a real channel."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest

from dairllm.coordinator.services.inference_servicer import SERVICE_NAME, InferenceServicer
from dairllm.mesh.channels import bind, create_server, error_from_rpc, open_channel
from dairllm.mesh.errors import Busy, ContextExceeded, DairllmError, InvalidRequest, NotReady, RequestLost, UnknownModel, Unsupported
from dairllm.v1 import inference_pb2, inference_pb2_grpc, ring_pb2
from tests.text.fakes import CONTEXT_LENGTH, VOCAB_SIZE, FakeEngine, logprob_of, make_served


class Service(NamedTuple):
    stub: inference_pb2_grpc.InferenceServiceStub
    engine: FakeEngine


async def run_service(with_tokenizer: bool) -> AsyncIterator[Service]:
    engine = FakeEngine(b"Hello")
    server = create_server()
    servicer = InferenceServicer(make_served(with_tokenizer=with_tokenizer, with_template=with_tokenizer), engine)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = await bind(server, "127.0.0.1", 0, "the test")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        yield Service(inference_pb2_grpc.InferenceServiceStub(channel), engine)
    await server.stop(1)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async for one in run_service(with_tokenizer=True):
        yield one


@pytest.fixture
async def bare_service() -> AsyncIterator[Service]:
    async for one in run_service(with_tokenizer=False):
        yield one


async def generate(service: Service, **fields: Any) -> list[inference_pb2.GenerateResponse]:
    return [response async for response in service.stub.Generate(inference_pb2.GenerateRequest(**fields), timeout=10)]


async def failure(service: Service, **fields: Any) -> DairllmError:
    with pytest.raises(grpc.RpcError) as caught:
        await generate(service, **fields)
    return error_from_rpc(caught.value)


def test_the_service_has_its_name_in_the_protos() -> None:
    assert inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name == SERVICE_NAME


async def test_text_streams_and_ends_with_a_finish(service: Service) -> None:
    service.engine.num_reused = 2
    responses = await generate(service, text="Hi")
    assert "".join(response.text for response in responses) == "Hello"
    assert [token.token_id for response in responses for token in response.tokens] == [*b"Hello", 257]
    assert [response.HasField("finish") for response in responses] == [False] * (len(responses) - 1) + [True]
    finish = responses[-1].finish
    assert finish.reason == inference_pb2.FINISH_REASON_STOP
    assert (finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens) == (3, 2, 6)
    assert finish.first_token_s > 0


async def test_absent_sampling_means_a_random_seed_and_temperature_1(service: Service) -> None:
    await generate(service, text="Hi")
    await generate(service, text="Hi")
    first, second = (request.sampling for request in service.engine.requests)
    assert first.temperature == 1
    assert first.seed != second.seed


async def test_what_is_absent_within_sampling_is_as_without_it_and_zero_is_zero(service: Service) -> None:
    lacking, zero = ring_pb2.SamplingParams(top_k=3), ring_pb2.SamplingParams(temperature=0, top_p=0, seed=0)
    for asked in (lacking, lacking, zero):
        await generate(service, text="Hi", sampling=asked)
    first, second, zeros = (request.sampling for request in service.engine.requests)
    assert (first.temperature, first.top_p, first.repetition_penalty, first.top_k) == (1, 1, 1, 3)
    assert first.seed != second.seed
    assert (zeros.temperature, zeros.top_p, zeros.repetition_penalty, zeros.seed) == (0, 0, 1, 0)


async def test_sampling_is_taken_as_it_is(service: Service) -> None:
    asked = ring_pb2.SamplingParams(temperature=0.5, seed=7, logprobs=True, top_logprobs=2)
    responses = await generate(service, text="Hi", sampling=asked, max_tokens=1)
    sampling = service.engine.requests[0].sampling
    assert (sampling.temperature, sampling.seed, sampling.top_p, sampling.repetition_penalty) == (0.5, 7, 1, 1)
    token = responses[0].tokens[0]
    assert token.logprob == logprob_of(ord("H"))
    assert [one.token_id for one in token.top] == [ord("H"), ord("I")]
    assert responses[-1].finish.reason == inference_pb2.FINISH_REASON_LENGTH


async def test_chat_and_stop(service: Service) -> None:
    chat = inference_pb2.ChatMessages(messages=[inference_pb2.ChatMessage(role="user", content="Hi")])
    responses = await generate(service, chat=chat, stop=["lo"])
    assert "".join(response.text for response in responses) == "Hel"


async def test_ids_go_through_a_model_without_tokenizer(bare_service: Service) -> None:
    responses = await generate(bare_service, token_ids=inference_pb2.TokenIds(ids=[1, 2]), max_tokens=2)
    assert [token.token_id for response in responses for token in response.tokens] == [*b"He"]
    assert all(response.text == "" for response in responses)


async def test_errors_name_the_field(service: Service, bare_service: Service) -> None:
    assert isinstance(await failure(service, text="Hi", model="other"), UnknownModel)
    assert isinstance(await failure(service), InvalidRequest)
    assert isinstance(await failure(service, token_ids=inference_pb2.TokenIds(ids=[VOCAB_SIZE])), InvalidRequest)
    assert isinstance(await failure(bare_service, text="Hi"), Unsupported)
    too_long = await failure(service, text="x" * CONTEXT_LENGTH)
    assert isinstance(too_long, ContextExceeded)
    assert too_long.message.startswith(f"This model's maximum context length is {CONTEXT_LENGTH} tokens")
    error = await failure(service, text="Hi", sampling=ring_pb2.SamplingParams(temperature=-1))
    assert (type(error), error.param) == (InvalidRequest, "temperature")
    error = await failure(service, text="Hi", sampling=ring_pb2.SamplingParams(repetition_penalty=0))
    assert (type(error), error.param) == (InvalidRequest, "repetition_penalty")


async def test_a_full_queue_says_when_to_try_again(service: Service) -> None:
    service.engine.error, service.engine.fail_at = Busy("the queue is full", retry_after_s=3), -1
    error = await failure(service, text="Hi")
    assert isinstance(error, Busy)
    assert error.retry_after_s == 3


async def test_a_failure_in_the_middle_ends_the_stream_with_it(service: Service) -> None:
    service.engine.error, service.engine.fail_at = RequestLost("gone"), 3
    call = service.stub.Generate(inference_pb2.GenerateRequest(text="Hi"), timeout=10)
    assert [(await call.read()).text for _ in range(3)] == ["H", "e", "l"]
    with pytest.raises(grpc.RpcError) as caught:
        await call.read()
    assert isinstance(error_from_rpc(caught.value), RequestLost)


@pytest.mark.parametrize("pause_at", [-1, 2])
async def test_cancelling_the_call_cancels_the_sequence(service: Service, pause_at: int) -> None:
    service.engine.pause_at = pause_at
    call = service.stub.Generate(inference_pb2.GenerateRequest(text="Hi"), timeout=10)
    if pause_at > 0:
        assert (await call.read()).text == "H"
    await service.engine.paused.wait()
    call.cancel()
    await service.engine.all_ended.wait()
    assert service.engine.num_open == 0


async def test_tokenize_and_back(service: Service) -> None:
    request = inference_pb2.TokenizeRequest(text="a<|im_end|>", add_special=True, parse_special=True)
    ids = (await service.stub.Tokenize(request, timeout=10)).token_ids
    assert list(ids) == [256, 97, 257]
    plain = await service.stub.Tokenize(inference_pb2.TokenizeRequest(text="<s>"), timeout=10)
    assert list(plain.token_ids) == list(b"<s>")
    text = (await service.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=ids), timeout=10)).text
    assert text == "<s>a<|im_end|>"


async def test_token_ids_out_of_range_and_no_tokenizer(service: Service, bare_service: Service) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await service.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[VOCAB_SIZE]), timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        await bare_service.stub.Tokenize(inference_pb2.TokenizeRequest(text="Hi"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_the_model_is_listed(service: Service) -> None:
    service.engine.unready = NotReady("waiting for shards")
    (model,) = (await service.stub.ListModels(inference_pb2.ListModelsRequest(), timeout=10)).models
    assert (model.name, model.architecture, model.context_length, model.vocab_size) == ("tiny", "llama", CONTEXT_LENGTH, VOCAB_SIZE)
    assert model.has_tokenizer
    assert model.has_chat_template
    assert not model.ready
    assert model.system_fingerprint == make_served().fingerprint


async def test_the_engine_is_told_who_asks(service: Service) -> None:
    request = inference_pb2.GenerateRequest(text="Hi", max_tokens=1)
    for metadata in ((), (("authorization", "Bearer secret"),)):
        assert [response async for response in service.stub.Generate(request, timeout=10, metadata=metadata)]
    first, second = (request.asker.client for request in service.engine.requests)
    assert first == "address 127.0.0.1"
    assert second.startswith("key ")
