"""Strangers on every port: whatever they send or fail to read, the cluster goes on and gives the same right answer."""

import contextlib
import random
import socket
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.protocol import PROTOCOL_MAJOR
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, ring_pb2, ring_pb2_grpc, shard_pb2, shard_pb2_grpc, weights_pb2_grpc
from tests.e2e.answers import PROMPTS, Answer, ask, assert_sound
from tests.instruments.clusters import Cluster, elapsed, shards
from tests.instruments.streamed_answers import StreamedAnswer

SOCKET_TIMEOUT_S = 10.0
CALL_TIMEOUT_S = 10.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)
NUM_CONNECTIONS = 1000

FEATURES = (*STAGE_FEATURES, ARITHMETIC_FEATURE)


@dataclass(frozen=True)
class Site:
    """A running cluster of two shards, its ports, and the right answer."""

    cluster: Cluster
    ports: dict[str, int]
    expected: Answer

    def connect(self, port: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[port]), SOCKET_TIMEOUT_S)

    @contextlib.contextmanager
    def channel(self, port: str) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[port]}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel

    @property
    def epoch(self) -> int:
        return int(self.cluster.state()["epoch"])

    @property
    def disturbances(self) -> list[str]:
        """How often, and why, the ring broke or a shard was lost. Plans may change for another reason: a busy machine's shards get slow."""
        return [event["text"] for event in self.cluster.state()["events"] if event["kind"] in ("retry", "lost")]

    def stage(self, number: int) -> str:
        return str(next(shard["name"] for shard in self.cluster.state()["shards"] if shard["stage"] == number))

    def resident_bytes(self, name: str) -> int:
        return int(psutil.Process(self.cluster.processes[name].pid).memory_info().rss)


@pytest.fixture(scope="module")
def running(tiny_model: Path) -> Iterator[Site]:
    with Cluster(tiny_model, shards(2)) as cluster:
        ports = {"http": cluster.http, "grpc": cluster.grpc}
        ports |= {shard["name"]: shard["addresses"][0] for shard in cluster.state()["shards"]}
        yield Site(cluster, {name: int(address.rpartition(":")[2]) for name, address in ports.items()}, ask(cluster))


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """Whatever the test does to it, the cluster is sound afterwards."""
    yield running
    assert_sound(running.cluster, running.expected)


EVERY_PORT = pytest.mark.parametrize("port", ["grpc", "http", "a"])


@EVERY_PORT
def test_connections_that_say_nothing(site: Site, port: str) -> None:
    for _ in range(NUM_CONNECTIONS):
        site.connect(port).close()


@EVERY_PORT
def test_connections_that_stay_open_and_silent(site: Site, port: str) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(site.connect(port))
        assert ask(site.cluster) == site.expected


@EVERY_PORT
@pytest.mark.parametrize(
    "data",
    [
        random.Random(1).randbytes(100_000),
        b"\0" * 1000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
        HTTP2_PREFACE,
        HTTP2_PREFACE + random.Random(2).randbytes(10_000),
        HTTP2_PREFACE + struct.pack(">I", 0xFFFFFF00) + bytes(100),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.Random(3).randbytes(500),
    ],
    ids=["random", "zeros", "half-http", "http", "half-body", "http2", "http2-random", "http2-huge-frame", "tls"],
)
def test_bytes_of_another_protocol(site: Site, port: str, data: bytes) -> None:
    for ending in (lambda peer: None, lambda peer: peer.shutdown(socket.SHUT_WR)):
        with site.connect(port) as peer, contextlib.suppress(OSError):
            peer.sendall(data)
            ending(peer)
            assert ask(site.cluster) == site.expected


def test_a_client_that_never_reads_holds_up_nobody_and_costs_little_memory(site: Site) -> None:
    before_bytes = site.resident_bytes("coordinator")
    body = b'{"prompt": [1,2,3], "max_tokens": 700, "ignore_eos": true, "stream": true, "logprobs": 5, "n": 2}'
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(("127.0.0.1", site.ports["http"]))
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            peer.sendall(head.encode() + body)
        site.cluster.wait_until(lambda state: state["engine"]["running"] >= 8)
        with elapsed() as passed_s:
            assert ask(site.cluster) == site.expected
            print(f"16 tokens beside 8 answers that nobody reads: {passed_s():.2f} s")
        site.cluster.wait_until(lambda state: state["engine"]["running"] == 0, 60.0)
        more_bytes = site.resident_bytes("coordinator") - before_bytes
        print(f"8 answers of 700 tokens that nobody reads: {more_bytes / 1e6:.0f} MB")
        assert more_bytes < 50e6


