"""The coordinator's two edges of the ring: micro-batches go out to the first shard, results come in from the last."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from dairllm.coordinator.engine.events import BatchCompleted
from dairllm.coordinator.engine.facts import Batch, Begin, Slice, SliceResult
from dairllm.coordinator.engine.requests import TokenLogprob, TokenScore
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.errors import MalformedFrame, NotReady
from dairllm.mesh.peers import COORDINATOR_NAME, Peer
from dairllm.mesh.ring.heartbeats import EdgeAnswers
from dairllm.mesh.ring.member import RingMember
from dairllm.mesh.ring.outgoing import EdgeLost, OutgoingEdge
from dairllm.mesh.streams import first_request
from dairllm.v1 import ring_pb2

RESULT_CREDITS = 64
"""Results are small and handled at once; the number of frames in flight is bounded by the scheduler."""

OPEN_DEADLINE_S = 30.0


class StageTiming(NamedTuple):
    shard: str
    queue_s: float
    compute_s: float
    codec_s: float
    received_bytes: int
    num_rows: int


class Ring:
    """At most one epoch at a time.

    wire: name of the encoding of all activations. on_result is called with every result of the open epoch and its stage timings.
    """

    def __init__(self, cluster_hash: str, wire: str, on_result: Callable[[BatchCompleted, Sequence[StageTiming]], None]) -> None:
        self._wire = wire
        self._on_result = on_result
        self._secret = secrets.token_bytes(32)
        self._closed = self._member = RingMember(cluster_hash, COORDINATOR_NAME, None)
        self._edge: OutgoingEdge | None = None
        self._sender: asyncio.Task[None] | None = None
        self._receivers: set[asyncio.Task[None]] = set()
        self._has_ended = False

    @property
    def epoch(self) -> int:
        """The open epoch; 0 while closed."""
        return self._member.epoch or 0

    def key_of(self, epoch: int) -> bytes:
        """What members of this epoch's ring show each other. Epochs of another run of the coordinator have other keys."""
        return hashlib.blake2b(epoch.to_bytes(8, "big"), key=self._secret, digest_size=16).digest()

    def kv_key_of(self, name: str, boot_id: str) -> bytes:
        """What is shown to this process of a shard by whoever fetches KV cache from it. Not of an epoch: its cache may be of several."""
        return hashlib.blake2b(f"{name}\n{boot_id}".encode(), key=self._secret, digest_size=16, person=b"kv").digest()

    async def open(self, epoch: int, first_shard: str, addresses: Sequence[str], on_broken: Callable[[int, str], None]) -> None:
        """Dial the first shard at any of `addresses` and wait until it accepts the epoch.

        on_broken is called at most once, with the epoch and a sentence, when the edge to the first shard fails later; nothing can be sent
        then until the next open().
        Raises PeerUnreachable, with the reason of the last try, after OPEN_DEADLINE_S.
        """
        await self.close()
        self._member = replace(self._closed, epoch=epoch, ring_key=self.key_of(epoch))
        self._edge = OutgoingEdge(
            Peer(first_shard, tuple(addresses)),
            self._member.opening_to(first_shard),
            queue_frames=0,  # the scheduler bounds the number of frames in flight
            connect_deadline_s=OPEN_DEADLINE_S,
            ready_deadline_s=OPEN_DEADLINE_S,
        )
        self._edge.hurry()
        accepted = asyncio.get_running_loop().create_future()
        self._sender = asyncio.create_task(self._keep_edge(epoch, self._edge, accepted, on_broken), name=f"ring-{epoch}")
        await accepted

    def shut(self) -> None:
        """From now on nothing is sent, and results of the epoch that was open are refused."""
        self._member = self._closed
        self._edge = None
        if self._sender is not None:
            self._sender.cancel()

    async def close(self) -> None:
        """Shut, and wait until the outgoing edge is gone."""
        self.shut()
        sender, self._sender = self._sender, None
        if sender is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    async def end(self) -> None:
        """Close for good. Who sends results is told, so that no stream holds up the end of the process."""
        self._has_ended = True
        for receiver in self._receivers:
            receiver.cancel()
        await self.close()

    def send(self, batch: Batch) -> None:
        if self._edge is not None and batch.epoch == self.epoch:
            self._edge.post(ring_pb2.ForwardRequest(micro_batch=batch_to_proto(batch, self._wire)))

    async def _keep_edge(
        self, epoch: int, edge: OutgoingEdge, accepted: asyncio.Future[None], on_broken: Callable[[int, str], None]
    ) -> None:
        try:
            await edge.run(lambda: None if accepted.done() else accepted.set_result(None))
        except EdgeLost as error:
            if not accepted.done():
                accepted.set_exception(error)
            elif epoch == self.epoch:
                self._edge = None
                on_broken(epoch, str(error))

    async def receive(self, requests: AsyncIterator[ring_pb2.ForwardRequest], answers: EdgeAnswers) -> None:
        """Serve the edge from the last shard: RingService.Forward of the coordinator.

        Raises InvalidRequest, DeadlineExceeded, WrongCluster, WrongEpoch, MalformedFrame, NotReady once the ring has ended.
        """
        self._member.require((await first_request(requests, "open")).open)
        receiver = asyncio.create_task(self._receive_results(requests, answers))
        self._receivers.add(receiver)
        try:
            await receiver
        except asyncio.CancelledError:
            if self._has_ended:
                raise NotReady("the coordinator is shutting down") from None
            raise
        finally:
            self._receivers.discard(receiver)

    async def _receive_results(self, requests: AsyncIterator[ring_pb2.ForwardRequest], answers: EdgeAnswers) -> None:
        await answers.accept(RESULT_CREDITS)
        async with answers.beating():
            async for request in requests:
                if request.WhichOneof("message") != "result":
                    raise MalformedFrame("the coordinator takes results only, and got a frame of another kind")
                self._member.require_epoch(request.result.epoch)
                self._on_result(result_from_proto(request.result), timings_from_proto(request.result.timings))
                await answers.write(ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=1)))


