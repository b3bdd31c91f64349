"""Hosts on links that delay and lose packets, for systems without netem: frames pass a relay of our own, which is this file as a program.

Each host's `veth0` is a TAP device, and so is its port of the bridge; one process carries frames from one to the other.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self, TextIO, TypeVar

from tests.instruments.namespaces import Namespaces

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_CLONE_NEWNET = 0x40000000
_FRAME_BYTES = 65536
_QUEUE_LENGTH = 2000
T = TypeVar("T")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and threads and processes that it starts, see the network of this namespace (a name for `ip netns`)."""
    with open("/proc/thread-self/ns/net") as outside, open(f"/run/netns/{namespace}") as target:
        _set_namespace(target)
        try:
            yield
        finally:
            _set_namespace(outside)


def _set_namespace(file: TextIO) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"setns to {file.name} failed")


def _in_thread_of(namespace: str, work: Callable[[], T]) -> T:
    results: list[T] = []

    def run() -> None:
        with inside(namespace):
            results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def _open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


def unavailable_reason() -> str | None:
    return None if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "links that lose packets need /dev/net/tun"


class LossyNetwork(Namespaces):
    """As Namespaces; `impair` changes what a link does in both directions, at once."""

    def __init__(self, hosts: Sequence[str]) -> None:
        super().__init__(hosts)
        self._links: dict[str, tuple[int, int]] = {}
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        descriptors = [descriptor for link in self._links.values() for descriptor in link]
        try:
            self._relay = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, *map(str, descriptors)],
                stdin=subprocess.PIPE,
                text=True,
                pass_fds=descriptors,
                cwd=Path(__file__).parents[2],
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._cleanup.callback(self._end_relay)
        return self

    def impair(self, host: str, *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._relay.stdin.write(json.dumps([list(self._links).index(host), delay_s, loss]) + "\n")
        self._relay.stdin.flush()

    def _add_host(self, host: str) -> None:
        self._add_namespace(self.namespace(host))
        inner = _in_thread_of(self.namespace(host), lambda: _open_tap("veth0"))
        outer = _in_thread_of(self._bridge_namespace, lambda: _open_tap(self._port(host)))
        self._links[host] = (inner, outer)
        self._on_bridge("ip", "link", "set", self._port(host), "txqueuelen", str(_QUEUE_LENGTH), "master", "bridge0", "up")
        self._on(host, "ip", "address", "add", f"{self.address(host)}/24", "dev", "veth0")
        self._on(host, "ip", "link", "set", "veth0", "txqueuelen", str(_QUEUE_LENGTH))
        for interface in ("lo", "veth0"):
            self._on(host, "ip", "link", "set", interface, "up")

    def _end_relay(self) -> None:
        assert self._relay is not None
        assert self._relay.stdin is not None
        self._relay.stdin.close()
        self._relay.wait(5.0)


class _Relay:
    """Frames read from one end of a link are written to the other when they are due, unless they are lost."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self._descriptors = list(descriptors)
        self._partner = {fd: descriptors[index ^ 1] for index, fd in enumerate(descriptors)}
        self._quality = dict.fromkeys(descriptors, (0.0, 0.0))
        self._due: list[tuple[float, int, int, bytes]] = []
        self._number = 0
        self._random = random.Random(1)

    def run(self) -> None:
        """Until stdin ends."""
        commands = sys.stdin.fileno()
        for fd in self._descriptors:
            os.set_blocking(fd, False)
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            readable, _, _ = select.select([commands, *self._descriptors], [], [], wait_s)
            for fd in readable:
                if fd != commands:
                    self._take(fd)
                elif not self._obey(os.read(commands, 4096)):
                    return
            self._deliver()

    def _obey(self, text: bytes) -> bool:
        for line in text.splitlines():
            link, delay_s, loss = json.loads(line)
            for fd in self._descriptors[2 * link : 2 * link + 2]:
                self._quality[fd] = (delay_s, loss)
        return bool(text)

    def _take(self, fd: int) -> None:
        delay_s, loss = self._quality[fd]
        frame = os.read(fd, _FRAME_BYTES)
        if self._random.random() >= loss:
            self._number += 1
            heapq.heappush(self._due, (time.monotonic() + delay_s, self._number, self._partner[fd], frame))

    def _deliver(self) -> None:
        now_s = time.monotonic()
        while self._due and self._due[0][0] <= now_s:
            _, _, fd, frame = heapq.heappop(self._due)
            with contextlib.suppress(OSError):
                os.write(fd, frame)


if __name__ == "__main__":
    _Relay([int(argument) for argument in sys.argv[1:]]).run()
