"""Who is asked for which unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.shard_service.weights.senders import WeightSenders

MIB = 1024**2


def test_the_last_one_is_asked_only_when_no_other_is_left() -> None:
    senders = WeightSenders(["a", "b", "coordinator"])
    senders.note_lack("a", 5)
    assert senders.choose(5, 0.0) == "b"
    senders.note_failure("b", 0.0)
    assert senders.choose(5, 0.0) == "coordinator"
    assert senders.choose(5, 1.0) == "b"
    senders.note_wrong(["b", "coordinator"], 5)
    assert senders.choose(5, 1.0) == "coordinator"
    senders.note_failure("coordinator", 1.0)
    assert senders.choose(5, 1.0) is None
    assert senders.pause_s(5, 1.0) == pytest.approx(0.2)
    senders.note_lack("coordinator", 5)
    assert senders.pause_s(5, 9.0) is None
    assert senders.choose(6, 9.0) in ("a", "b")


def test_units_are_spread() -> None:
    senders = WeightSenders(["a", "b", "c", "coordinator"])
    chosen = []
    for unit in range(6):
        name = senders.choose(unit, 0.0)
        assert name is not None
        senders.begin(name)
        chosen.append(name)
    assert sorted(chosen) == ["a", "a", "b", "b", "c", "c"]


def test_a_slow_one_is_left_if_another_can_be_asked() -> None:
    senders = WeightSenders(["a", "b", "coordinator"])
    senders.note_progress("b", 80 * MIB, 1.0)
    assert not senders.is_too_slow("a", 1, MIB, 1.0, 0.0)  # too early to tell
    assert senders.is_too_slow("a", 1, 39 * MIB, 4.0, 0.0)
    assert not senders.is_too_slow("a", 1, 41 * MIB, 4.0, 0.0)
    assert senders.is_too_slow("coordinator", 1, 1000, 4.0, 0.0)
    for name in ("b", "coordinator"):
        senders.note_lack(name, 1)
    assert not senders.is_too_slow("a", 1, 1000, 4.0, 0.0)


@given(
    st.lists(st.tuples(st.sampled_from(["lack", "failure", "wrong"]), st.sampled_from("abc"), st.integers(0, 3)), max_size=60),
    st.floats(0, 100),
)
def test_somebody_can_always_be_asked_in_the_end(events: list[tuple[str, str, int]], now_s: float) -> None:
    """The last resort never lacks what it was not found to lack, and nobody is asked again for what it lacks."""
    senders = WeightSenders(["a", "b", "c", "last"])
    lacks = set()
    for kind, name, unit in events:
        if kind == "failure":
            senders.note_failure(name, now_s)
        else:
            lacks.add((name, unit))
            senders.note_lack(name, unit) if kind == "lack" else senders.note_wrong([name, "last"], unit)
        chosen = senders.choose(unit, now_s)
        assert chosen is not None
        assert (chosen, unit) not in lacks
        if chosen == "last":
            assert senders.pause_s(unit, now_s) == 0