@pytest.mark.parametrize("reset", [True, False])
def test_a_client_that_goes_away_stops_its_answer(site: Site, reset: bool) -> None:
    body = b'{"prompt": [1,2,3], "max_tokens": 2000, "ignore_eos": true, "stream": true}'
    with site.connect("http") as peer:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body)
        peer.recv(1000)
        assert site.cluster.state()["engine"]["running"] == 1
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with elapsed() as passed_s:
        state = site.cluster.wait_until(lambda state: state["engine"]["running"] == 0, 3.0)
        print(f"running is 0 again after {passed_s():.2f} s")
    assert state["kv_blocks_free"] == state["kv_blocks_total"]


# Remote procedure calls


def methods_of(stubs: Sequence[type[Any]]) -> list[str]:
    """Full names of all methods that these generated stubs know."""
    names: list[str] = []

    class Recorder:
        def __getattr__(self, kind: str) -> Callable[..., None]:
            return lambda path, *rest, **more: names.append(path)

    for stub in stubs:
        stub(Recorder())
    return names


COORDINATOR_STUBS = (cluster_pb2_grpc.ClusterServiceStub, ring_pb2_grpc.RingServiceStub, weights_pb2_grpc.WeightsServiceStub)
SHARD_STUBS = (ring_pb2_grpc.RingServiceStub, shard_pb2_grpc.ShardServiceStub, weights_pb2_grpc.WeightsServiceStub)


def raw_call(channel: grpc.Channel, method: str, messages: Sequence[bytes]) -> grpc.StatusCode:
    """The status of a call whose messages are these bytes."""
    call = channel.stream_stream(method)(iter(messages), timeout=CALL_TIMEOUT_S)
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code()


@pytest.mark.parametrize(("port", "stubs"), [("grpc", COORDINATOR_STUBS), ("a", SHARD_STUBS)])
def test_messages_that_are_no_protobuf(site: Site, port: str, stubs: Sequence[type[Any]]) -> None:
    with site.channel(port) as channel:
        for method in methods_of(stubs):
            for data in (b"\xff" * 50, random.Random(4).randbytes(1000), b"\x0a\xff\xff\xff\xff\x0f"):
                code = raw_call(channel, method, [data])
                assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{method} {data[:8]!r}: {code}"


@pytest.mark.parametrize(("port", "stubs"), [("grpc", COORDINATOR_STUBS), ("a", SHARD_STUBS)])
def test_streams_that_do_not_begin_as_they_should(site: Site, port: str, stubs: Sequence[type[Any]]) -> None:
    with site.channel(port) as channel:
        for method in methods_of(stubs):
            if method.rpartition("/")[2] in ("Join", "Forward"):
                assert raw_call(channel, method, []) is grpc.StatusCode.INVALID_ARGUMENT
                assert raw_call(channel, method, [b""]) is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_too_large(site: Site) -> None:
    with site.channel("a") as channel:
        code = raw_call(channel, "/dairllm.v1.RingService/Forward", [bytes(65 * 1024**2)])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


# Frames


def opening(site: Site, **changes: Any) -> ring_pb2.ForwardRequest:
    facts = {"cluster_hash": cluster_hash("test"), "epoch": site.epoch, "sender": "coordinator", "receiver": "a"}
    return ring_pb2.ForwardRequest(open=ring_pb2.EdgeOpen(**{**facts, **changes}))


