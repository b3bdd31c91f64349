"""Several hosts on one machine: network namespaces, joined by a bridge. Needs root and iproute2."""

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from tests.instruments.processes import ManagedProcess

_COMMAND_TIMEOUT_S = 20
_NOBODYS_CARD = "02:00:00:00:00:01"
_numbers = itertools.count()


@functools.cache
def unavailable_reason() -> str | None:
    """Why namespaces can't be made here, or None if they can: made and removed once to know."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` of iproute2"
    try:
        with Namespaces(["probe"]):
            return None
    except NamespaceError as error:
        return f"network namespaces do not work here: {error}"


def available() -> bool:
    return unavailable_reason() is None


class NamespaceError(Exception):
    """A command of iproute2 failed."""


def _ip(*arguments: str) -> str:
    return _command("ip", *arguments)


def _command(*argv: str) -> str:
    result = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False)
    if result.returncode != 0:
        raise NamespaceError(f"`{' '.join(argv)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


class Namespaces:
    """Hosts by name, each with interface `veth0` in one common subnet of 10.77.0.0/16. Multicast passes the bridge.

        with Namespaces(["a", "b"]) as network:
            process = network.run("a", ["ping", "-c1", network.address("b")])

    The bridge lives in a namespace of its own, so that nothing of this machine's network is touched and one command removes all.
    Names and subnets are unique per process and network. Processes started by `run` are ended with the network.
    ipv6: hosts have an IPv6 address of fd77::/48 and no IPv4 one.
    """

    def __init__(self, hosts: Sequence[str], *, default_route: bool = False, ipv6: bool = False) -> None:
        number = next(_numbers)
        self._prefix = f"dairllm{os.getpid()}n{number}"
        self._subnet, self._mask = (f"fd77:0:0:{number % 256:x}:", 64) if ipv6 else (f"10.77.{number % 256}", 24)
        self._separator = ":" if ipv6 else "."
        self._hosts = {host: index for index, host in enumerate(hosts, 1)}
        self._last = dict(self._hosts)
        self._default_route = default_route
        self._routed: set[str] = set()
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup:
            self._build()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._cleanup.close()

    def address(self, host: str) -> str:
        return f"{self._subnet}{self._separator}{self._last[host]}"

    def run(
        self, host: str, argv: Sequence[str], env: Mapping[str, str] | None = None, output: int | None = None
    ) -> "subprocess.Popen[bytes]":
        """Start argv on this host; env replaces the environment. The pid is that of argv itself."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(host), *argv],
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        self._cleanup.callback(_end, process)
        return process

    def managed(self, host: str, argv: Sequence[str], env: Mapping[str, str | None] | None = None) -> ManagedProcess:
        """As `run`, to be used as a context manager within this one."""
        return ManagedProcess(argv, env, name=f"{argv[0]} on {host}", starter=lambda argv, env, output: self.run(host, argv, env, output))

    def block_multicast(self, host: str) -> None:
        """Multicast neither leaves nor reaches this host any more; everything else does.

        The host's cable moves from the bridge to a router, which answers ARP for both sides and forwards no link-local multicast.
        """
        self._on_bridge("ip", "link", "set", self._port(host), "nomaster")
        for setting in ("ip_forward", f"conf/{self._port(host)}/proxy_arp", "conf/bridge0/proxy_arp"):
            self._on_bridge("sh", "-c", f"echo 1 > /proc/sys/net/ipv4/{setting}")
        self._on_bridge("ip", "address", "replace", f"{self._subnet}.254/24", "dev", "bridge0")
        self._route_to(host)
        self._routed.add(host)
        for each in self._hosts:
            self._on(each, "ip", "neighbour", "flush", "dev", "veth0")

    def move(self, host: str, last: int) -> None:
        """This host has another address from now on, which ends in this number; the old one is gone."""
        old, self._last[host] = self.address(host), last
        self._on(host, "ip", "address", "delete", f"{old}/{self._mask}", "dev", "veth0")
        self._on(host, "ip", "address", "add", f"{self.address(host)}/{self._mask}", "dev", "veth0")

    def block_multicast_to(self, host: str) -> None:
        """Multicast does not reach this host any more; what it sends reaches the others, and everything else passes both ways."""
        self._on_bridge(*f"ip link set dev {self._port(host)} type bridge_slave mcast_flood off".split())

    def link_down(self, host: str) -> None:
        """As if the cable was pulled on the switch's side: the host keeps its addresses."""
        self._on_bridge("ip", "link", "set", self._port(host), "down")

    def link_up(self, host: str) -> None:
        self._on_bridge("ip", "link", "set", self._port(host), "up")
        if host in self._routed:
            self._route_to(host)

    def cut_between(self, one: str, other: str) -> None:
        """What these two send each other is lost from now on, without a word to either; all else goes on.

        It is addressed to a network card that nobody has, which needs neither netem nor a firewall.
        """
        for host, peer in ((one, other), (other, one)):
            self._on(host, *f"ip neighbour replace {self.address(peer)} lladdr {_NOBODYS_CARD} nud permanent dev veth0".split())

    def mend_between(self, one: str, other: str) -> None:
        for host, peer in ((one, other), (other, one)):
            self._on(host, *f"ip neighbour delete {self.address(peer)} dev veth0".split())

    def set_quality(self, host: str, *, delay_ms: float = 0.0, loss_percent: float = 0.0) -> None:
        """What this host sends is delayed or lost. Raises NamespaceError if the system has no netem."""
        self._on(host, *f"tc qdisc replace dev veth0 root netem delay {delay_ms:g}ms loss {loss_percent:g}%".split())

    def _route_to(self, host: str) -> None:
        self._on_bridge("ip", "route", "replace", f"{self.address(host)}/32", "dev", self._port(host))

    def _build(self) -> None:
        self._add_namespace(self._bridge_namespace)
        self._on_bridge("ip", "link", "add", "bridge0", "type", "bridge", "mcast_snooping", "0")
        self._on_bridge("ip", "link", "set", "bridge0", "up")
        for host in self._hosts:
            self._add_host(host)

    def _add_host(self, host: str) -> None:
        self._add_namespace(self.namespace(host))
        self._on_bridge(*f"ip link add {self._port(host)} type veth peer name veth0 netns {self.namespace(host)}".split())
        self._on_bridge("ip", "link", "set", self._port(host), "master", "bridge0", "up")
        # Without duplicate address detection, for which an IPv6 address waits a second.
        self._on(
            host, "ip", "address", "add", f"{self.address(host)}/{self._mask}", "dev", "veth0", *(["nodad"] if ":" in self._subnet else [])
        )
        for interface in ("lo", "veth0"):
            self._on(host, "ip", "link", "set", interface, "up")
        if self._default_route:
            self._on(host, "ip", "route", "add", "default", "via", f"{self._subnet}.254", "dev", "veth0")

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._cleanup.callback(_remove_namespace, name)

    @property
    def _bridge_namespace(self) -> str:
        return f"{self._prefix}-bridge"

    def namespace(self, host: str) -> str:
        """Name for `ip netns`."""
        return f"{self._prefix}-{self._hosts[host]}"

    def _port(self, host: str) -> str:
        return f"port{self._hosts[host]}"

    def _on(self, host: str, *argv: str) -> str:
        return _ip("netns", "exec", self.namespace(host), *argv)

    def _on_bridge(self, *argv: str) -> str:
        return _ip("netns", "exec", self._bridge_namespace, *argv)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.kill()
    process.wait(_COMMAND_TIMEOUT_S)


def _remove_namespace(name: str) -> None:
    """Processes inside would keep the namespace alive without its name."""
    for pid in _pids(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    _ip("netns", "delete", name)


def _pids(name: str) -> Iterator[int]:
    yield from (int(pid) for pid in _ip("netns", "pids", name).split())
