"""What the shard tells the coordinator about its assignments."""

import asyncio
import logging
from collections.abc import Callable

from dairllm.mesh.errors import DairllmError, DeadlineExceeded, NotEnoughMemory, PeerUnreachable, WrongEpoch
from dairllm.mesh.ranges.table import MAX_SENTENCE_CHARS
from dairllm.mesh.ring.outgoing import EdgeLost
from dairllm.mesh.settings import format_size
from dairllm.mesh.telemetry import fields
from dairllm.shard_service.assignment import AssignmentFacts
from dairllm.shard_service.epochs.preparer import NeedsExclusive
from dairllm.shard_service.kv_cache.transfer import TransferOutcome
from dairllm.shard_service.weights.store import LoadCounts
from dairllm.v1 import cluster_pb2

PROGRESS_INTERVAL_S = 0.2
_MAY_WORK_LATER = (PeerUnreachable, DeadlineExceeded, WrongEpoch)

log = logging.getLogger(__name__)

Send = Callable[[cluster_pb2.JoinRequest], None]


class ProgressReport:
    """Tells the coordinator a few times a second how far loading is, at its end, and why it does not go on."""

    def __init__(self, epoch: int, send: Send) -> None:
        self._epoch = epoch
        self._send = send
        self._told_s = 0.0
        self._counts = LoadCounts(0)

    def __call__(self, counts: LoadCounts) -> None:
        now_s = asyncio.get_running_loop().time()
        self._counts = counts
        if now_s - self._told_s < PROGRESS_INTERVAL_S and counts.loaded_bytes < counts.total_bytes:
            return
        self._told_s = now_s
        self._tell("")

    def trouble(self, reason: str) -> None:
        """Until something comes."""
        self._tell(_sentence(reason))
        self._told_s = 0.0

    def _tell(self, trouble: str) -> None:
        counts = self._counts
        progress = cluster_pb2.LoadProgress(
            epoch=self._epoch,
            loaded_bytes=counts.loaded_bytes,
            total_bytes=counts.total_bytes,
            from_memory_bytes=counts.from_memory_bytes,
            from_disk_bytes=counts.from_disk_bytes,
            from_network_bytes=counts.from_network_bytes,
            trouble=trouble,
        )
        self._send(cluster_pb2.JoinRequest(load_progress=progress))


class Reports:
    """To one run of the coordinator: another counts its plans anew, and must not take what is said of one for one of its own."""

    def __init__(self, send: Send) -> None:
        self._to_coordinator = send
        self.is_muted = False

    def mute(self) -> None:
        """Nobody wants to hear them any more."""
        self.is_muted = True

    def _send(self, request: cluster_pb2.JoinRequest) -> None:
        if not self.is_muted:
            self._to_coordinator(request)

    def progress_of(self, epoch: int) -> ProgressReport:
        return ProgressReport(epoch, self._send)

    def ready(self, assignment: AssignmentFacts, weights_bytes: int, load_s: float) -> None:
        """weights_bytes: all that are in memory."""
        span, kv_cache_bytes = assignment.span, assignment.kv_cache_bytes
        sizes = {"weights": format_size(weights_bytes), "kv_cache": format_size(kv_cache_bytes)}
        log.info("ready", extra=fields(epoch=assignment.epoch, units=f"{span.start}-{span.stop - 1}", seconds=f"{load_s:.2f}", **sizes))
        ready = cluster_pb2.StageReady(epoch=assignment.epoch, weights_bytes=weights_bytes, kv_cache_bytes=kv_cache_bytes, load_s=load_s)
        self._send(cluster_pb2.JoinRequest(stage_ready=ready))

    def failed(self, epoch: int, error: DairllmError) -> None:
        retryable, needs_exclusive = isinstance(error, _MAY_WORK_LATER), isinstance(error, NeedsExclusive)
        if needs_exclusive:
            log.info("layers have to be freed before others can be loaded: %s", error, extra=fields(epoch=epoch))
        else:
            log.error("the assignment failed: %s", error, extra=fields(epoch=epoch, retryable=retryable))
        missing_bytes = error.missing_bytes if isinstance(error, NotEnoughMemory) else 0
        failed = cluster_pb2.StageFailed(
            epoch=epoch, message=_sentence(error), retryable=retryable, needs_exclusive=needs_exclusive, missing_bytes=missing_bytes
        )
        self._send(cluster_pb2.JoinRequest(stage_failed=failed))

    def activated(self, assignment: AssignmentFacts, outcome: TransferOutcome, seconds: float) -> None:
        facts = {"transferred": format_size(outcome.size_bytes), "units": len(outcome.units), "seconds": f"{seconds:.3f}"}
        if outcome.note:
            log.warning("not all of the KV cache was taken over: %s", outcome.note, extra=fields(epoch=assignment.epoch))
        log.info("activated", extra=fields(epoch=assignment.epoch, **facts))
        activated = cluster_pb2.StageActivated(
            epoch=assignment.epoch,
            transferred_units=outcome.units,
            transferred_bytes=outcome.size_bytes,
            seconds=seconds,
            note=_sentence(outcome.note),
        )
        self._send(cluster_pb2.JoinRequest(stage_activated=activated))

    def proof(self, number: int, digest: bytes) -> None:
        self._send(cluster_pb2.JoinRequest(proof=cluster_pb2.Proof(number=number, digest=digest)))

    def edge_lost(self, assignment: AssignmentFacts, why: EdgeLost) -> None:
        lost = cluster_pb2.EdgeLost(epoch=assignment.epoch, peer=assignment.next.name, message=_sentence(why), silent=why.silent)
        self._send(cluster_pb2.JoinRequest(edge_lost=lost))

    def fault(self, assignment: AssignmentFacts, sender: str, error: DairllmError) -> None:
        """The member before has sent what cannot be."""
        lost = cluster_pb2.EdgeLost(epoch=assignment.epoch, peer=sender, message=_sentence(error), at_fault=True)
        self._send(cluster_pb2.JoinRequest(edge_lost=lost))


def _sentence(words: object) -> str:
    """No longer than what others take."""
    return str(words)[:MAX_SENTENCE_CHARS]
