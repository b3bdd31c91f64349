"""The coordinator's gRPC API for Python programs, without asyncio.

from dairllm.client import Client

with Client("192.168.1.10:7070") as client:
    for piece in client.chat([Message("user", "What is a transistor?")], max_tokens=100):
        print(piece, end="", flush=True)
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc

from dairllm.mesh.channels import error_from_rpc, open_blocking_channel
from dairllm.mesh.errors import DairllmError
from dairllm.mesh.sampling import SamplingParams
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc

CALL_TIMEOUT_S = 10.0
"""Deadline of every call that answers at once."""
CONFIGURE_TIMEOUT_S = 20.0
"""Longer than the coordinator waits for the shard."""


class Message(NamedTuple):
    """One message of a conversation. role: 'system', 'user', 'assistant' or 'tool'."""

    role: str
    content: str


class TokenChoice(NamedTuple):
    """A generated token; its log-probability and the most probable tokens at its place are there if the sampling asked for them."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended. reason: 'stop' or 'length'. cached_tokens: of the prompt, which did not have to be computed.
    Times as the coordinator measured them, from the arrival of the call."""

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float

    @property
    def decode_tok_s(self) -> float:
        """Tokens per second after the first one; 0 if there is only one."""
        return (self.completion_tokens - 1) / self.decode_s if self.completion_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    architecture: str
    context_length: int
    vocab_size: int
    has_tokenizer: bool
    has_chat_template: bool
    ready: bool


_FINISH_REASONS = {inference_pb2.FINISH_REASON_STOP: "stop", inference_pb2.FINISH_REASON_LENGTH: "length"}


class Answer:
    """An answer that is being generated: iterate over it for its pieces of text. Whole characters only, so a piece may be empty.

    `tokens` and `text` grow with the iteration; `finish` is set after the last piece. `cancel()`, leaving a `with` block or
    dropping the object ends the generation on the cluster. Raises the error's class of mesh.errors for whatever goes wrong.
    """

    def __init__(self, call: Any, peer: str) -> None:
        self._call = call
        self._peer = peer
        self.text = ""
        self.tokens: list[TokenChoice] = []
        self.finish: Finish | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for response in self._call:
                self._take(response)
                yield response.text
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._peer) from None
        finally:
            self.cancel()
        if self.finish is None:
            raise DairllmError("the coordinator ended the answer without saying why; expected a last message with 'finish'")

    def read(self) -> str:
        """Wait for the whole answer and return its text."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def _take(self, response: inference_pb2.GenerateResponse) -> None:
        self.text += response.text
        for token in response.tokens:
            top = tuple((other.token_id, other.logprob) for other in token.top)
            self.tokens.append(TokenChoice(token.token_id, token.logprob, top))
        if response.HasField("finish"):
            finish = response.finish
            reason = _FINISH_REASONS.get(finish.reason, "unknown")
            self.finish = Finish(
                reason,
                finish.prompt_tokens,
                finish.cached_tokens,
                finish.completion_tokens,
                finish.first_token_s,
                finish.decode_s,
            )


class Client:
    """A connection to the coordinator at `address` ('host:port'). Every method raises a class of mesh.errors."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._peer = f"the coordinator at {address}"
        self._channel = open_blocking_channel(address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._cluster = cluster_pb2_grpc.ClusterServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        model: str = "",
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Answer:
        """Continue a text, or token ids.

        max_tokens None: until the model ends or its context is full. sampling None: temperature 1 and a random seed.
        model '': the one that is served.
        """
        request = inference_pb2.GenerateRequest()
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
            request.token_ids.SetInParent()
        return self._start(request, model, max_tokens, sampling, stop, ignore_eos)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str = "",
        max_tokens: int | None = None,
        sampling: SamplingParams | None = None,
        stop: Sequence[str] = (),
    ) -> Answer:
        """Answer a conversation, rendered with the model's chat template. Parameters as of `generate`."""
        request = inference_pb2.GenerateRequest()
        request.chat.messages.extend(inference_pb2.ChatMessage(role=m.role, content=m.content) for m in messages)
        request.chat.SetInParent()
        return self._start(request, model, max_tokens, sampling, stop, False)

    def tokenize(self, text: str, *, model: str = "", add_special: bool = False, parse_special: bool = False) -> list[int]:
        request = inference_pb2.TokenizeRequest(model=model, text=text, add_special=add_special, parse_special=parse_special)
        return list(self._call(self._inference.Tokenize, request).token_ids)

    def detokenize(self, token_ids: Sequence[int], *, model: str = "") -> str:
        request = inference_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        return str(self._call(self._inference.Detokenize, request).text)

    def models(self) -> list[Model]:
        response = self._call(self._inference.ListModels, inference_pb2.ListModelsRequest())
        return [
            Model(m.name, m.architecture, m.context_length, m.vocab_size, m.has_tokenizer, m.has_chat_template, m.ready)
            for m in response.models
        ]

    def cluster(self) -> cluster_pb2.ClusterState:
        """The state of the cluster now."""
        call = self._cluster.WatchCluster(cluster_pb2.WatchClusterRequest(once=True), timeout=CALL_TIMEOUT_S)
        try:
            state: cluster_pb2.ClusterState = next(iter(call)).state
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._peer) from None
        except StopIteration:
            raise DairllmError("the coordinator ended WatchCluster without a message; expected one") from None
        return state

    def watch_cluster(self, timeout_s: float | None = None) -> Generator[cluster_pb2.ClusterState, None, None]:
        """The state now and after every change, until the iterator is closed or the connection breaks.

        Raises DeadlineExceeded after timeout_s.
        """
        call = self._cluster.WatchCluster(cluster_pb2.WatchClusterRequest(), timeout=timeout_s)
        try:
            for response in call:
                yield response.state
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._peer) from None
        finally:
            call.cancel()

    def drain_shard(self, name: str, *, force: bool = False) -> None:
        """Ask a shard to hand over its layers and leave; `watch_cluster` shows it go. force: also if the model is not served without it."""
        self._call(self._cluster.DrainShard, cluster_pb2.DrainShardRequest(name=name, force=force))

    def cordon_shard(self, name: str, cordoned: bool = True, *, force: bool = False) -> None:
        """Exclude a shard from planning while the others suffice, or in any case (force), or admit it again; it stays a member."""
        self._call(self._cluster.CordonShard, cluster_pb2.CordonShardRequest(name=name, cordoned=cordoned, force=force))

    def configure_shard(
        self, name: str, *, memory_budget_bytes: int | None = None, num_threads: int | None = None, force: bool = False
    ) -> cluster_pb2.ConfigureShardResponse:
        """Change limits of a running shard; None leaves one as it is. force: also if the model can't be served with so little memory.
        Returns what is in force then."""
        request = cluster_pb2.ConfigureShardRequest(
            name=name, memory_budget_bytes=memory_budget_bytes, num_threads=num_threads, force=force
        )
        limits: cluster_pb2.ConfigureShardResponse = self._call(self._cluster.ConfigureShard, request, CONFIGURE_TIMEOUT_S)
        return limits

    def _start(
        self,
        request: inference_pb2.GenerateRequest,
        model: str,
        max_tokens: int | None,
        sampling: SamplingParams | None,
        stop: Sequence[str],
        ignore_eos: bool,
    ) -> Answer:
        request.model = model
        request.ignore_eos = ignore_eos
        request.stop.extend(stop)
        if max_tokens is not None:
            request.max_tokens = max_tokens
        if sampling is not None:
            request.sampling.CopyFrom(sampling.to_proto())
        return Answer(self._inference.Generate(request), self._peer)

    def _call(self, method: Any, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._peer) from None
