"""Who may open an edge to whom: what a member of a ring shows to the next, and what it asks of the one before."""

import hmac
from dataclasses import dataclass, field

from dairllm.mesh.errors import WrongCluster, WrongEpoch
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.v1 import ring_pb2


@dataclass(frozen=True, slots=True)
class RingMember:
    """A member of the ring of an epoch. epoch: None while none is active. ring_key: what the members of this epoch show each other."""

    cluster_hash: str
    name: str
    epoch: int | None
    ring_key: bytes = field(default=b"", repr=False)

    def opening_to(self, receiver: str) -> ring_pb2.EdgeOpen:
        return ring_pb2.EdgeOpen(
            cluster_hash=self.cluster_hash, epoch=self.epoch, sender=self.name, receiver=receiver, ring_key=self.ring_key
        )

    def require(self, opening: ring_pb2.EdgeOpen) -> None:
        """Raises WrongCluster or WrongEpoch unless another member of the same ring means to reach this one."""
        if opening.cluster_hash != self.cluster_hash:
            raise WrongCluster(f"{opening.sender!r} belongs to another cluster: its hash is {opening.cluster_hash!r}")
        if opening.receiver != self.name:
            raise WrongEpoch(f"{opening.sender!r} meant to reach {opening.receiver!r}, and reached {self}")
        self.require_epoch(opening.epoch)
        if not hmac.compare_digest(opening.ring_key, self.ring_key):
            raise WrongEpoch(f"{opening.sender!r} does not have the key of epoch {opening.epoch}")

    def require_epoch(self, epoch: int) -> None:
        """Raises WrongEpoch unless it is this member's."""
        if epoch != self.epoch:
            raise WrongEpoch(f"epoch is {epoch}; {self} is at {'none' if self.epoch is None else self.epoch}")

    def __str__(self) -> str:
        return "the coordinator" if self.name == COORDINATOR_NAME else f"shard {self.name!r}"
