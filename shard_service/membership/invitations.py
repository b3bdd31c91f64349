"""Whether a shard follows an invitation (ShardService.Invite). Pure.

Anybody on the network may invite, as anybody may announce a coordinator: the most that an invitation can do is to make a shard that looks
for a coordinator try some more addresses. It never moves a member, and a shard that was told where to join goes nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dairllm.mesh.addresses import parse_address
from dairllm.mesh.discovery.records import ID_PATTERN, DiscoveredCoordinator
from dairllm.mesh.errors import InvalidRequest, InvalidSetting, InvitationDeclined, WrongCluster, WrongProtocol
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.v1 import shard_pb2

MAX_ADDRESSES = 32


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a shard belongs.

    told: the address that --coordinator names, None if none. joined: id of the coordinator where it is a member, '' if it is none.
    """

    cluster_hash: str
    told: str | None
    joined: str


def read_invitation(request: shard_pb2.InviteRequest) -> DiscoveredCoordinator:
    """Raises InvalidRequest."""
    if not ID_PATTERN.fullmatch(request.coordinator_id):
        raise InvalidRequest(
            f"coordinator_id is {request.coordinator_id[:80]!r}; expected 1 to 63 letters, digits, - and _", "coordinator_id"
        )
    if not 1 <= len(request.addresses) <= MAX_ADDRESSES:
        raise InvalidRequest(f"the invitation has {len(request.addresses)} addresses; expected 1 to {MAX_ADDRESSES}", "addresses")
    protocol = f"{request.protocol_major}.{request.protocol_minor}"
    return DiscoveredCoordinator(request.coordinator_id, request.cluster_hash, protocol, _addresses(request.addresses))


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(str(parse_address(text[:300])) for text in texts)
    except InvalidSetting as error:
        raise InvalidRequest(error.message, "addresses") from error


def check_invitation(inviting: DiscoveredCoordinator, standing: Standing) -> None:
    """Raises WrongCluster, WrongProtocol or InvitationDeclined if the shard may not follow it."""
    if inviting.cluster_hash != standing.cluster_hash:
        raise WrongCluster(f"this shard belongs to another cluster (hash {standing.cluster_hash})")
    if inviting.protocol.partition(".")[0] != str(PROTOCOL_MAJOR):
        own = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
        raise WrongProtocol(f"this shard speaks protocol {own}, the coordinator {inviting.protocol}; install the same version on both")
    if standing.joined not in ("", inviting.coordinator_id):
        raise InvitationDeclined(f"this shard is a member of another coordinator of this cluster (id {standing.joined})")
    if standing.told is not None and not standing.joined and standing.told not in inviting.addresses:
        raise InvitationDeclined(f"this shard was told to join {standing.told} (--coordinator), and nowhere else")
