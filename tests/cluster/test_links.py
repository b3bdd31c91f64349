"""Links that fail although both ends live: when plans go around them, and how."""

from collections.abc import Collection, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.cluster.books.links import Edge, Links
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.planner import Infeasible, Plan, ShardOffer, make_plan
from dairllm.model_files.memory import Reserve
from tests.cluster.test_machine import MODEL
from tests.instruments.descriptions import FEATURES, FORMATS

GIB = 1 << 30
A_TO_B = Edge("A", "B")


def links(**settings: float) -> Links:
    return Links(ClusterConfig("home", 1, **settings))  # type: ignore[arg-type]


def cut(network: Links, *pairs: tuple[str, str]) -> Links:
    for pair in pairs:
        network.fail(Edge(*pair), 0.0)
        network.fail(Edge(*pair), 0.0)
    return network


class Planner:
    """Plans of the toy model for these shards, with this much room each."""

    def __init__(self, rooms: Mapping[str, int], min_shards: int) -> None:
        self._offers = [ShardOffer(name, room, Reserve(), 1e-10, 0.0005, FEATURES, FORMATS) for name, room in rooms.items()]
        self._min_shards = min_shards

    def __call__(self, previous: Plan | None, urgent: bool, without: Collection[str] = ()) -> Plan | Infeasible:
        offers = [offer for offer in self._offers if offer.name not in without]
        return make_plan(MODEL, offers, min_shards=self._min_shards, previous=previous, urgent=urgent)

    def plan(self) -> Plan:
        plan = self(None, False)
        assert isinstance(plan, Plan)
        return plan


def test_the_second_failure_of_an_edge_in_a_row_decides() -> None:
    network = links()
    assert network.fail(A_TO_B, 0.0) == 0.0
    assert network.fail(Edge("B", "A"), 0.0) == 0.0, "another edge"
    assert not network.avoids("A", "B", 0.0)
    assert network.fail(A_TO_B, 1.0) == 60.0
    assert network.avoids("A", "B", 60.5)
    assert network.avoids("B", "A", 60.5), "one cable"
    assert not network.avoids("A", "C", 1.0)
    assert not network.avoids("A", "B", 61.0)


def test_silence_decides_at_once() -> None:
    network = links()
    assert network.fail(A_TO_B, 0.0, silent=True) == 60.0
    assert network.avoids("A", "B", 59.0)
    assert network.fail(A_TO_B, 70.0) == 120.0, "in the same row"


def test_a_link_that_fails_again_is_avoided_for_twice_as_long_up_to_a_limit() -> None:
    network = links(longest_avoid_s=200.0)
    network.fail(A_TO_B, 0.0)
    assert [network.fail(A_TO_B, 0.0) for _ in range(4)] == [60.0, 120.0, 200.0, 200.0]


def test_an_avoidance_ends_once_and_what_serves_then_is_sound() -> None:
    network, plan = cut(links(), ("A", "B")), Plan.of_placement({"A": range(3), "B": range(3, 6)})
    assert not network.end_avoidances(59.0)
    assert network.end_avoidances(60.0)
    assert not network.end_avoidances(60.0)
    network.hold(Plan.of_placement({"A": range(6)}))
    assert network.fail(A_TO_B, 61.0) == 120.0, "still in its row"
    network.hold(plan)
    assert network.fail(A_TO_B, 200.0) == 0.0, "the first one of a new row"


def test_one_failure_is_forgotten_when_something_serves() -> None:
    network = links()
    network.fail(A_TO_B, 0.0)
    network.hold(Plan.of_placement({"A": range(6)}))
    assert network.fail(A_TO_B, 1.0) == 0.0


def test_what_is_lost_may_come_back_with_another_cable() -> None:
    network = cut(links(), ("A", "B"), ("C", "D"))
    network.forget({"B"})
    assert not network.avoids("A", "B", 1.0)
    assert network.avoids("C", "D", 1.0)


@pytest.mark.parametrize("urgent", [False, True])
def test_the_same_shards_in_another_order(urgent: bool) -> None:
    planner = Planner(dict.fromkeys("ABC", 8 * GIB), 3)
    plan = planner.plan()
    first, second, third = plan.placement
    around = cut(links(), (first, second)).detour(plan, plan, planner, 1.0, urgent=urgent)
    assert list(around.placement) in ([first, third, second], [second, third, first])
    assert around.left_out == ()


def test_each_takes_its_number_of_units_along_where_rooms_differ() -> None:
    planner = Planner({"A": GIB + GIB // 4, "B": 2 * GIB + GIB // 4, "C": 2 * GIB + GIB // 4}, 3)
    plan = planner.plan()
    names = list(plan.placement)
    around = cut(links(), (names[0], names[1])).detour(plan, None, planner, 1.0, urgent=True)
    assert not {*pairwise(around.placement)} & {(names[0], names[1]), (names[1], names[0])}


def test_without_one_of_the_two_where_the_others_suffice() -> None:
    planner = Planner(dict.fromkeys("ABC", 3 * GIB), 2)
    plan = planner.plan()
    assert list(plan.placement) == ["A", "B"]
    around = cut(links(), ("A", "B")).detour(plan, plan, planner, 1.0, urgent=True)
    assert set(around.placement) in ({"A", "C"}, {"B", "C"})
    (left,) = {"A", "B"} - set(around.placement)
    (kept,) = {"A", "B"} & set(around.placement)
    assert dict(around.left_out)[left] == f"is left out: its link with {kept} failed"


def test_what_serves_around_the_link_is_kept() -> None:
    planner = Planner(dict.fromkeys("ABC", 3 * GIB), 2)
    before = Plan.of_placement({"C": range(3), "A": range(3, 6)})
    around = cut(links(), ("A", "B")).detour(planner.plan(), before, planner, 1.0, urgent=False)
    assert around.placement == before.placement


def test_without_another_way_the_plan_stays() -> None:
    planner = Planner(dict.fromkeys("AB", 3 * GIB), 1)
    plan = planner.plan()
    assert cut(links(), ("A", "B")).detour(plan, plan, planner, 1.0, urgent=True).same_work_as(plan)


def test_a_first_shard_that_the_coordinator_does_not_reach_is_put_elsewhere() -> None:
    planner = Planner(dict.fromkeys("ABC", 8 * GIB), 3)
    plan = planner.plan()
    first = next(iter(plan.placement))
    around = cut(links(), ("coordinator", first)).detour(plan, plan, planner, 1.0, urgent=True)
    assert next(iter(around.placement)) != first
    assert list(around.placement)[-1] != first, "the cable is the same"


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCD")), max_size=6), st.integers(1, 4), st.booleans())
def test_a_detour_never_uses_more_avoided_links(pairs: list[tuple[str, str]], min_shards: int, urgent: bool) -> None:
    planner = Planner(dict.fromkeys("ABCD", 3 * GIB), min_shards)
    plan, network = planner.plan(), cut(links(), *pairs)

    def used(one: Plan) -> int:
        names = ["coordinator", *one.placement, "coordinator"]
        return sum(network.avoids(*edge, 1.0) for edge in pairwise(names))

    around = network.detour(plan, plan, planner, 1.0, urgent=urgent)
    assert used(around) <= used(plan)
    assert len(around.placement) >= min_shards
    assert [unit for units in around.placement.values() for unit in units] == list(range(MODEL.num_units))
