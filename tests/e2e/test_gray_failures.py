"""Shards that keep their leases and their edges, and do not do their part: the others answer within seconds, with equal tokens."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest

from dairllm.mesh.errors import DairllmError
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc, shard_pb2, shard_pb2_grpc
from tests.e2e.answers import PROMPTS, Answer, ask, ask_all, assert_no_fault
from tests.e2e.test_cut_cables import hosts
from tests.instruments.clusters import Cluster, elapsed, shards, wait_for
from tests.instruments.light_shards import LightFleet
from tests.instruments.namespaces import unavailable_reason as no_namespaces
from tests.instruments.processes import ManagedProcess
from tests.instruments.stopped_threads import code_of, stopped, threads_named, unavailable_reason
from tests.instruments.streamed_answers import StreamedAnswer

NUM_TOKENS = 300
TOKENS_BEFORE = 20
GOES_ON_WITHIN_S = 20.0
"""Measured: 3 to 5 s."""
PROVES_WITHIN_S = 40.0
MOST_STOPS = 10_000
A_MOMENT_S = 1.0
pytestmark = pytest.mark.slow
needs_ptrace = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def events(cluster: Cluster, kind: str) -> list[str]:
    return [event["text"] for event in cluster.state()["events"] if event["kind"] == kind]


def shard_at(cluster: Cluster, stage: int) -> str:
    return str(next(shard["name"] for shard in cluster.state()["shards"] if shard["stage"] == stage))


def has_proved(cluster: Cluster, name: str) -> bool:
    return events(cluster, "proved")[-1:] == [f"shard {name} has proved that it computes, and may be used again"]


def phase_of(state: dict[str, Any], name: str) -> str:
    return str(next(shard["phase"] for shard in state["shards"] if shard["name"] == name))


def stop_computing(fault: contextlib.ExitStack, process: ManagedProcess) -> None:
    """Until `fault` is over, amid its computing: as a thread hangs that touches memory which does not come, or a processor that is broken.

    Anywhere else it may hold the interpreter's lock, or stand in the queue for it, and all other threads come to stand behind it.
    """
    kernels = code_of(process.pid, "_kernels.")
    assert kernels
    with grpc.insecure_channel(process.wait_ready()["grpc"]) as channel:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        for _ in range(MOST_STOPS):
            with contextlib.ExitStack() as attempt:
                threads = attempt.enter_context(stopped(threads_named(process.pid, "compute")))
                if not any(counter in code for counter in threads.program_counters for code in kernels):
                    continue
                with contextlib.suppress(grpc.RpcError):
                    stub.GetStats(shard_pb2.GetStatsRequest(), timeout=0.5)
                    fault.push(attempt.pop_all())
                    return
    raise AssertionError(f"its thread was never met computing: {process.name}")


def cordon(cluster: Cluster, name: str) -> None:
    """It becomes a last resort."""
    with grpc.insecure_channel(cluster.grpc) as channel:
        request = cluster_pb2.CordonShardRequest(name=name, cordoned=True)
        cluster_pb2_grpc.ClusterServiceStub(channel).CordonShard(request, timeout=GOES_ON_WITHIN_S)


def stream_through(cluster: Cluster, expected: list[Answer], disturb: Callable[[], Any]) -> float:
    """Streams that are disturbed, and end as if nothing had happened, while the fault lasts. Returns their longest silence after it."""
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(StreamedAnswer(cluster.http, prompt, NUM_TOKENS)) for prompt in PROMPTS]
        for stream in streams:
            stream.wait_tokens(TOKENS_BEFORE)
        disturb()
        before = [len(stream.tokens) for stream in streams]
        assert [Answer.of_stream(stream) for stream in streams] == expected
        arrivals = [
            [token.arrived_s for token in stream.tokens[max(0, number - 1) :]] for stream, number in zip(streams, before, strict=True)
        ]
        return max(later - earlier for times in arrivals for earlier, later in pairwise(times))


@needs_ptrace
def test_a_shard_whose_thread_stops_is_set_aside_and_used_again_after_its_proof(tiny_model: Path) -> None:
    """A ring of three and one to spare; each place once."""
    with Cluster(tiny_model, shards(4), min_shards=3) as cluster:
        expected = ask_all(cluster, NUM_TOKENS)
        for stage in (1, 0, 2):
            name = shard_at(cluster, stage)
            with contextlib.ExitStack() as fault:
                process = cluster.processes[name]
                silence_s = stream_through(cluster, expected, partial(stop_computing, fault, process))
                print(f"the thread of stage {stage} of 3 stopped: the streams went on after {silence_s:.2f} s")
                assert silence_s < GOES_ON_WITHIN_S
                state = cluster.state()
                assert phase_of(state, name) == "failed"
                assert (state["phase"], state["can_answer"]) == ("serving", True)
                assert events(cluster, "set_aside")[-1].startswith(f"shard {name} lives, but has computed nothing for ")
            wait_for(partial(has_proved, cluster, name), "a proof", PROVES_WITHIN_S)
            assert phase_of(cluster.wait_serving(), name) != "failed"
        assert len(events(cluster, "set_aside")) == 3
        assert_no_fault(*cluster.processes.values())


async def test_a_shard_that_takes_frames_and_never_sends_one_holds_up_nobody_for_long(tiny_model: Path) -> None:
    """Nobody wants the others to be used, so it is planned for. It has the weights at once."""

    def make_others_last_resorts(cluster: Cluster, joined: Future[None]) -> None:
        joined.result(GOES_ON_WITHIN_S)
        for name in ("a", "b"):
            cordon(cluster, name)

    with Cluster(tiny_model, shards(2), min_shards=1) as cluster:
        expected = await asyncio.to_thread(ask_all, cluster, NUM_TOKENS)
        joined: Future[None] = Future()
        streaming = asyncio.to_thread(stream_through, cluster, expected, partial(make_others_last_resorts, cluster, joined))
        task = asyncio.create_task(streaming)
        async with LightFleet(cluster.grpc, cluster.name, 1, room_bytes=1 << 28, deaf=True) as fleet:
            await fleet.joined(GOES_ON_WITHIN_S)
            joined.set_result(None)
            silence_s = await task
            print(f"a plan gave all layers to a shard that keeps every frame: the streams went on after {silence_s:.2f} s")
            assert (fleet.shards[0].activations, silence_s < GOES_ON_WITHIN_S) == (1, True)
            state = await asyncio.to_thread(cluster.wait_serving, GOES_ON_WITHIN_S)
            assert phase_of(state, "light-0000") == "failed"
            note = next(shard["note"] for shard in state["shards"] if shard["name"] == "light-0000")
            assert note.startswith(
                "set aside until it proves that it computes: it lives, but has said nothing of the frames that it was sent"
            )
        assert_no_fault(*cluster.processes.values())


@needs_ptrace
def test_a_shard_that_is_alone_and_stops_is_told_of_wherever_one_looks(tiny_model: Path) -> None:
    with Cluster(tiny_model, shards(1), arguments=("--recovery-limit", "5")) as cluster:
        expected = ask(cluster)
        with contextlib.ExitStack() as fault:
            stream = fault.enter_context(StreamedAnswer(cluster.http, PROMPTS[0], NUM_TOKENS))
            stream.wait_tokens(1)
            stop_computing(fault, cluster.processes["a"])
            wait_for(lambda: cluster.client.get("/readyz").status_code == 503, "/readyz to tell", GOES_ON_WITHIN_S)
            stream.wait_over()
            refused = cluster.client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})
            state = cluster.state()
            cause = "a failed: set aside until it proves that it computes: it lives, but has computed nothing for "
            assert refused.status_code == 503
            for told in (
                str(stream.error),
                refused.text,
                cluster.client.get("/readyz").text,
                state["reason"],
                state["engine"]["ready_reason"],
            ):
                assert cause in told
            assert not state["can_answer"]
        cluster.wait_until(lambda state: bool(state["can_answer"]), PROVES_WITHIN_S)
        assert cluster.client.get("/readyz").status_code == 200
        assert ask(cluster) == expected


@needs_ptrace
def test_a_shard_whose_disk_hangs_while_it_loads_is_done_without(tiny_model: Path) -> None:
    """What hangs are its threads that load. It is the only one that people want to be used."""
    with Cluster(tiny_model, shards(3), min_shards=2) as cluster:
        expected = ask(cluster)
        cluster.wait_until(lambda state: len(state["shards"]) == 3)
        lost, hanging = shard_at(cluster, 0), shard_at(cluster, 1)
        (idle,) = {"a", "b", "c"} - {lost, hanging}
        cordon(cluster, idle)
        with stopped(threads_named(cluster.processes[hanging].pid, "loader")), elapsed() as passed_s:
            cluster.processes[lost].kill()
            assert ask(cluster) == expected
            print(f"the threads that load stopped: an answer came {passed_s():.2f} s after the loss")
            assert phase_of(cluster.state(), hanging) == "failed"
            assert events(cluster, "set_aside")[-1].startswith(f"shard {hanging} lives, but has loaded nothing for 10.")
        wait_for(partial(has_proved, cluster, hanging), "a proof", PROVES_WITHIN_S)
        assert_no_fault(*cluster.processes.values())


@needs_ptrace
def test_a_shard_that_stands_still_for_a_moment_is_nobodys_fault(tiny_model: Path) -> None:
    """Its thread alone, and all of it."""
    with Cluster(tiny_model, shards(2), min_shards=2) as cluster:
        expected = ask_all(cluster, NUM_TOKENS)
        epoch = cluster.state()["epoch"]

        def stand_still() -> None:
            for name in ("a", "b"):
                with contextlib.ExitStack() as fault:
                    stop_computing(fault, cluster.processes[name])
                    time.sleep(A_MOMENT_S)
                cluster.processes[name].pause()
                time.sleep(A_MOMENT_S)
                cluster.processes[name].resume()

        stream_through(cluster, expected, stand_still)
        assert (events(cluster, "set_aside"), cluster.state()["epoch"]) == ([], epoch)


def assert_told_everywhere(cluster: Cluster, cause: str) -> None:
    wait_for(lambda: cluster.client.get("/readyz").status_code == 503, "/readyz to tell", GOES_ON_WITHIN_S)
    ready, answer = cluster.client.get("/readyz"), cluster.client.post("/v1/completions", json={"prompt": [1], "max_tokens": 1})
    status = subprocess.run(
        [sys.executable, "-m", "dairllm.client.cli", "status", "--coordinator", cluster.grpc], capture_output=True, text=True, check=True
    )
    assert answer.status_code == 503
    state = cluster.state()
    assert not state["can_answer"]
    for told in (ready.text, answer.text, state["reason"], state["engine"]["ready_reason"], " ".join(status.stdout.split())):
        assert cause in told


def test_layers_without_a_source_are_told_of_wherever_one_looks(tiny_model: Path, tmp_path: Path) -> None:
    """The file is gone when its layers have to be loaded again."""
    model = Path(shutil.copy(tiny_model, tmp_path / "model.gguf"))
    with Cluster(model, shards(2), min_shards=1) as cluster:
        expected = ask(cluster)
        cluster.wait_until(lambda state: len(state["shards"]) == 2)
        model.rename(tmp_path / "elsewhere")
        used = shard_at(cluster, 0)
        cluster.processes[used].kill()
        assert_told_everywhere(cluster, f"shard {'b' if used == 'a' else 'a'} gets no weights now: ")
        (tmp_path / "elsewhere").rename(model)
        cluster.wait_serving()
        assert cluster.client.get("/readyz").status_code == 200
        assert ask(cluster) == expected


@pytest.mark.namespaces
@pytest.mark.skipif(no_namespaces() is not None, reason=str(no_namespaces()))
def test_a_ring_that_does_not_open_is_told_of_wherever_one_looks(tiny_model: Path) -> None:
    """Both shards reach the coordinator, and neither the other."""
    with hosts(tiny_model, 2, 2) as (cluster, network):
        expected = ask(cluster)
        network.cut_between("a", "b")
        with contextlib.suppress(DairllmError), StreamedAnswer(cluster.http, PROMPTS[0], 1) as stream:
            assert_told_everywhere(cluster, "the connection from ")
            network.mend_between("a", "b")
            stream.wait_over()
        cluster.wait_serving()
        assert ask(cluster) == expected
