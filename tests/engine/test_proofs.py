"""Proofs that a shard computes: the coordinator knows the right answer, and takes it once."""

from dairllm.coordinator.cluster.events import ProofGiven
from dairllm.coordinator.cluster.identities import LeaseId
from dairllm.coordinator.membership.join_stream import JoinStream
from dairllm.coordinator.membership.reachability import Place
from dairllm.coordinator.membership.shard_messages import event_of
from dairllm.mesh.proof import proof_of
from dairllm.v1 import cluster_pb2


async def test_only_the_answer_to_the_latest_challenge_is_right_and_only_once() -> None:
    stream = JoinStream(LeaseId(1), "a", "boot", Place(("127.0.0.1:1",), "127.0.0.1"))

    def answer(number: int, digest: bytes) -> object:
        return event_of(stream, cluster_pb2.JoinRequest(proof=cluster_pb2.Proof(number=number, digest=digest)))

    first, second = stream.challenge(1), stream.challenge(2)
    assert first != second
    assert answer(1, proof_of(first)) == ProofGiven("a", "boot", 1, False)
    third = stream.challenge(3)
    assert answer(3, proof_of(third)) == ProofGiven("a", "boot", 3, True)
    assert answer(3, proof_of(third)) == ProofGiven("a", "boot", 3, False)
    stream.challenge(4)
    assert answer(4, b"") == ProofGiven("a", "boot", 4, False)
