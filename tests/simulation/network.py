"""Streams between members: messages come late, but in order; a stream may be cut, and then both ends learn of it, each in its own time."""

from collections.abc import Callable
from typing import Generic, TypeVar

from tests.simulation.world import World

Message = TypeVar("Message")

USUAL_DELAY_S = 0.001
LONG_DELAY_S = 0.3
LONG_DELAY_PROBABILITY = 0.02


class Network:
    def __init__(self, world: World) -> None:
        self._world = world

    def delay_s(self) -> float:
        random = self._world.random
        longest_s = LONG_DELAY_S if random.random() < LONG_DELAY_PROBABILITY else USUAL_DELAY_S
        return random.uniform(0.1, 1.0) * longest_s

    def send(self, deliver: Callable[[], None]) -> None:
        """A message outside of any stream: it may overtake others."""
        self._world.after(self.delay_s(), deliver)


class Direction(Generic[Message]):
    """One direction of a stream. on_message is not called any more once the stream is closed at the receiver's end."""

    def __init__(self, world: World, network: Network, on_message: Callable[[Message], None]) -> None:
        self._world = world
        self._network = network
        self._on_message = on_message
        self._free_at_s = 0.0
        self.is_closed = False
        self.is_cut = False

    def send(self, message: Message) -> None:
        self._free_at_s = max(self._free_at_s, self._world.now_s + self._network.delay_s())
        self._world.after(self._free_at_s - self._world.now_s, lambda: self._deliver(message))

    def _deliver(self, message: Message) -> None:
        if not (self.is_closed or self.is_cut):
            self._on_message(message)


class Stream(Generic[Message]):
    """to_server, to_client: its directions. Both ends are told once when it ends, unless they ended it themselves."""

    def __init__(
        self,
        world: World,
        network: Network,
        to_server: Callable[[Message], None],
        to_client: Callable[[Message], None],
        on_server_end: Callable[[], None],
        on_client_end: Callable[[], None],
    ) -> None:
        self._network = network
        self.to_server = Direction(world, network, to_server)
        self.to_client = Direction(world, network, to_client)
        self._on_server_end, self._on_client_end = on_server_end, on_client_end

    def cut(self) -> None:
        """What is under way is lost."""
        self.to_server.is_cut = self.to_client.is_cut = True
        self._network.send(self._end_server)
        self._network.send(self._end_client)

    def close_client(self) -> None:
        """The client ends it, or dies: the server is told."""
        self.to_client.is_closed = True
        self._network.send(self._end_server)

    def close_server(self) -> None:
        """The server ends it, or dies: the client is told after what was sent before."""
        self.to_server.is_closed = True
        self._network.send(self._end_client)

    def _end_server(self) -> None:
        if not self.to_server.is_closed:
            self.to_server.is_closed = True
            self._on_server_end()

    def _end_client(self) -> None:
        if not self.to_client.is_closed:
            self.to_client.is_closed = True
            self._on_client_end()
