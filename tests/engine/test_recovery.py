"""Replays against a model of what shards hold, for every way in which a plan can change."""

from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.engine.recovery import Placement, StagePlace, holders_after, holders_under, plan_replay
from dairllm.mesh.ring.frames import Replay

A, B, C, D = (Holder(name, "1") for name in "abcd")


def placement(*stages: tuple[Holder, int]) -> Placement:
    """Stages by their last boundary."""
    starts = [0, *(stop for _, stop in stages)]
    return tuple(StagePlace(holder, range(start, stop)) for start, (holder, stop) in zip(starts, stages, strict=False))


THREE = placement((A, 11), (B, 21), (C, 32))


LAYERS = frozenset(range(1, 31))


def replay(before: Placement, now: Placement, transferred: frozenset[int] = frozenset()) -> Replay | None:
    """With shards that kept what they have in both placements."""
    kept = {unit for stage in now for other in before if other.holder == stage.holder for unit in stage.units if unit in other.units}
    return plan_replay(holders_under(before), now, LAYERS & (kept | transferred))


def test_nothing_moved() -> None:
    assert replay(THREE, THREE) is None


def test_neighbours_that_share_a_lost_shards_layers_replay_its_input() -> None:
    assert replay(THREE, placement((A, 16), (C, 32))) == Replay(11, 21, "a")


def test_a_new_shard_in_the_place_of_the_lost_one_gets_its_input() -> None:
    assert replay(THREE, placement((A, 11), (D, 21), (C, 32))) == Replay(11, 21, "a")


def test_the_coordinator_replays_token_ids_for_a_lost_first_shard() -> None:
    assert replay(THREE, placement((B, 21), (C, 32))) == Replay(0, 11, "")


def test_a_lost_last_shard() -> None:
    assert replay(THREE, placement((A, 11), (B, 32))) == Replay(21, 31, "b")


def test_two_neighbours_lost() -> None:
    four = placement((A, 8), (B, 16), (C, 24), (D, 32))
    assert replay(four, placement((A, 20), (D, 32))) == Replay(8, 24, "a")


def test_a_restarted_shard_holds_nothing() -> None:
    again = Holder("b", "2")
    assert replay(THREE, placement((A, 11), (again, 21), (C, 32))) == Replay(11, 21, "a")


def test_handed_over_layers_need_no_replay() -> None:
    assert replay(THREE, placement((A, 16), (B, 21), (C, 32)), frozenset(range(11, 16))) is None


def test_records_are_of_no_use_where_their_owner_is_elsewhere_in_the_ring() -> None:
    assert replay(THREE, placement((B, 15), (A, 32))) == Replay(0, 31, "")


def test_only_the_embedding_moved() -> None:
    assert replay(placement((A, 1), (B, 32)), placement((B, 32))) is None


@st.composite
def placements(draw: st.DrawFn, num_units: int = 8) -> Placement:
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    cuts = draw(st.lists(st.integers(1, num_units - 1), min_size=len(names) - 1, max_size=len(names) - 1, unique=True))
    boots = [draw(st.sampled_from("12")) for _ in names]
    return placement(*((Holder(n, b), stop) for n, b, stop in zip(names, boots, [*sorted(cuts), num_units], strict=True)))


class World:
    """What each shard holds of one sequence: the cache of units, and sent rows at boundaries."""

    def __init__(self, first: Placement) -> None:
        self.cache: set[tuple[Holder, int]] = set()
        self.sent_rows: set[tuple[Holder, int]] = set()
        self.compute(first, Replay(0, 8, ""))

    def compute(self, now: Placement, replay: Replay) -> None:
        """Send all rows of the past through the ring; fails where a shard lacks what it would need."""
        rows_at: int | None = None if replay.replay_at else 0
        for stage in now:
            start, stop = stage.units.start, stage.units.stop
            if stage.holder.name == replay.replay_at:
                assert (stage.holder, replay.first_unit) in self.sent_rows
                assert start <= replay.first_unit <= stop
                rows_at = replay.first_unit
            if rows_at is None or rows_at == replay.end_unit:
                continue
            assert start <= rows_at <= stop, "rows reach the shard that needs them next"
            until = min(stop, replay.end_unit)
            self.cache |= {(stage.holder, unit) for unit in range(rows_at, until)}
            rows_at = until
            if until == stop:
                self.sent_rows.add((stage.holder, stop))

    def go_on(self, now: Placement) -> None:
        """Rows that come after are sent at the boundaries of now only: what was recorded elsewhere is not complete any more."""
        boundaries = {(stage.holder, stage.units.stop) for stage in now}
        self.sent_rows &= boundaries
        self.cache &= {(stage.holder, unit) for stage in now for unit in stage.units}


@given(placements(), st.lists(st.tuples(placements(), st.sets(st.integers(1, 6))), max_size=6))
def test_every_change_leaves_every_cache_with_its_owner(first: Placement, changes: list[tuple[Placement, set[int]]]) -> None:
    world, holders = World(first), holders_under(first)
    for now, transferred in changes:
        for stage in now:
            world.cache |= {(stage.holder, unit) for unit in stage.units if unit in transferred}
        present = frozenset(unit for stage in now for unit in stage.units if (stage.holder, unit) in world.cache)
        needed = plan_replay(holders, now, present)
        if needed is not None:
            world.compute(now, needed)
        assert all((stage.holder, unit) in world.cache for stage in now for unit in stage.units if 1 <= unit <= 6)
        holders = holders_after(holders, now, needed)
        world.go_on(now)
        assert all((holder, boundary) in world.sent_rows for boundary, holder in holders.items())
