"""Shards and coordinators that die, leave, freeze or are cut off while answers flow: no client sees a wrong, doubled or missing token."""

import contextlib
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.answers import PROMPTS, Answer, ask, ask_all, assert_no_fault, assert_sound
from tests.instruments.clusters import REQUEST_TIMEOUT_S, Cluster, elapsed, shards
from tests.instruments.golden import TINY
from tests.instruments.processes import ManagedProcess, free_port
from tests.instruments.streamed_answers import StreamedAnswer, completion_body

NUM_TOKENS = 200
TOKENS_BEFORE = 20
HEALED_WITHIN_S = 20.0
LONGER_THAN_A_LEASE_S = 6.5
NUM_ASKING = 8
THAW_S = 1.0
LEFT_WITHIN_S = 10.0
"""Far less than the 60 s for which a shard waits to be released."""


def shard_at_stage(cluster: Cluster, stage: int) -> str:
    return str(next(shard["name"] for shard in cluster.state()["shards"] if shard["stage"] == stage))


def names_in_plan(state: dict[str, Any]) -> list[str]:
    """In the order of the ring."""
    by_stage = {shard["stage"]: str(shard["name"]) for shard in state["shards"] if shard["stage"] is not None}
    return [by_stage[stage] for stage in sorted(by_stage)]


def lose_stage(cluster: Cluster, stage: int, how: signal.Signals, lost: list[ManagedProcess]) -> None:
    """Signal the shard that has this place in the ring now: one that has just joined may have changed the plan. It goes to `lost`."""
    lost.append(cluster.processes[shard_at_stage(cluster, stage)])
    lost[0].send(how)


def disturb_streams(cluster: Cluster, disturb: Callable[[], Any], until: Callable[[dict[str, Any]], bool] | None = None) -> float:
    """Four streams, disturbed when all of them have begun; each must end as if nothing had happened. Returns how long the cluster took
    to serve again, `until` being true (None: with a new plan)."""
    expected = ask_all(cluster, NUM_TOKENS)
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_tokens(TOKENS_BEFORE)
        assert not any(stream.is_over for stream in streams)
        epoch = cluster.state()["epoch"]
        with elapsed() as passed_s:
            disturb()
            healed = until or (lambda state: state["epoch"] > epoch)
            cluster.wait_until(lambda state: healed(state) and state["phase"] == "serving", HEALED_WITHIN_S)
            healed_s = passed_s()
        assert [Answer.of_stream(stream) for stream in streams] == expected
    return healed_s


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", ["tiny_model", "hybrid_model"])
def test_lost_shards_are_replaced_and_no_stream_notices(model: str, request: pytest.FixtureRequest) -> None:
    """Rings of three with one shard to spare: each place is lost once by SIGKILL, and one by SIGTERM."""
    with Cluster(request.getfixturevalue(model), shards(4), min_shards=3) as cluster:
        for stage, how in ((0, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGTERM)):
            lost: list[ManagedProcess] = []
            healed_s = disturb_streams(cluster, partial(lose_stage, cluster, stage, how, lost))
            print(f"stage {stage} of 3, {how.name}: served again after {healed_s:.2f} s")
            assert lost[0].wait(10.0) == (0 if how is signal.SIGTERM else -how)
            lost[0].start()
            cluster.wait_until(lambda state: len(state["shards"]) == 4 and state["phase"] == "serving", HEALED_WITHIN_S)
        assert "could not take over the cache" not in cluster.processes["coordinator"].output(), "of the shard that left politely"
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_what_rows_carry_is_there_again_when_a_shard_is_lost() -> None:
    """Per-layer inputs and the keys that layers share, of Gemma 4: the middle of three is replaced, between the keys and those who look."""
    prompt, num_tokens = PROMPTS[-1], 80
    with Cluster(TINY / "gemma4", shards(4), min_shards=3) as cluster:
        expected = ask(cluster, prompt, num_tokens)
        with StreamedAnswer(cluster.http, prompt, num_tokens) as stream:
            stream.wait_tokens(TOKENS_BEFORE)
            lose_stage(cluster, 1, signal.SIGKILL, [])
            assert Answer.of_stream(stream) == expected
        assert ask(cluster, prompt, num_tokens) == expected
        assert_no_fault(*(process for process in cluster.processes.values() if process.running))


