"""What a member of a ring asks of whoever opens an edge to it."""

from dataclasses import replace

import pytest

from dairllm.mesh.errors import DairllmError, WrongCluster, WrongEpoch
from dairllm.mesh.peers import COORDINATOR_NAME
from dairllm.mesh.ring.member import RingMember

BEFORE = RingMember("0123456789abcdef", "a", 7, b"key of epoch 7")
OWN = replace(BEFORE, name="b")


def test_a_member_of_the_same_ring_is_let_in() -> None:
    OWN.require(BEFORE.opening_to("b"))


@pytest.mark.parametrize(
    ("before", "receiver", "error", "words"),
    [
        (
            replace(BEFORE, cluster_hash="fedcba9876543210"),
            "b",
            WrongCluster,
            "'a' belongs to another cluster: its hash is 'fedcba9876543210'",
        ),
        (BEFORE, "c", WrongEpoch, "'a' meant to reach 'c', and reached shard 'b'"),
        (BEFORE, "", WrongEpoch, "'a' meant to reach '', and reached shard 'b'"),
        (replace(BEFORE, epoch=6), "b", WrongEpoch, "epoch is 6; shard 'b' is at 7"),
        (replace(BEFORE, ring_key=b""), "b", WrongEpoch, "'a' does not have the key of epoch 7"),
        (replace(BEFORE, ring_key=b"key of epoch 7 of another coordinator"), "b", WrongEpoch, "'a' does not have the key of epoch 7"),
    ],
)
def test_others_are_told_what_is_wrong(before: RingMember, receiver: str, error: type[DairllmError], words: str) -> None:
    with pytest.raises(error) as raised:
        OWN.require(before.opening_to(receiver))
    assert str(raised.value) == words


@pytest.mark.parametrize("epoch", [0, 7])
def test_nobody_is_let_in_while_no_epoch_is_active(epoch: int) -> None:
    coordinator = RingMember(OWN.cluster_hash, COORDINATOR_NAME, None)
    with pytest.raises(WrongEpoch, match=f"epoch is {epoch}; the coordinator is at none"):
        coordinator.require(replace(BEFORE, epoch=epoch, ring_key=b"").opening_to(COORDINATOR_NAME))


def test_keys_are_not_shown() -> None:
    assert "key of epoch" not in repr(OWN)