def forward_error(site: Site, port: str, requests: Sequence[ring_pb2.ForwardRequest]) -> tuple[grpc.StatusCode, str, list[Any]]:
    """How a Forward call with these requests ends: status, message, and what was answered before."""
    answers: list[Any] = []
    with site.channel(port) as channel:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward(iter(requests), timeout=CALL_TIMEOUT_S)
        with contextlib.suppress(grpc.RpcError):
            for response in call:
                answers.append(response)
        return call.code(), call.details(), answers


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"cluster_hash": "0123456789abcdef"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"epoch": 0}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"epoch": 2**64 - 1}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"receiver": "nobody"}, grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
@pytest.mark.parametrize("port", ["grpc", "a"])
def test_edges_that_are_not_meant_are_refused(site: Site, port: str, changes: dict[str, Any], code: grpc.StatusCode) -> None:
    changes = {"receiver": "coordinator" if port == "grpc" else port, **changes}
    before = site.disturbances
    found, details, answers = forward_error(site, port, [opening(site, **changes)])
    assert (found, answers) == (code, [])
    assert details.count("\n") == 0
    assert site.disturbances == before, "the ring was not disturbed"


def test_frames_of_strangers_are_not_computed(site: Site) -> None:
    """Even of one that knows the cluster's hash and the epoch, while others are being answered: it lacks the ring's key."""
    expected = ask(site.cluster, PROMPTS[0], 200)
    before, epoch, first = site.disturbances, site.epoch, site.stage(0)
    piece = ring_pb2.SequenceSlice(sequence_id=7, token_ids=[1, 2], new_block_ids=[0], num_samples=1)
    begin = ring_pb2.SequenceBegin(sequence_id=7, prompt_length=2, sampling=ring_pb2.SamplingParams(top_p=1, repetition_penalty=1))
    frame = ring_pb2.ForwardRequest(micro_batch=ring_pb2.MicroBatch(epoch=epoch, batch_id=1, begins=[begin], slices=[piece]))
    with StreamedAnswer(site.cluster.http, PROMPTS[0], 200) as stream:
        stream.wait_tokens(10)
        for key in (b"", bytes(16), bytes(1000)):
            code, details, answers = forward_error(site, first, [opening(site, receiver=first, ring_key=key), frame])
            assert (code, answers) == (grpc.StatusCode.FAILED_PRECONDITION, [])
            assert "does not have the key of epoch" in details
        assert Answer.of_stream(stream) == expected
    assert site.disturbances == before, "the ring was not disturbed"


def test_strangers_get_no_kv_cache(site: Site) -> None:
    """Nor do they learn who could join in a shard's place."""
    with StreamedAnswer(site.cluster.http, PROMPTS[0], 200) as stream, site.channel("a") as channel:
        stream.wait_tokens(10)
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        digest = bytes.fromhex(site.cluster.state()["model_digest"])
        for key in (b"", bytes(16), bytes(1000)):
            request = shard_pb2.FetchKvRequest(model_digest=digest, first_unit=1, end_unit=2, block_ids=[0], kv_key=key)
            with pytest.raises(grpc.RpcError) as raised:
                list(stub.FetchKv(request, timeout=CALL_TIMEOUT_S))
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
        stats = stub.GetStats(shard_pb2.GetStatsRequest(), timeout=CALL_TIMEOUT_S)
        assert stats.name == "a"
        assert not hasattr(stats, "boot_id")


def test_results_of_strangers_change_no_answer(site: Site) -> None:
    """Results for every batch and every sequence that may be under way."""
    epoch = site.epoch
    expected = ask(site.cluster, PROMPTS[1], 200)
    token = ring_pb2.TokenLogprobs(token_id=3, logprob=-1.0)
    results = [ring_pb2.SequenceResult(sequence_id=number, sampled=[token]) for number in range(200)]
    frames = [
        ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(epoch=epoch, batch_id=number, results=results)) for number in range(2000)
    ]
    with StreamedAnswer(site.cluster.http, PROMPTS[1], 200) as stream:
        stream.wait_tokens(10)
        for sender in (site.stage(1), "nobody"):
            code, _, answers = forward_error(site, "grpc", [opening(site, sender=sender, receiver="coordinator"), *frames])
            assert (code, answers) == (grpc.StatusCode.FAILED_PRECONDITION, [])
        assert Answer.of_stream(stream) == expected


# Joining


