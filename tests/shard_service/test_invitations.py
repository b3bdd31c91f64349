"""Which invitations a shard follows."""

import pytest

from dairllm.mesh.errors import DairllmError, InvalidRequest, InvitationDeclined, WrongCluster, WrongProtocol
from dairllm.mesh.protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR
from dairllm.shard_service.membership.invitations import MAX_ADDRESSES, Standing, check_invitation, read_invitation
from dairllm.v1 import shard_pb2

HASH = "0123456789abcdef"
LOOKING = Standing(HASH, None, "")


def invitation(**changes: object) -> shard_pb2.InviteRequest:
    fields = {"cluster_hash": HASH, "protocol_major": PROTOCOL_MAJOR, "protocol_minor": PROTOCOL_MINOR, "coordinator_id": "abc"}
    return shard_pb2.InviteRequest(**({**fields, "addresses": ["10.0.0.1:7117"]} | changes))  # type: ignore[arg-type]


def test_a_shard_that_looks_follows() -> None:
    inviting = read_invitation(invitation(protocol_minor=PROTOCOL_MINOR + 1))
    check_invitation(inviting, LOOKING)
    assert inviting.addresses == ("10.0.0.1:7117",)


@pytest.mark.parametrize(
    ("changes", "standing", "error", "words"),
    [
        ({"cluster_hash": "f" * 16}, LOOKING, WrongCluster, HASH),
        ({"cluster_hash": "f" * 16}, Standing(HASH, None, "abc"), WrongCluster, HASH),
        ({"protocol_major": PROTOCOL_MAJOR + 1}, LOOKING, WrongProtocol, f"{PROTOCOL_MAJOR + 1}.{PROTOCOL_MINOR}"),
        ({}, Standing(HASH, None, "xyz"), InvitationDeclined, "member of another coordinator"),
        ({}, Standing(HASH, "10.0.0.9:7117", ""), InvitationDeclined, "told to join 10.0.0.9:7117"),
        ({}, Standing(HASH, "10.0.0.9:7117", "xyz"), InvitationDeclined, "member of another coordinator"),
    ],
)
def test_refusals_say_why(changes: dict[str, object], standing: Standing, error: type[DairllmError], words: str) -> None:
    with pytest.raises(error, match=words):
        check_invitation(read_invitation(invitation(**changes)), standing)


@pytest.mark.parametrize(
    "standing", [Standing(HASH, None, "abc"), Standing(HASH, "10.0.0.1:7117", ""), Standing(HASH, "10.0.0.9:7117", "abc")]
)
def test_an_invitation_to_where_it_belongs_already_is_none_to_refuse(standing: Standing) -> None:
    check_invitation(read_invitation(invitation()), standing)


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": []},
        {"addresses": ["10.0.0.1:7117"] * (MAX_ADDRESSES + 1)},
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.1:7117", "no such address"]},
        {"addresses": ["x" * 100_000 + ":1"]},
        {"coordinator_id": ""},
        {"coordinator_id": "../../etc"},
        {"coordinator_id": "x" * 64},
    ],
)
def test_nonsense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_invitation(invitation(**changes))
    assert len(caught.value.message) < 1000
