"""What is told of the thread that computes, and proofs that it does."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from dairllm.kernels_pyx import get_num_threads, set_num_threads
from dairllm.mesh.proof import proof_of
from dairllm.shard_service.epochs import proving
from dairllm.shard_service.epochs.compute_thread import ComputeThread
from dairllm.shard_service.epochs.preparer import make_loader_threads
from dairllm.shard_service.epochs.proving import prove
from dairllm.v1 import cluster_pb2

WAIT_S = 10.0


def test_work_that_hangs_is_told_apart_from_work_that_goes_on() -> None:
    release, spins = threading.Event(), threading.Event()

    def spin() -> None:
        while not spins.is_set():
            pass

    with ComputeThread() as thread:
        assert (thread.given, thread.done) == (0, 0)
        hanging = thread.submit(release.wait, WAIT_S)
        assert (thread.given, thread.done) == (1, 0)
        before_us = thread.cpu_us
        time.sleep(0.1)
        assert thread.cpu_us - before_us < 50_000
        release.set()
        assert hanging.result(WAIT_S)
        spinning = thread.submit(spin)
        before_us = thread.cpu_us
        deadline_s = time.monotonic() + WAIT_S
        while thread.cpu_us - before_us < 20_000 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert thread.cpu_us - before_us >= 20_000
        waiting = thread.submit(spin)
        waiting.cancel()
        with pytest.raises(CancelledError):
            waiting.result(WAIT_S)
        spins.set()
        spinning.result(WAIT_S)
        assert thread.submit(lambda: 1).result(WAIT_S) == 1
    assert (thread.given, thread.done) == (4, 4)


def test_a_proof_is_the_same_for_any_number_of_threads_and_another_for_each_challenge() -> None:
    before = get_num_threads()
    try:
        found = []
        for number in (1, 3):
            set_num_threads(number)
            found.append(proof_of(b"challenge"))
    finally:
        set_num_threads(before)
    assert found[0] == found[1]
    assert found[0].hex() == "4f23a58273114bbcbbdb68b6a9567d5a335dfb0bf65470433197b608a3915573"
    assert proof_of(b"challengf") != found[0]


async def test_a_shard_gives_a_proof_only_when_every_thread_that_loads_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_LOADERS_MEET_S", 0.2)
    release = threading.Event()
    given: list[tuple[int, bytes]] = []

    def tell(number: int, digest: bytes) -> None:
        given.append((number, digest))

    with ComputeThread() as thread, make_loader_threads() as loaders:
        hanging = loaders.submit(release.wait, WAIT_S)
        await prove(cluster_pb2.Prove(number=1, challenge=b"a"), thread, loaders, tell)
        assert given == []
        release.set()
        await asyncio.wrap_future(hanging)
        await prove(cluster_pb2.Prove(number=2, challenge=b"b"), thread, loaders, tell)
    assert given == [(2, proof_of(b"b"))]
