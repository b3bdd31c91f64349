"""The coordinator's end of one shard's Join stream. A stream is a lease: while it lives, and is not silent, its shard is a member."""

import asyncio
import hmac
import secrets
from collections import deque
from dataclasses import dataclass, field

from dairllm.coordinator.cluster.identities import LeaseId
from dairllm.coordinator.membership.reachability import Place
from dairllm.mesh.errors import DairllmError, PeerUnreachable, RequestLost
from dairllm.mesh.proof import proof_of
from dairllm.v1 import cluster_pb2

MAX_QUEUED_RESPONSES = 64
"""A shard that does not read for so long that this fills up is cut off; it joins again."""
_CHALLENGE_BYTES = 16


@dataclass(slots=True)
class JoinStream:
    """id: of the lease. announced_id: as in Hello. is_over: it is decided that it ends, and nothing more is heard or sent."""

    id: LeaseId
    name: str
    boot_id: str
    place: Place
    announced_id: str = ""
    responses: asyncio.Queue[cluster_pb2.JoinResponse | DairllmError | None] = field(
        default_factory=lambda: asyncio.Queue(MAX_QUEUED_RESPONSES)
    )
    is_over: bool = False
    _challenge: tuple[int, bytes] | None = field(default=None, init=False)
    _limits: "deque[asyncio.Future[cluster_pb2.CapabilitiesChanged]]" = field(default_factory=deque, init=False)

    def send(self, response: cluster_pb2.JoinResponse) -> None:
        if self.is_over:
            return
        try:
            self.responses.put_nowait(response)
        except asyncio.QueueFull:
            self.end(RequestLost(f"shard {self.name!r} does not read its Join stream"))

    def expect_limits(self) -> "asyncio.Future[cluster_pb2.CapabilitiesChanged]":
        """The answer to the Configure that is sent next. PeerUnreachable if the lease ends before."""
        answer: asyncio.Future[cluster_pb2.CapabilitiesChanged] = asyncio.get_running_loop().create_future()
        self._limits.append(answer)
        return answer

    def tell_limits(self, limits: cluster_pb2.CapabilitiesChanged) -> None:
        """The shard answers each Configure, in the order in which they were sent."""
        answer = self._limits.popleft() if self._limits else None
        if answer is not None and not answer.done():
            answer.set_result(limits)

    def challenge(self, number: int) -> bytes:
        """What decides the computation of this proof. Only the latest counts."""
        self._challenge = number, secrets.token_bytes(_CHALLENGE_BYTES)
        return self._challenge[1]

    def is_right(self, proof: cluster_pb2.Proof) -> bool:
        challenge, self._challenge = self._challenge, None
        return challenge is not None and challenge[0] == proof.number and hmac.compare_digest(proof_of(challenge[1]), proof.digest)

    def end(self, error: DairllmError | None) -> None:
        """End the stream, before whatever still waits to be sent."""
        self.is_over = True
        for answer in self._limits:
            if not answer.done():
                words = f"the lease of shard {self.name!r} ended before it answered; try again when it is back"
                answer.set_exception(PeerUnreachable(words))
        self._limits.clear()
        while not self.responses.empty():
            self.responses.get_nowait()
        self.responses.put_nowait(error)