@pytest.mark.slow
def test_a_frozen_shard_is_replaced_and_is_a_member_again_when_it_thaws(tiny_model: Path) -> None:
    with Cluster(tiny_model, shards(3), min_shards=2) as cluster:
        expected = ask(cluster)
        frozen: list[ManagedProcess] = []
        try:
            healed_s = disturb_streams(cluster, partial(lose_stage, cluster, 1, signal.SIGSTOP, frozen))
            print(f"SIGSTOP: served again after {healed_s:.2f} s")
            cluster.wait_until(lambda state: len(state["shards"]) == 2, HEALED_WITHIN_S)
        finally:
            for process in frozen:
                process.resume()
        cluster.wait_until(lambda state: len(state["shards"]) == 3, HEALED_WITHIN_S)
        assert_sound(cluster, expected)


def ask_anew(cluster: Cluster) -> Answer:
    """On a connection of its own: one that was idle for longer than a server keeps it may be closed at any moment."""
    response = httpx.post(
        f"{cluster.http}/v1/completions", json=completion_body(PROMPTS[0], 16), timeout=REQUEST_TIMEOUT_S, trust_env=False
    )
    assert response.status_code == 200, response.text
    return Answer.of(iter(response.json()["choices"]))


@pytest.mark.slow
def test_a_coordinator_that_thaws_refuses_nobody(tiny_model: Path) -> None:
    """It finds all leases broken, and its shards are back in moments. Requests come while it is frozen and all along the thaw."""
    with Cluster(tiny_model, shards(2)) as cluster, ThreadPoolExecutor(NUM_ASKING) as pool:
        expected = ask(cluster)
        coordinator = cluster.processes["coordinator"]
        coordinator.pause()
        try:
            asked = [pool.submit(ask_anew, cluster) for _ in range(NUM_ASKING // 2)]
            time.sleep(LONGER_THAN_A_LEASE_S)
        finally:
            coordinator.resume()
        end_s = time.monotonic() + THAW_S
        while time.monotonic() < end_s:
            asked += [pool.submit(ask_anew, cluster) for _ in range(NUM_ASKING // 2)]
            wait([asked[-1]])
        assert {one.result() for one in asked} == {expected}
        print(f"{len(asked)} requests; plan {cluster.state()['epoch']}")
        assert_sound(cluster, expected)


@pytest.mark.slow
def test_without_a_replacement_the_streams_wait_for_one(tiny_model: Path) -> None:
    members = shards(3)
    with Cluster(tiny_model, members[:2]) as cluster:

        def kill_and_replace() -> None:
            for name in "ab":
                cluster.processes[name].kill()
            cluster.wait_until(lambda state: state["phase"] == "waiting" and not state["shards"])
            cluster.start_shard(members[2])

        disturb_streams(cluster, kill_and_replace)
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_a_shard_that_nobody_can_replace_leaves_when_no_answer_needs_it(tiny_model: Path) -> None:
    with Cluster(tiny_model, shards(1)) as cluster:
        expected = ask(cluster, PROMPTS[0], NUM_TOKENS)
        shard = cluster.processes["a"]
        shard.send(signal.SIGTERM)
        assert shard.wait(LEFT_WITHIN_S) == 0
        state = cluster.wait_until(lambda state: not state["shards"])
        assert state["phase"] == "waiting"
        assert "retry" not in {event["kind"] for event in state["events"]}
        shard.start()
        cluster.wait_serving(HEALED_WITHIN_S)
        with StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS) as stream:
            stream.wait_tokens(TOKENS_BEFORE)
            assert not stream.is_over
            shard.send(signal.SIGTERM)
            assert Answer.of_stream(stream) == expected
        assert shard.wait(LEFT_WITHIN_S) == 0
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_a_restarted_shard_takes_its_name_again(tiny_model: Path) -> None:
    with Cluster(tiny_model, shards(2)) as cluster:

        def restart() -> None:
            cluster.processes["b"].kill()
            cluster.processes["b"].start()

        disturb_streams(cluster, restart)
        cluster.wait_until(lambda state: {shard["name"] for shard in state["shards"]} == {"a", "b"})
        assert_no_fault(*cluster.processes.values())


@pytest.mark.slow
def test_shards_join_a_restarted_coordinator_by_themselves(tiny_model: Path) -> None:
    ports = ("--grpc-port", str(free_port()), "--http-port", str(free_port()))
    with Cluster(tiny_model, shards(2), arguments=ports) as cluster:
        expected = ask(cluster)
        coordinator = cluster.processes["coordinator"]
        for number, how in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
            coordinator.send(how)
            assert coordinator.wait(15.0) == (0 if how is signal.SIGTERM else -how)
            with elapsed() as passed_s:
                coordinator.start()
                coordinator.wait_ready()
                listening_s = passed_s()
                assert_sound(cluster, expected)
                print(f"coordinator, {how.name}: it listened after {listening_s:.2f} s and served after {passed_s():.2f} s")
            for name in ("a", "b"):
                assert cluster.processes[name].output().count("joined the cluster") == 1 + number
