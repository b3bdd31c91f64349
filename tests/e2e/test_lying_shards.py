"""Last shards that send what cannot be: they are set aside by name, the answers go on with equal tokens, and nobody sees a traceback.

What else cannot be stands in `tests/engine/test_results.py`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import grpc
import pytest

from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, SequenceResult, TokenScore
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc
from tests.e2e.answers import PROMPTS, Answer, ask_all, assert_no_fault
from tests.instruments.clusters import Cluster, shards
from tests.instruments.light_shards import LightFleet
from tests.instruments.streamed_answers import StreamedAnswer

NUM_TOKENS = 200
GOES_ON_WITHIN_S = 30.0
pytestmark = pytest.mark.slow


def result_of(frame: MicroBatch, score: TokenScore) -> MicroBatchResult:
    results = tuple(SequenceResult(slice_.sequence_id, (score,)) for slice_ in frame.slices)
    return MicroBatchResult(frame.epoch, frame.batch_id, results, ())


OUTSIDE = TokenScore(2**20, -1.0)
LIES: dict[str, Callable[[MicroBatch], MicroBatchResult]] = {
    "a token outside the vocabulary": lambda frame: result_of(frame, OUTSIDE),
    "a token that no vocabulary has": lambda frame: result_of(frame, TokenScore(2**32 - 1, -1.0)),
    "a frame that was not sent": lambda frame: MicroBatchResult(frame.epoch, frame.batch_id + 1000, (), ()),
}


def set_aside(cluster: Cluster) -> list[str]:
    return [event["text"] for event in cluster.state()["events"] if event["kind"] == "set_aside"]


def stream_while_it_lies(cluster: Cluster, joined: Future[None]) -> list[Answer]:
    """Nobody wants the others to be used, so the liar is planned for."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_tokens(10)
        joined.result(GOES_ON_WITHIN_S)
        with grpc.insecure_channel(cluster.grpc) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            for name in ("a", "b"):
                stub.CordonShard(cluster_pb2.CordonShardRequest(name=name, cordoned=True), timeout=GOES_ON_WITHIN_S)
        return [Answer.of_stream(stream) for stream in streams]


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_answers_go_on_without_a_shard_that_lies(tiny_model: Path, lie: Callable[[MicroBatch], MicroBatchResult]) -> None:
    with Cluster(tiny_model, shards(2), min_shards=1) as cluster:
        expected = await asyncio.to_thread(ask_all, cluster, NUM_TOKENS)
        joined: Future[None] = Future()
        streaming = asyncio.create_task(asyncio.to_thread(stream_while_it_lies, cluster, joined))
        async with LightFleet(cluster.grpc, cluster.name, 1, room_bytes=1 << 28, lie=lie) as fleet:
            await fleet.joined(GOES_ON_WITHIN_S)
            joined.set_result(None)
            assert await streaming == expected
            assert fleet.shards[0].activations == 1
        assert [text.startswith("shard light-0000 sent ") for text in await asyncio.to_thread(set_aside, cluster)] == [True]
        assert_no_fault(*cluster.processes.values())


async def test_nobody_but_a_liar_is_there(tiny_model: Path) -> None:
    """Nothing is served, and everybody is told why."""
    lie = LIES["a token outside the vocabulary"]
    with Cluster(tiny_model, (), min_shards=1, wait=False, arguments=("--recovery-limit", "5")) as cluster:
        async with LightFleet(cluster.grpc, cluster.name, 1, room_bytes=1 << 28, lie=lie) as fleet:
            await fleet.joined(GOES_ON_WITHIN_S)
            await asyncio.to_thread(cluster.wait_serving)
            body = {"prompt": PROMPTS[0], "max_tokens": 5}
            asked = await asyncio.to_thread(partial(cluster.client.post, "/v1/completions", json=body))
            ready = await asyncio.to_thread(cluster.client.get, "/readyz")
            for response in (asked, ready):
                assert response.status_code == 503
                assert "light-0000" in response.text
                assert "not in the vocabulary" in response.text
        assert_no_fault(*cluster.processes.values())
