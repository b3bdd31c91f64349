"""The coordinator's two edges of the ring: micro-batches go out to the first shard, results come in from the last."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import grpc

from dairllm.coordinator.cluster.facts import COORDINATOR_NAME
from dairllm.coordinator.engine.events import BatchCompleted
from dairllm.coordinator.engine.facts import Batch, Begin, Slice, SliceResult
from dairllm.coordinator.engine.requests import TokenLogprob, TokenScore
from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.errors import DeadlineExceeded, InvalidRequest, MalformedFrame, NotReady, PeerUnreachable, WrongCluster, WrongEpoch
from dairllm.mesh.ring.heartbeats import EdgeAnswers, Silence
from dairllm.v1 import cluster_pb2, model_pb2, ring_pb2, ring_pb2_grpc

logger = logging.getLogger(__name__)

RESULT_CREDITS = 64
"""Results are small and handled at once; the number of frames in flight is bounded by the scheduler."""

FIRST_REQUEST_DEADLINE_S = 5.0
OPEN_DEADLINE_S = 30.0
OPEN_RETRY_S = 0.05
ForwardCall: TypeAlias = "grpc.aio.StreamStreamCall[ring_pb2.ForwardRequest, ring_pb2.ForwardResponse]"
Request = TypeVar("Request", ring_pb2.ForwardRequest, cluster_pb2.JoinRequest)


class StageTiming(NamedTuple):
    shard: str
    queue_s: float
    compute_s: float
    codec_s: float
    received_bytes: int
    num_rows: int


class Ring:
    """At most one epoch at a time.

    on_result is called with every result of the open epoch and its stage timings.
    """

    def __init__(self, cluster_hash: str, on_result: Callable[[BatchCompleted, Sequence[StageTiming]], None]) -> None:
        self.cluster_hash = cluster_hash
        self._on_result = on_result
        self._secret = secrets.token_bytes(32)
        self._epoch = 0
        self._first_shard = ""
        self._outgoing: asyncio.Queue[ring_pb2.MicroBatch] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._receivers: set[asyncio.Task[None]] = set()
        self._has_ended = False

    @property
    def epoch(self) -> int:
        """The open epoch; 0 while closed."""
        return self._epoch

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
        self._epoch = epoch
        accepted = asyncio.get_running_loop().create_future()
        outgoing: asyncio.Queue[ring_pb2.MicroBatch] = asyncio.Queue()
        self._outgoing = outgoing
        self._first_shard = first_shard
        self._sender = asyncio.create_task(self._keep_edge(epoch, addresses, outgoing, accepted, on_broken), name=f"ring-{epoch}")
        await accepted

    def shut(self) -> None:
        """From now on nothing is sent, and results of the epoch that was open are refused."""
        self._epoch = 0
        self._outgoing = None
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
        if self._outgoing is not None and batch.epoch == self._epoch:
            self._outgoing.put_nowait(batch_to_proto(batch))

    async def _keep_edge(
        self,
        epoch: int,
        addresses: Sequence[str],
        outgoing: asyncio.Queue[ring_pb2.MicroBatch],
        accepted: asyncio.Future[None],
        on_broken: Callable[[int, str], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + OPEN_DEADLINE_S
        reason = "the first shard did not answer"
        while not accepted.done() and loop.time() < deadline:
            try:
                async with await dial(addresses, OPEN_DEADLINE_S, "the first shard") as channel:
                    await self._run_edge(epoch, channel, outgoing, accepted)
                reason = "the first shard ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"the edge to the first shard failed: {error_from_rpc(error, 'the first shard')}"
            except PeerUnreachable as error:
                reason = str(error)
            if not accepted.done():
                await asyncio.sleep(OPEN_RETRY_S)
        if not accepted.done():
            accepted.set_exception(PeerUnreachable(reason))
        elif epoch == self._epoch:
            self._outgoing = None
            on_broken(epoch, reason)

    async def _run_edge(
        self, epoch: int, channel: grpc.aio.Channel, outgoing: asyncio.Queue[ring_pb2.MicroBatch], accepted: asyncio.Future[None]
    ) -> None:
        call = ring_pb2_grpc.RingServiceStub(channel).Forward()
        opening = ring_pb2.EdgeOpen(
            cluster_hash=self.cluster_hash,
            epoch=epoch,
            sender=COORDINATOR_NAME,
            receiver=self._first_shard,
            ring_key=self.key_of(epoch),
        )
        credits = asyncio.Semaphore(0)
        writer = asyncio.create_task(self._write(call, opening, outgoing, credits))
        silence = Silence(self._first_shard)
        reader = asyncio.create_task(self._read(call, silence, credits, accepted))
        watcher = asyncio.create_task(silence.watch())
        try:
            done, _ = await asyncio.wait({reader, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, reader, watcher):
                task.cancel()
            call.cancel()
            await asyncio.gather(writer, reader, watcher, return_exceptions=True)
        for task in done:
            task.result()

    async def _read(self, call: ForwardCall, silence: Silence, credits: asyncio.Semaphore, accepted: asyncio.Future[None]) -> None:
        async for response in call:
            silence.heard()
            match response.WhichOneof("message"):
                case "accepted":
                    silence.promised(response.accepted.heartbeat_interval_ms)
                    self._grant(credits, response.accepted.credits)
                    if not accepted.done():
                        accepted.set_result(None)
                case "credit":
                    self._grant(credits, response.credit.frames)
                case "refused":
                    refused = response.refused
                    raise PeerUnreachable(f"the first shard refused frame {refused.batch_id}: {refused.message}")

    @staticmethod
    def _grant(credits: asyncio.Semaphore, frames: int) -> None:
        for _ in range(min(frames, 1024)):
            credits.release()

    @staticmethod
    async def _write(
        call: ForwardCall,
        opening: ring_pb2.EdgeOpen,
        outgoing: asyncio.Queue[ring_pb2.MicroBatch],
        credits: asyncio.Semaphore,
    ) -> None:
        # What breaks the call is reported by the reader of its responses.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(ring_pb2.ForwardRequest(open=opening))
            while True:
                await credits.acquire()
                await call.write(ring_pb2.ForwardRequest(micro_batch=await outgoing.get()))

    async def receive(self, requests: AsyncIterator[ring_pb2.ForwardRequest], answers: EdgeAnswers) -> None:
        """Serve the edge from the last shard: RingService.Forward of the coordinator.

        Raises InvalidRequest, DeadlineExceeded, WrongCluster, WrongEpoch, MalformedFrame, NotReady once the ring has ended.
        """
        opening = (await first_request(requests, "open")).open
        if opening.cluster_hash != self.cluster_hash:
            raise WrongCluster(f"{opening.sender!r} belongs to cluster {opening.cluster_hash!r}, not {self.cluster_hash!r}")
        if opening.receiver != COORDINATOR_NAME:
            raise WrongEpoch(f"{opening.sender!r} meant to reach {opening.receiver!r}, and reached the coordinator")
        self._check_epoch(opening.epoch)
        if not hmac.compare_digest(opening.ring_key, self.key_of(opening.epoch)):
            raise WrongEpoch(f"{opening.sender!r} does not have the key of epoch {opening.epoch}")
        await answers.accept(RESULT_CREDITS)
        async with answers.beating():
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
        async for request in requests:
            if request.WhichOneof("message") != "result":
                raise MalformedFrame("the coordinator takes results only, and got a frame of another kind")
            self._check_epoch(request.result.epoch)
            self._on_result(result_from_proto(request.result), timings_from_proto(request.result.timings))
            await answers.write(ring_pb2.ForwardResponse(credit=ring_pb2.Credit(frames=1)))

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            raise WrongEpoch(f"epoch is {epoch}; the coordinator is at {self._epoch}")


async def first_request(requests: AsyncIterator[Request], name: str) -> Request:
    """The first message of a stream, which must be the one of this name. Raises InvalidRequest, DeadlineExceeded."""
    try:
        async with asyncio.timeout(FIRST_REQUEST_DEADLINE_S):
            first = await anext(requests, None)
    except TimeoutError as error:
        raise DeadlineExceeded(f"no `{name}` came within {FIRST_REQUEST_DEADLINE_S:g} s") from error
    if first is None or first.WhichOneof("message") != name:
        raise InvalidRequest(f"the first message of the stream was not `{name}`")
    return first


def batch_to_proto(batch: Batch) -> ring_pb2.MicroBatch:
    return ring_pb2.MicroBatch(
        epoch=batch.epoch,
        batch_id=batch.batch_id,
        begins=[_begin_to_proto(begin) for begin in batch.begins],
        slices=[_slice_to_proto(piece) for piece in batch.slices],
        ends=batch.ends,
    )


def _begin_to_proto(begin: Begin) -> ring_pb2.SequenceBegin:
    return ring_pb2.SequenceBegin(
        sequence_id=begin.ring_id,
        prompt_length=begin.prompt_length,
        sampling=begin.sampling.to_proto(),
        rounding_points={boundary: parse_encoding(name) for boundary, name in begin.rounding_points.items()},
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
        encoding=model_pb2.ENCODING_UNSPECIFIED,
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
