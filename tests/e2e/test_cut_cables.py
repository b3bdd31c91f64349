"""A cable between two shards that swallows everything, while both still reach the coordinator: no connection breaks, and no lease ends."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.answers import PROMPTS, Answer, ask_all, assert_no_fault
from tests.e2e.test_lost_shards import names_in_plan
from tests.faults.lossy_network import inside
from tests.instruments.clusters import Cluster, elapsed, shards
from tests.instruments.namespaces import Namespaces, unavailable_reason
from tests.instruments.streamed_answers import StreamedAnswer

NUM_TOKENS = 300
TOKENS_BEFORE = 20
NOTICED_WITHIN_S = 5.0
AROUND_WITHIN_S = 10.0
SLACK_S = 1.0
"""For a busy machine. Measured times are printed."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]


@contextlib.contextmanager
def hosts(model: Path, count: int, needed: int) -> Iterator[tuple[Cluster, Namespaces]]:
    """A coordinator and shards on hosts of their own."""
    members = shards(count)
    with (
        Namespaces(["coordinator", *(member.name for member in members)]) as network,
        inside(network.namespace("coordinator")),
        Cluster(model, members, min_shards=needed, network=network) as cluster,
    ):
        yield cluster, network


class Cut(NamedTuple):
    """went_on_s: after so long all answers had gone on. edge: between which two shards."""

    answers: list[Answer]
    went_on_s: float
    edge: tuple[str, str]


def cut_first_edge(cluster: Cluster, network: Namespaces, go_on: Callable[[], None]) -> Cut:
    """Four streams; the cable between the first two shards is cut when all have begun."""
    coordinator = cluster.processes["coordinator"]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_tokens(TOKENS_BEFORE)
        first, second, *_ = names_in_plan(cluster.state())
        network.cut_between(first, second)
        cut_at, before = datetime.now(UTC), [len(stream.tokens) for stream in streams]
        with elapsed() as passed_s:
            assert not any(stream.is_over for stream in streams)
            coordinator.wait_output("the edge is silent", NOTICED_WITHIN_S + SLACK_S + 5.0)
            noticed_s = (silent_at(coordinator.output()) - cut_at).total_seconds()
            print(f"the edge from {first} to {second} counts as silent {noticed_s:.2f} s after the cut")
            assert noticed_s < NOTICED_WITHIN_S + SLACK_S
            go_on()
            for stream, tokens in zip(streams, before, strict=True):
                stream.wait_tokens(tokens + 10)
            went_on_s = passed_s()
        return Cut([Answer.of_stream(stream) for stream in streams], went_on_s, (first, second))


def silent_at(output: str) -> datetime:
    line = next(line for line in output.splitlines() if "the edge is silent" in line)
    found = datetime.fromisoformat(line.split()[0])
    return found if found.tzinfo else found.astimezone()


@pytest.mark.parametrize("needed", [2, 3])
def test_answers_go_around_a_cut_cable(tiny_model: Path, needed: int) -> None:
    """Of three shards: without one end of the cable if two suffice, else in another order."""
    with hosts(tiny_model, 3, needed) as (cluster, network):
        cluster.wait_until(lambda state: len(state["shards"]) == 3 and not state["next_epoch"])
        expected = ask_all(cluster, NUM_TOKENS)
        answers, went_on_s, edge = cut_first_edge(cluster, network, lambda: None)
        print(f"answers went on {went_on_s:.2f} s after the cut")
        assert answers == expected
        assert went_on_s < AROUND_WITHIN_S
        after = names_in_plan(cluster.state())
        assert len(after) >= needed
        assert not {edge, edge[::-1]} & {*pairwise(after)}, f"{edge} was cut, and the plan is {after}"
        assert "fell silent, though both live: plans go around it" in cluster.processes["coordinator"].output()
        assert ask_all(cluster, NUM_TOKENS) == expected
        assert_no_fault(*cluster.processes.values())


def test_answers_wait_for_a_cable_that_is_needed(tiny_model: Path) -> None:
    with hosts(tiny_model, 2, 2) as (cluster, network):
        expected = ask_all(cluster, NUM_TOKENS)
        coordinator = cluster.processes["coordinator"]

        def mend() -> None:
            coordinator.wait_output("no edge to", 20.0)
            network.mend_between("a", "b")
            with elapsed() as passed_s:
                cluster.wait_until(lambda state: state["engine"]["running"] == 0, 60.0)
                print(f"answers were complete {passed_s():.2f} s after the cable was mended")

        answers, went_on_s, _ = cut_first_edge(cluster, network, mend)
        print(f"answers went on {went_on_s:.2f} s after the cut")
        assert answers == expected
        assert_no_fault(*cluster.processes.values())