def batch_to_proto(batch: Batch, wire: str) -> ring_pb2.MicroBatch:
    return ring_pb2.MicroBatch(
        epoch=batch.epoch,
        batch_id=batch.batch_id,
        encoding=parse_encoding(wire),
        begins=[_begin_to_proto(begin) for begin in batch.begins],
        slices=[_slice_to_proto(piece) for piece in batch.slices],
        ends=batch.ends,
    )


def _begin_to_proto(begin: Begin) -> ring_pb2.SequenceBegin:
    return ring_pb2.SequenceBegin(
        sequence_id=begin.ring_id,
        prompt_length=begin.prompt_length,
        sampling=begin.sampling.to_proto(),
        block_ids=begin.block_ids,
        token_ids=begin.token_ids,
    )


def _slice_to_proto(piece: Slice) -> ring_pb2.SequenceSlice:
    first_unit, end_unit, replay_at = piece.replay or (0, 0, "")
    return ring_pb2.SequenceSlice(
        first_unit=first_unit,
        end_unit=end_unit,
        replay_at=replay_at,
        sequence_id=piece.ring_id,
        first_position=piece.first_position,
        token_ids=piece.token_ids,
        new_block_ids=piece.new_block_ids,
        sample=piece.sample,
        score_targets=piece.score_targets,
    )


def result_from_proto(message: ring_pb2.MicroBatchResult) -> BatchCompleted:
    return BatchCompleted(message.epoch, message.batch_id, tuple(_slice_result(result) for result in message.results))


def _slice_result(message: ring_pb2.SequenceResult) -> SliceResult:
    sampled = _token_score(message.sampled) if message.HasField("sampled") else None
    scores = tuple(_token_score(score) for score in message.scores)
    return SliceResult(message.sequence_id, sampled, scores, message.replay_failed, message.failure)


def _token_score(message: ring_pb2.TokenLogprobs) -> TokenScore:
    return TokenScore(message.token_id, message.logprob, tuple(TokenLogprob(top.token_id, top.logprob) for top in message.top))


def timings_from_proto(timings: Sequence[ring_pb2.StageTiming]) -> tuple[StageTiming, ...]:
    return tuple(
        StageTiming(t.shard, t.queue_us * 1e-6, t.compute_us * 1e-6, t.codec_us * 1e-6, t.received_bytes, t.num_rows) for t in timings
    )
