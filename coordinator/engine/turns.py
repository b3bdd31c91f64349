"""Whose turn it is: the order in which sequences come to what all of them need, places on the shards and cache blocks. Pure.

Clients share evenly (max-min). The sequences of one client stand in a line: first the oldest of each of its calls, then the second of
each, and so on. A sequence's turn is what its client has asked for before it in that line. So the first of every client come before
the second of any, and a client that asks for much comes after one that asks for little, but for its first. Among equals the older
comes first. Turns get no later by what others ask for: whoever waits comes to the head of its client's line, and there only older
sequences are before it. That is why nothing waits for ever.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dairllm.coordinator.engine.requests import SequenceId
from dairllm.coordinator.engine.sequences import Sequence


class Turn(NamedTuple):
    """Less comes first. ahead: what the sequences before it in its client's line ask for, in the unit of `share_of`."""

    ahead: int
    id: SequenceId


def take_turns(sequences: Iterable[Sequence], share_of: Callable[[Sequence], int]) -> dict[SequenceId, Turn]:
    """The turns of all sequences that have not ended. share_of: how much of what is scarcest one of them asks for; over 0."""
    lines: dict[str, list[tuple[int, SequenceId, Sequence]]] = {}
    num_of_call: Counter[tuple[str, int]] = Counter()
    for sequence in sorted(sequences, key=lambda s: s.id):
        client, call = sequence.request.asker
        key = (client, call or -sequence.id)
        lines.setdefault(client, []).append((num_of_call[key], sequence.id, sequence))
        num_of_call[key] += 1
    turns: dict[SequenceId, Turn] = {}
    for line in lines.values():
        ahead = 0
        for _, number, sequence in sorted(line, key=lambda one: one[:2]):
            turns[number] = Turn(ahead, number)
            ahead += share_of(sequence)
    return turns


def even_shares(wanted: list[int], total: int) -> list[int]:
    """How many of `total` each gets so that the least is as much as possible. Where they do not suffice for one each, the first get one."""
    shares = [0] * len(wanted)
    first = range(min(len(wanted), total))
    for num_left, index in zip(range(len(first), 0, -1), sorted(first, key=lambda i: wanted[i]), strict=True):
        shares[index] = min(wanted[index], -(-total // num_left))
        total -= shares[index]
    return shares