def hello(**changes: Any) -> cluster_pb2.JoinRequest:
    capabilities = cluster_pb2.ShardCapabilities(memory_budget_bytes=2**30, num_threads=1, features=FEATURES, block_formats=["F32"])
    facts = {
        "protocol_major": PROTOCOL_MAJOR,
        "cluster_hash": cluster_hash("test"),
        "name": f"stranger-{uuid.uuid4().hex[:6]}",
        "boot_id": uuid.uuid4().hex,
        "addresses": ["127.0.0.1:9"],
        "capabilities": capabilities,
    }
    return cluster_pb2.JoinRequest(hello=cluster_pb2.Hello(**{**facts, **changes}))


def capabilities(**values: Any) -> cluster_pb2.ShardCapabilities:
    return cluster_pb2.ShardCapabilities(**{"memory_budget_bytes": 2**30, **values})


INVALID, DIFFERENT, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.PERMISSION_DENIED
TAKEN = grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"cluster_hash": "0123456789abcdef"}, DENIED, "--cluster"),
        ({"cluster_hash": "x" * 5000 + "\n"}, INVALID, "cluster_hash"),
        ({"protocol_major": 0}, DIFFERENT, "protocol 0.0"),
        ({"protocol_major": 99, "protocol_minor": 3}, DIFFERENT, "protocol 99.3"),
        ({"name": ""}, INVALID, "name"),
        ({"name": "x" * 10_000}, INVALID, "name"),
        ({"name": "a\nINFO"}, INVALID, "name"),
        ({"name": "coordinator"}, TAKEN, "'coordinator' is the coordinator's name"),
        ({"name": "a"}, TAKEN, "a living shard is named 'a'"),
        ({"boot_id": ""}, INVALID, "boot_id"),
        ({"addresses": []}, INVALID, "addresses"),
        ({"addresses": ["127.0.0.1:9"] * 5000}, INVALID, "addresses"),
        ({"capabilities": capabilities(memory_budget_bytes=0)}, INVALID, "memory"),
        ({"capabilities": capabilities(memory_budget_bytes=2**64 - 1)}, INVALID, "memory"),
        ({"capabilities": capabilities(reserved_bytes=2**60)}, INVALID, "reserves"),
        ({"capabilities": capabilities(decode_s_per_byte=float("nan"))}, INVALID, "decode_s_per_byte"),
        ({"capabilities": capabilities(decode_s_per_byte=-1.0)}, INVALID, "decode_s_per_byte"),
        ({"capabilities": capabilities(decode_s_per_byte=float("inf"))}, INVALID, "decode_s_per_byte"),
    ],
)
def test_a_hello_of_nonsense_is_refused_in_one_sentence(site: Site, changes: dict[str, Any], code: grpc.StatusCode, expected: str) -> None:
    with site.channel("grpc") as channel:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter([hello(**changes)]), timeout=CALL_TIMEOUT_S)
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() is code
        assert expected in call.details()
        assert call.details().isprintable()
        assert len(call.details()) < 500


def test_a_member_that_sends_a_second_hello_is_put_out(site: Site) -> None:
    with site.channel("grpc") as channel:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter([hello(), hello()]), timeout=CALL_TIMEOUT_S)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() is INVALID


class Silent:
    """Requests of a member that says hello and nothing more, until it is told to go."""

    def __init__(self, first: cluster_pb2.JoinRequest | None) -> None:
        self._first = first
        self._gone = threading.Event()

    def __iter__(self) -> Iterator[cluster_pb2.JoinRequest]:
        if self._first is not None:
            yield self._first
        self._gone.wait(60.0)

    def go(self) -> None:
        self._gone.set()


def test_a_member_that_falls_silent_loses_its_lease(site: Site) -> None:
    silent = Silent(hello(name="silent"))
    with site.channel("grpc") as channel, elapsed() as passed_s:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter(silent), timeout=30.0)
        with pytest.raises(grpc.RpcError):
            list(call)
        silent.go()
        assert call.code() is grpc.StatusCode.ABORTED
        assert "nothing was heard of it" in call.details()
        print(f"a silent member is put out after {passed_s():.1f} s")
        assert passed_s() < 10.0


def test_a_stream_without_a_hello_ends(site: Site) -> None:
    silent = Silent(None)
    with site.channel("grpc") as channel:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter(silent), timeout=30.0)
        with pytest.raises(grpc.RpcError):
            list(call)
        silent.go()
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "hello" in call.details()


