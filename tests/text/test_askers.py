"""Who asks: the name of a client, and that it reaches the engine over HTTP and over gRPC."""

import pytest

from dairllm.coordinator.engine.requests import Asker
from dairllm.coordinator.text import Choices, TextRequest, TextService, address_of_peer, client_name
from tests.text.fakes import FakeEngine, make_served


@pytest.mark.parametrize(
    ("authorization", "address", "name"),
    [
        (None, "192.0.2.1", "address 192.0.2.1"),
        ("", "192.0.2.1", "address 192.0.2.1"),
        ("Bearer ", "192.0.2.1", "address 192.0.2.1"),
        ("Basic dXNlcg==", "192.0.2.1", "address 192.0.2.1"),
        (None, "::ffff:192.0.2.1", "address 192.0.2.1"),
        (None, "2001:db8::1", "address 2001:db8::/64"),
        (None, "2001:db8::2", "address 2001:db8::/64"),
        (None, "fe80::1%eth0", "address fe80::/64"),
        (None, "unix", "address unix"),
        (None, "", "address "),
    ],
)
def test_a_client_without_an_api_key_is_its_address(authorization: str | None, address: str, name: str) -> None:
    assert client_name(authorization, address) == name


def test_an_api_key_names_a_client_wherever_it_is_and_is_not_shown() -> None:
    name = client_name("Bearer sk-secret", "192.0.2.1")
    assert name == client_name("bearer  sk-secret ", "2001:db8::1")
    assert name != client_name("Bearer sk-other", "192.0.2.1")
    assert "secret" not in name
    assert client_name("Bearer \udcff", "192.0.2.1").startswith("key ")


@pytest.mark.parametrize(
    ("peer", "address"),
    [("ipv4:127.0.0.1:5000", "127.0.0.1"), ("ipv6:%5B::1%5D:5000", "::1"), ("ipv6:[::1]:5000", "::1"), ("unix:/run/x", "unix")],
)
def test_a_peer_of_grpc_has_an_address(peer: str, address: str) -> None:
    assert address_of_peer(peer) == address


async def test_the_sequences_of_a_call_are_one_call_of_their_client() -> None:
    engine = FakeEngine(b"a")
    for _ in range(2):
        async with Choices(TextService(make_served(), engine), TextRequest((1,)).choices(2), client="c") as choices:
            assert [choice async for choice in choices]
    askers = [request.asker for request in engine.requests]
    assert askers[0] == askers[1] == Asker("c", askers[0].call)
    assert askers[2] == askers[3] == Asker("c", askers[2].call)
    assert askers[0] != askers[2]
