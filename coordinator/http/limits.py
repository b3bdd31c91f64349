"""How much of everything one HTTP client may take."""

from dataclasses import dataclass

MAX_CHOICES = 128
"""Answers to one prompt."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """max_sequences: prompts times choices of one request, of which concurrent_sequences run at a time.

    max_bodies_bytes: of all bodies that are not read yet, together. max_head_bytes: of the request line and the headers.
    max_connections: fewer, where descriptors are.
    request_timeout_s: for the headers, and again for the body. write_stall_s: a client that takes no byte for so long is cut off.
    keep_alive_s: between comments in an event stream that has nothing to say. idle_s: how long a connection waits for a next request, since
    pools of clients keep theirs for a minute. half_closed_tick_s: between looks at a client that has said all.
    shutdown_s: for answers under way when the server stops.
    """

    max_body_bytes: int = 16 << 20
    max_bodies_bytes: int = 64 << 20
    max_head_bytes: int = 64 << 10
    max_connections: int = 8192
    max_sequences: int = 1024
    concurrent_sequences: int = 32
    request_timeout_s: float = 30.0
    write_stall_s: float = 30.0
    keep_alive_s: float = 15.0
    idle_s: float = 75.0
    half_closed_tick_s: float = 1.0
    shutdown_s: float = 10.0
    cluster_interval_s: float = 1.0
