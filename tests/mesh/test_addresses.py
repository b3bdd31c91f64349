import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.addresses import Address, parse_address
from dairllm.mesh.errors import InvalidSetting

LABELS = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=20).filter(
    lambda label: not (label.startswith("-") or label.endswith("-"))
)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join).filter(lambda name: not name.split(".")[-1].isdigit())
HOSTS = st.one_of(NAMES, st.ip_addresses().map(str), st.ip_addresses(v=6).map(lambda ip: f"{ip}%eth0"))
PORTS = st.integers(1, 65535)


@given(HOSTS, PORTS)
def test_an_address_reads_back_as_it_was_written(host: str, port: int) -> None:
    address = Address(host, port)
    assert parse_address(str(address)) == address
    assert parse_address(str(address), default_port=1) == address


@given(HOSTS, PORTS)
def test_a_host_alone_gets_the_default_port(host: str, port: int) -> None:
    assert parse_address(host, port) == Address(host, port)


@given(st.text(max_size=40), st.none() | PORTS)
def test_any_text_is_an_address_or_an_error_that_repeats_it(text: str, default_port: int | None) -> None:
    try:
        address = parse_address(text, default_port)
    except InvalidSetting as refusal:
        message = refusal.message
    else:
        message = repr(text)
        assert parse_address(str(address)) == address
    assert repr(text) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", "no port"),
        ("", "no host name"),
        (":80", "no host name"),
        ("host:", "no whole number"),
        ("host:0", "no whole number"),
        ("host:65536", "no whole number"),
        ("host:80x", "no whole number"),
        ("host:٣", "no whole number"),
        ("host:+1", "no whole number"),
        ("::1", "in brackets"),
        ("::1:80", "in brackets"),
        ("[::1]", "no port"),
        ("[::1]80", "brackets"),
        ("[::1:80", "brackets"),
        ("[127.0.0.1]:80", "brackets"),
        ("[::zz]:80", "no host name"),
        ("1.2.3:80", "no host name"),
        ("1.2.3.256:80", "no host name"),
        ("-a:80", "no host name"),
        ("a b:80", "no host name"),
        ("http://a:80", "several colons"),
        ("a/b:80", "no host name"),
        ("a" * 64 + ":80", "no host name"),
    ],
)
def test_nonsense_is_refused_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(InvalidSetting, match=expected):
        parse_address(text)


def test_ipv6_goes_into_brackets() -> None:
    assert str(Address("fd00::2", 80)) == "[fd00::2]:80"
    assert parse_address("fd00::2", 80) == Address("fd00::2", 80)
    assert ipaddress.ip_address(parse_address("[::1]:5").host).is_loopback
