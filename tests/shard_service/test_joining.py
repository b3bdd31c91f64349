"""The way into the cluster, event by event."""

from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import DairllmError, NameTaken, PeerUnreachable, WrongCluster
from dairllm.shard_service.membership.joining import (
    LONGEST_PAUSE_S,
    Found,
    Join,
    JoinFailed,
    Joining,
    JoinRefused,
    LeaseLost,
    Pause,
    PauseOver,
    Seek,
    Started,
)

JITTERS = st.floats(0, 1, exclude_max=True)


def pause_after(joining: Joining, event: JoinFailed | JoinRefused | LeaseLost) -> Pause:
    action = joining.handle(event)
    assert isinstance(action, Pause)
    return action


def test_the_way_in_and_back() -> None:
    joining = Joining()
    assert joining.handle(Started()) == Seek()
    assert joining.handle(Found(("10.0.0.5:7117",))) == Join(("10.0.0.5:7117",))
    pause = pause_after(joining, LeaseLost(PeerUnreachable("gone"), 0.0))
    assert pause.delay_s == 0.2
    assert pause.tell is not None
    assert joining.handle(PauseOver()) == Seek()


@given(st.lists(JITTERS, min_size=1, max_size=40))
def test_failures_are_spaced_out_up_to_a_limit(jitters: list[float]) -> None:
    joining = Joining()
    for number, jitter in enumerate(jitters):
        full_s = min(LONGEST_PAUSE_S, 0.2 * 2**number)
        pause = pause_after(joining, JoinFailed(PeerUnreachable("gone"), jitter))
        assert full_s / 2 <= pause.delay_s <= full_s


def test_the_same_news_is_told_once() -> None:
    joining = Joining()
    told = [pause_after(joining, JoinFailed(PeerUnreachable("gone"), 0.0)).tell for _ in range(3)]
    assert [sentence is not None for sentence in told] == [True, False, False]
    assert pause_after(joining, JoinRefused(WrongCluster("other"), 0.0)).tell is not None
    assert pause_after(joining, JoinFailed(PeerUnreachable("gone"), 0.0)).tell is not None


def test_refusals_wait_by_what_they_say_and_longer_each_time() -> None:
    waits: dict[type[DairllmError], list[float]] = {NameTaken: [2, 4, 8, 16, 32, 60, 60], WrongCluster: [10, 20, 40, 60, 60]}
    for error, seconds in waits.items():
        joining = Joining()
        assert [pause_after(joining, JoinRefused(error("no"), 0.0)).delay_s for _ in seconds] == seconds


def test_being_a_member_forgets_earlier_failures() -> None:
    joining = Joining()
    for _ in range(10):
        joining.handle(JoinFailed(PeerUnreachable("gone"), 0.0))
    joining.handle(LeaseLost(PeerUnreachable("gone"), 0.0))
    assert pause_after(joining, JoinFailed(PeerUnreachable("gone"), 0.0)).delay_s == 0.2
