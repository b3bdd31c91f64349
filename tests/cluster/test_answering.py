"""Whether the cluster says that it answers, and why not: the same word for all who ask."""

from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.cluster.shard_reports import LoadProgress
from tests.cluster.scenario import Scenario


def started(*lines: str) -> Scenario:
    run = Scenario()
    for line in ("config recovery_limit_s=20", "model layers=4 layer=1GiB", "join A memory=3GiB", "join B memory=3GiB", *lines):
        run.run(line)
    return run


def serving() -> Scenario:
    return started("join C memory=3GiB", "tick 0.5s", "work")


def why_no_answers(run: Scenario) -> str:
    """Everybody is told the same."""
    machine, now_s = run.cluster.machine, run.cluster.now_s
    reason = machine.why_no_answers(now_s)
    assert machine.snapshot(now_s).can_answer is (reason == "")
    assert reason in ("", machine.reason)
    return reason


def test_before_the_first_ring_it_does_not_answer() -> None:
    run = started()
    assert why_no_answers(run) == "shards are joining"
    run.run("tick 0.5s")
    assert why_no_answers(run) == "the shards load their layers"
    run.run("failed A 'no source has unit 1' retryable")
    assert why_no_answers(run) == "the shards load their layers; shard A could not load its part: no source has unit 1"
    run.run("tick 1s")
    run.run("loaded")
    run.run("activated A B")
    assert why_no_answers(run).startswith("the ring is being opened; shard A could not load")
    run.run("opened")
    assert why_no_answers(run) == ""


def test_a_recovery_that_goes_on_is_waited_for() -> None:
    run = serving()
    run.run("lost B")
    assert run.cluster.machine.phase is Phase.LOADING
    run.run("tick 19s")
    assert why_no_answers(run) == ""
    run.run("tick 2s")
    assert why_no_answers(run) == "the shards load their layers"
    run.run("work")
    assert why_no_answers(run) == ""


def test_layers_without_a_source_are_told_of_after_a_moment() -> None:
    run = serving()
    run.run("lost B")
    run.run("failed C 'no source has unit 3' retryable")
    run.run("tick 4.5s")
    assert why_no_answers(run) == ""
    run.run("tick 1s")
    assert why_no_answers(run) == "the shards load their layers; shard C could not load its part: no source has unit 3"
    run.run("work")
    assert why_no_answers(run) == ""


def test_a_ring_that_never_opens_is_told_of_in_all_phases_between_its_attempts() -> None:
    run = serving()
    cluster, seen = run.cluster, set()
    run.run("broken 'the edge broke'")
    while cluster.now_s < 20:
        run.run("tick 0.25s")
        if cluster.machine.phase is Phase.LOADING:
            run.run("loaded")
        elif cluster.machine.phase is Phase.ACTIVATING:
            run.run(f"activated {' '.join(sorted(cluster.activating))}")
        elif cluster.machine.phase is Phase.OPENING:
            run.run("edge A B")
        if cluster.now_s > 7:
            assert "the connection from A to B broke: stream reset" in why_no_answers(run)
            seen.add(cluster.machine.phase)
    assert seen >= {Phase.ACTIVATING, Phase.OPENING, Phase.RETRYING}


def test_who_stands_still_alone_is_the_reason() -> None:
    run = started("tick 0.5s", "work", "asked", "hang B", "tick 4s")
    assert "B failed: set aside until it proves that it computes: it lives, but has computed nothing" in why_no_answers(run)


def test_a_source_that_gives_nothing_is_told_of_until_something_comes() -> None:
    run = serving()
    cluster = run.cluster
    run.run("lost B")

    def progress(loaded: int, trouble: str) -> None:
        epoch = cluster.machine.epoch
        cluster.happen(on.LoadProgressed("C", cluster.boot_of("C"), epoch, LoadProgress(loaded, 100, trouble=trouble)))

    progress(10, "the model file is gone")
    run.run("tick 6s")
    assert why_no_answers(run) == "the shards load their layers; shard C gets no weights now: the model file is gone"
    progress(20, "")
    assert why_no_answers(run) == ""
    run.run("work")
    assert why_no_answers(run) == ""
