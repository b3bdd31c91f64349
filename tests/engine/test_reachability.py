import pytest

from dairllm.coordinator.membership.reachability import Place, addresses_from, host_of_peer

OWN = frozenset({"192.168.1.2"})
LOCAL = Place(("127.0.0.1:7001", "192.168.1.2:7001"), "127.0.0.1")
ALSO_LOCAL = Place(("192.168.1.2:7002",), "192.168.1.2")
REMOTE = Place(("127.0.0.1:7003", "10.9.9.9:7003", "192.168.1.3:7003"), "192.168.1.3")


def test_members_of_one_host_use_loopback() -> None:
    assert addresses_from(LOCAL, ALSO_LOCAL, OWN)[0] == "127.0.0.1:7002"


@pytest.mark.parametrize("named", ["127.0.0.2:7004", "127.0.1.1:7004", "[::1]:7004", "localhost:7004"])
def test_a_loopback_address_that_was_named_is_the_only_one(named: str) -> None:
    assert addresses_from(ALSO_LOCAL, Place((named,), "127.0.0.1"), OWN) == (named,)


def test_a_remote_member_never_gets_a_loopback_address() -> None:
    assert addresses_from(REMOTE, LOCAL, OWN) == ("192.168.1.2:7001",)


def test_the_observed_host_comes_first_and_loopback_of_another_host_never() -> None:
    assert addresses_from(LOCAL, REMOTE, OWN) == ("192.168.1.3:7003", "10.9.9.9:7003")


def test_nonsense_is_passed_over() -> None:
    assert addresses_from(LOCAL, Place(("what", "1.2.3.4:99999", "1.2.3.4:5"), ""), OWN) == ("1.2.3.4:5",)


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:10.0.0.5:41234", "10.0.0.5"),
        ("ipv6:%5B::1%5D:41234", "::1"),
        ("ipv6:[fe80::1]:5", "fe80::1"),
        ("ipv6:%5B::ffff:10.0.0.5%5D:5", "10.0.0.5"),
        ("unix:/run/x", ""),
        ("", ""),
    ],
)
def test_host_of_peer(peer: str, host: str) -> None:
    assert host_of_peer(peer) == host