def test_a_flood_of_joins(site: Site) -> None:
    """200 shards at once that can compute nothing here: their model needs an element type that they lack."""
    useless = capabilities(features=FEATURES, block_formats=["Q4_0"])
    flood = [Silent(hello(name=f"flood-{number}", capabilities=useless)) for number in range(200)]
    with site.channel("grpc") as channel, elapsed() as passed_s:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        calls = [stub.Join(iter(silent), timeout=30.0) for silent in flood]
        assert all(next(call).WhichOneof("message") == "welcome" for call in calls)
        print(f"200 joined within {passed_s():.2f} s")
        assert ask(site.cluster) == site.expected
        for call, silent in zip(calls, flood, strict=True):
            call.cancel()
            silent.go()
    site.cluster.wait_until(lambda state: len(state["shards"]) == 2, 10.0)


def test_epochs_of_strangers_are_not_believed(site: Site) -> None:
    """A plan that is made while they are members has the next number; the answer goes on."""
    expected = ask(site.cluster, PROMPTS[1], 200)
    useless = capabilities(features=FEATURES, block_formats=["Q4_0"])
    strangers = [Silent(hello(name=f"far-{number}", last_epoch=number, capabilities=useless)) for number in (2**64 - 1, 2**64 - 2, 2**53)]
    lost, before = site.cluster.processes["b"], site.epoch
    with site.channel("grpc") as channel, StreamedAnswer(site.cluster.http, PROMPTS[1], 200) as stream:
        calls = [cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter(stranger), timeout=60.0) for stranger in strangers]
        assert all(next(call).WhichOneof("message") == "welcome" for call in calls)
        stream.wait_tokens(10)
        lost.kill()
        lost.start()
        assert Answer.of_stream(stream) == expected
        assert before < site.epoch < before + 20
        for call, stranger in zip(calls, strangers, strict=True):
            call.cancel()
            stranger.go()


@pytest.mark.parametrize(
    "message",
    [
        cluster_pb2.JoinRequest(stage_ready=cluster_pb2.StageReady(epoch=2**64 - 1)),
        cluster_pb2.JoinRequest(heartbeat=cluster_pb2.Heartbeat(usage=cluster_pb2.ShardUsage(weights_bytes=2**64 - 1))),
        cluster_pb2.JoinRequest(stage_activated=cluster_pb2.StageActivated(seconds=float("nan"))),
        cluster_pb2.JoinRequest(capabilities_changed=cluster_pb2.CapabilitiesChanged(capabilities=capabilities(decode_s_per_byte=-1.0))),
        cluster_pb2.JoinRequest(leaving=cluster_pb2.Leaving(reason="x" * 10_000)),
    ],
    ids=lambda message: message.WhichOneof("message"),
)
def test_a_member_that_says_what_cannot_be_is_put_out(site: Site, message: cluster_pb2.JoinRequest) -> None:
    useless = capabilities(features=FEATURES, block_formats=["Q4_0"])
    with site.channel("grpc") as channel:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter([hello(capabilities=useless), message]), timeout=CALL_TIMEOUT_S)
        with pytest.raises(grpc.RpcError):
            list(call)
        assert call.code() is INVALID
        assert "; expected " in call.details()
    assert ask(site.cluster) == site.expected


def test_a_member_that_takes_a_part_and_computes_nothing_is_replaced(site: Site) -> None:
    """The only one to take over from a lost shard never loads its part: the answer waits until another comes."""
    expected = ask(site.cluster, PROMPTS[1], 200)
    eager = Silent(hello(name="eager", capabilities=capabilities(features=FEATURES, block_formats=["F32"])))
    lost = site.cluster.processes["b"]
    with site.channel("grpc") as channel, StreamedAnswer(site.cluster.http, PROMPTS[1], 200) as stream:
        call = cluster_pb2_grpc.ClusterServiceStub(channel).Join(iter(eager), timeout=30.0)
        assert next(call).WhichOneof("message") == "welcome"
        stream.wait_tokens(10)
        lost.kill()
        site.cluster.wait_until(lambda state: "eager" in [shard["name"] for shard in state["shards"] if shard["stage"] is not None])
        lost.start()
        assert Answer.of_stream(stream) == expected
        eager.go()
        call.cancel()
