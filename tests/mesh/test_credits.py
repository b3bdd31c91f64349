"""Credits that go back several at once: nobody gets more than was granted, and nobody waits for ever."""

import hypothesis.strategies as st
from hypothesis import given

from dairllm.mesh.ring.credits import OwedCredits


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=300))
def test_a_sender_has_at_most_what_was_granted_and_never_runs_dry(granted: int, sends: list[bool]) -> None:
    """sends: whether the sender sends next, if it can, or else a frame that waits is taken."""
    owed, credits, waiting = OwedCredits(granted), granted, 0
    for is_sent in sends:
        if is_sent and credits:
            credits, waiting = credits - 1, waiting + 1
        elif waiting:
            waiting -= 1
            owed.owe()
            if owed.is_due:
                credits += owed.pay()
        assert credits + waiting <= granted
        assert waiting or credits > granted // 2 - 1


def test_of_few_each_goes_back_at_once() -> None:
    owed = OwedCredits(1)
    owed.owe()
    assert owed.is_due
    assert owed.pay() == 1
    assert not owed.is_due
