"""When what is left cannot hold the model: answers wait for a machine, fail with what is missing at the limit and not earlier, and the
cluster heals without help."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from dairllm.mesh.channels import error_from_rpc, open_blocking_channel
from dairllm.mesh.errors import NotEnoughMemory
from dairllm.v1 import inference_pb2, inference_pb2_grpc
from tests.e2e.answers import PROMPTS, Answer, ask, assert_no_fault
from tests.instruments.clusters import REQUEST_TIMEOUT_S, Cluster, ShardSetup, wait_for
from tests.instruments.processes import ManagedProcess
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

MEMORY = "133MiB"
NUM_TOKENS = 600
TOKENS_BEFORE = 10
MISSING = "MiB of memory are missing"
LIMIT_S = 9
GAVE_UP = f"; gave up after {LIMIT_S} s"
"""What tells those that have waited up to the limit from those that were refused."""


@contextlib.contextmanager
def cluster_of_two(model: Path, *arguments: str) -> Iterator[Cluster]:
    """Neither of its shards can hold the model alone."""
    members = [ShardSetup(name, memory=MEMORY) for name in "ab"]
    with Cluster(model, members, min_shards=1, arguments=("--kv-tokens", "1024", "--context-length", "1024", *arguments)) as cluster:
        yield cluster
        assert_no_fault(*cluster.processes.values())


def lacks_memory(state: dict[str, Any]) -> bool:
    return bool(state["phase"] == "waiting" and state["missing_bytes"] > 0)


def assert_nothing_left(cluster: Cluster) -> None:
    def is_idle() -> bool:
        engine = cluster.state()["engine"]
        return bool(engine["running"] == engine["waiting"] == 0 and engine["kv_blocks_free"] == engine["kv_blocks_total"] > 0)

    wait_for(is_idle, "an engine without a trace of the answers that failed")


def assert_says_what_is_missing(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["retry-after"]) >= 1
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "not_enough_memory")
    assert MISSING in error["message"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stream_waits_for_a_machine_and_goes_on(larger_model: Path) -> None:
    """The machine comes only when the silence has been long enough for a comment."""
    with cluster_of_two(larger_model, "--recovery-limit", "600") as cluster:
        expected = ask(cluster, PROMPTS[0], NUM_TOKENS)
        with StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS) as stream:
            stream.wait_tokens(TOKENS_BEFORE)
            cluster.processes["b"].kill()
            assert MISSING in cluster.wait_until(lacks_memory)["reason"]
            wait_for(lambda: stream.num_comments > 0, "a keep-alive comment", REQUEST_TIMEOUT_S)
            assert not stream.is_over
            assert len(stream.tokens) < NUM_TOKENS
            cluster.start_shard(ShardSetup("c", memory=MEMORY))
            assert Answer.of_stream(stream) == expected
        assert_nothing_left(cluster)


@dataclass
class Ended:
    """What came of a request, and when, on the monotonic clock."""

    result: Any
    ended_s: float


def post(http: str) -> Ended:
    response = httpx.post(
        f"{http}/v1/completions", json=completion_body(PROMPTS[1], NUM_TOKENS), timeout=REQUEST_TIMEOUT_S, trust_env=False
    )
    return Ended(response, time.monotonic())


def generate(address: str) -> Ended:
    request = inference_pb2.GenerateRequest(max_tokens=NUM_TOKENS, ignore_eos=True)
    request.token_ids.ids.extend(PROMPTS[2])
    with open_blocking_channel(address) as channel:
        try:
            return Ended(list(inference_pb2_grpc.InferenceServiceStub(channel).Generate(request)), time.monotonic())
        except grpc.RpcError as error:
            return Ended(error, time.monotonic())


@dataclass
class Requests:
    """One stream whose tokens flow; then, since a shard computes no longer, requests of every kind of which no token has come: some under
    way, some in the queue. A context manager."""

    cluster: Cluster
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> "Requests":
        self.flowing = self._stream()
        self.flowing.wait_tokens(TOKENS_BEFORE)
        self.silent_since_s = time.monotonic()
        self.cluster.processes["b"].pause()
        self.silent = [self._stream()]
        pool = self._stack.enter_context(ThreadPoolExecutor())
        self.whole = [pool.submit(post, self.cluster.http) for _ in range(2)]
        self.over_grpc = [pool.submit(generate, self.cluster.grpc) for _ in range(2)]
        self.silent.append(self._stream())
        wait_for(lambda: self._load()["running"] + self._load()["waiting"] == 7, "all requests to be taken in")
        assert self._load()["running"] > 1
        assert self._load()["waiting"] > 0
        assert not self.flowing.is_over
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _stream(self) -> StreamedAnswer:
        return self._stack.enter_context(StreamedAnswer(self.cluster.http, PROMPTS[0], NUM_TOKENS))

    def _load(self) -> dict[str, Any]:
        load: dict[str, Any] = self.cluster.state()["engine"]
        return load

    def assert_failed(self) -> None:
        """Each in its own way, at the limit and not before."""
        assert_stream_says_what_is_missing(self.flowing)
        for stream in self.silent:
            assert_stream_says_what_is_missing(stream)
            assert stream.response is not None
            assert (stream.response.status_code == 503) == (stream.num_comments == 0), "a status of its own, while no header was out"
        for future in self.whole:
            assert_says_what_is_missing(future.result().result)
            assert GAVE_UP in future.result().result.text
        for future in self.over_grpc:
            assert_grpc_says_what_is_missing(future.result().result)
        ended_s = [stream.ended_s for stream in (self.flowing, *self.silent)]
        ended_s += [future.result().ended_s for future in (*self.whole, *self.over_grpc)]
        print(f"failed {min(ended_s) - self.silent_since_s:.2f} to {max(ended_s) - self.silent_since_s:.2f} s after the loss")
        assert min(ended_s) >= self.silent_since_s + LIMIT_S


def assert_stream_says_what_is_missing(stream: StreamedAnswer) -> None:
    """By an error event, or by status and header if nothing was sent before."""
    stream.wait_over()
    assert stream.response is not None
    assert stream.error is not None
    if stream.response.status_code == 503:
        assert int(stream.response.headers["retry-after"]) >= 1
        error = json.loads(stream.error.removeprefix("503: "))["error"]
    else:
        error = json.loads(stream.error)
        assert error["status"] == 503
        assert error["retry_after"] >= 1
    assert (error["type"], error["code"]) == ("server_error", "not_enough_memory")
    assert MISSING in error["message"]
    assert GAVE_UP in error["message"]


def assert_grpc_says_what_is_missing(error: Any) -> None:
    assert isinstance(error, grpc.RpcError), error
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    known = error_from_rpc(error)
    assert isinstance(known, NotEnoughMemory)
    assert MISSING in known.message
    assert GAVE_UP in known.message
    assert known.retry_after_s is not None, "RetryInfo is missing"


def status_of(cluster: Cluster) -> str:
    argv = [sys.executable, "-m", "dairllm.client.cli", "status", "--coordinator", cluster.grpc]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_at_the_limit_answers_fail_with_what_is_missing_and_the_cluster_heals(larger_model: Path) -> None:
    with cluster_of_two(larger_model, "--recovery-limit", str(LIMIT_S), "--max-running", "3") as cluster:
        expected = ask(cluster, PROMPTS[3])
        lost: ManagedProcess = cluster.processes["b"]
        with Requests(cluster) as requests:
            lost.kill()
            assert MISSING in cluster.wait_until(lacks_memory)["reason"]
            for _ in range(2):  # one that comes soon after the loss, and one that comes later
                refused = post(cluster.http).result
                assert_says_what_is_missing(refused)
                assert GAVE_UP not in refused.text
            assert_says_what_is_missing(cluster.client.get("/readyz"))
            assert MISSING in " ".join(status_of(cluster).split())
            requests.assert_failed()
        assert_nothing_left(cluster)
        lost.start()
        cluster.wait_serving()
        assert ask(cluster, PROMPTS[3]) == expected
