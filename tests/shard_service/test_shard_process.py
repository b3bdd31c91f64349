"""A real dairllm-shard process on loopback, against a coordinator that does what the test says."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

import gguf
import grpc.aio
import numpy as np
import pytest

from dairllm.kernels_pyx import WIRE_ENCODINGS
from dairllm.mesh.arithmetic import ARITHMETIC_FEATURE
from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.encodings import parse_encoding
from dairllm.mesh.errors import DairllmError, InvalidRequest, InvitationDeclined, NameTaken, WrongCluster, WrongEpoch
from dairllm.mesh.protocol import PROTOCOL_MAJOR
from dairllm.mesh.shard_names import default_shard_name
from dairllm.v1 import cluster_pb2, ring_pb2, shard_pb2, shard_pb2_grpc, weights_pb2, weights_pb2_grpc
from tests.instruments.processes import ManagedProcess
from tests.shard_service.fake_coordinator import CLUSTER, FakeCoordinator, Frames, JoinedShard, RingEdge, greedy_tokens, soon
from tests.shard_service.shard_processes import joined, process_of, shard_process
from tests.shard_service.whole_model import WholeModel
from tests.tiny_gguf import write_tiny_llama

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]


def expected_tokens(coordinator: FakeCoordinator, count: int) -> list[int]:
    """Greedy tokens after PROMPT by the kernels alone, without a shard."""
    return WholeModel(coordinator).greedy(PROMPT, count)


async def test_serves_a_whole_model_and_leaves_politely(coordinator: FakeCoordinator) -> None:
    with shard_process(coordinator) as process:
        shard = await coordinator.next_shard()
        facts = process.wait_ready()
        assert (facts["name"], facts["boot_id"]) == ("s", shard.hello.boot_id)
        assert facts["grpc"].rpartition(":")[2] == shard.address.rpartition(":")[2]
        capabilities = shard.hello.capabilities
        assert capabilities.memory_budget_bytes == 512 * 1024**2
        assert 0 < capabilities.decode_s_per_byte < 1e-6
        assert {"attention:full", "activation:silu", ARITHMETIC_FEATURE} <= set(capabilities.features)
        ready = await shard.assign(coordinator.assignment(epoch=7))
        assert ready.epoch == 7
        assert ready.kv_cache_bytes > 0
        assert shard.progress[-1].loaded_bytes == shard.progress[-1].total_bytes == shard.progress[-1].from_disk_bytes
        opening = await soon(coordinator.return_edges.get())
        assert (opening.epoch, opening.sender, opening.receiver) == (7, "s", "coordinator")
        async with await RingEdge.open(shard, epoch=7) as edge:
            tokens = await greedy_tokens(edge, coordinator, Frames(7), PROMPT, 12)
        assert tokens == expected_tokens(coordinator, 12)
        shard.beat.clear()
        await soon(shard.beat.wait())
        usage = shard.heartbeats[-1].usage
        assert (usage.frames, usage.rows) == (12, len(PROMPT) + 11)
        assert usage.weights_bytes == ready.weights_bytes
        assert usage.compute_us > 0
        process.send(signal.SIGTERM)
        assert (await shard.next_message("leaving")).drain
        assert not (await shard.next_message("leaving")).drain
        assert await asyncio.to_thread(process.wait) == 0
        assert not process.ready_file.exists()


async def test_a_name_that_nobody_chose_gives_way(coordinator: FakeCoordinator) -> None:
    first = default_shard_name()
    coordinator.refusal = lambda hello: NameTaken(f"the name {first!r} is taken") if hello.name == first else None
    flags = ["--coordinator", coordinator.address, "--cluster", CLUSTER, "--host", "127.0.0.1", "--threads", "1", "--memory", "512MiB"]
    with ManagedProcess([sys.executable, "-m", "dairllm.shard_service.main", *flags]) as process:
        try:
            shard = await asyncio.wait_for(coordinator.next_shard(), 60)
            assert shard.hello.name == f"{first}-2"
        finally:
            await asyncio.to_thread(process.close)


async def test_an_idle_shard_says_every_second_that_it_lives(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=1))
        async with await RingEdge.open(shard, epoch=1) as edge, asyncio.timeout(5):
            assert [(await edge.call.read()).WhichOneof("message") for _ in range(2)] == ["heartbeat"] * 2


async def test_a_shard_that_was_frozen_blames_nobody_for_it(coordinator: FakeCoordinator) -> None:
    """For four times as long as it listens to a silent edge."""
    coordinator.ring_heartbeat_s = 0.1
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=1))
        async with await RingEdge.open(shard, epoch=1) as edge:
            frames = Frames(1)
            tokens = await greedy_tokens(edge, coordinator, frames, PROMPT, 4)
            process_of(shard).pause()
            await asyncio.sleep(2.0)
            process_of(shard).resume()
            await asyncio.sleep(1.0)
            assert shard.said.empty()
            assert coordinator.return_edges.qsize() == 1
            tokens += await greedy_tokens(edge, coordinator, frames, tokens[-1:], 4)
        assert tokens == expected_tokens(coordinator, 8)


async def test_two_stages_pass_activations_on(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator, name="a") as a, joined(coordinator, name="b") as b:
        to_b = cluster_pb2.Peer(name="b", addresses=["127.0.0.1:9", b.address])
        await a.assign(coordinator.assignment(epoch=1, units=range(0, 2), next_member=to_b))
        await b.assign(coordinator.assignment(epoch=1, units=range(2, 5)))
        async with await RingEdge.open(a, epoch=1) as edge:
            tokens = await greedy_tokens(edge, coordinator, Frames(1), PROMPT, 8)
            await edge.send(Frames(1, sequence_id=2).next(PROMPT))
            passed = await soon(coordinator.results.get())
        assert tokens == expected_tokens(coordinator, 8)
        assert [timing.shard for timing in passed.timings] == ["a", "b"]
        encoded_row_bytes = 32 + 2 * 34
        assert [timing.received_bytes for timing in passed.timings] == [0, len(PROMPT) * encoded_row_bytes]


@pytest.mark.parametrize("wire", WIRE_ENCODINGS)
async def test_rounding_inside_a_shard_equals_rounding_on_the_wire(coordinator: FakeCoordinator, wire: str) -> None:
    """Every boundary is rounded, also that before the head, whether it lies within a shard or between two."""
    encoding = parse_encoding(wire)

    async def logprobs(first: JoinedShard, epoch: int) -> list[float]:
        async with await RingEdge.open(first, epoch=epoch) as edge:
            frame = Frames(epoch).next(PROMPT, sample=False, score_targets=PROMPT)
            frame.encoding = encoding
            await edge.send(frame)
            result = await soon(coordinator.results.get())
            return [score.logprob for score in result.results[0].scores]

    async with joined(coordinator, name="a") as a, joined(coordinator, name="b") as b, joined(coordinator, name="c") as c:
        await a.assign(coordinator.assignment(epoch=1, wire=encoding))
        within = await logprobs(a, 1)
        await a.assign(coordinator.assignment(2, range(0, 2), next_member=cluster_pb2.Peer(name="b", addresses=[b.address]), wire=encoding))
        await b.assign(coordinator.assignment(2, range(2, 4), next_member=cluster_pb2.Peer(name="c", addresses=[c.address]), wire=encoding))
        await c.assign(coordinator.assignment(2, range(4, 5), wire=encoding))
        assert await logprobs(a, 2) == within


async def test_frames_that_do_not_fit_are_refused_and_change_nothing(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=3))
        async with await RingEdge.open(shard, epoch=3) as edge:
            good = Frames(3)
            await edge.send(good.next(PROMPT))
            first = (await soon(coordinator.results.get())).results[0].sampled[0].token_id
            wrong_epoch = Frames(2, sequence_id=5).next(PROMPT)
            unknown = Frames(3, sequence_id=6).next(PROMPT)
            del unknown.begins[:]
            with_activations = Frames(3, sequence_id=7).next(PROMPT, activations=b"1234")
            other_encoding = Frames(3, sequence_id=9).next(PROMPT)
            other_encoding.encoding = parse_encoding("F16")
            for frame, status, text in [
                (wrong_epoch, ring_pb2.FRAME_STATUS_WRONG_EPOCH, "epoch"),
                (unknown, ring_pb2.FRAME_STATUS_MALFORMED, "sequence 6 has not begun"),
                (with_activations, ring_pb2.FRAME_STATUS_MALFORMED, "token ids only"),
                (other_encoding, ring_pb2.FRAME_STATUS_MALFORMED, "encoded in F16; expected Q8_0_OUTLIERS"),
            ]:
                await edge.send(frame)
                refusal = await edge.next_refusal()
                assert refusal.status == status
                assert text in refusal.message
            await edge.send(good.next([first]))
            second = (await soon(coordinator.results.get())).results[0].sampled[0].token_id
        assert [first, second] == expected_tokens(coordinator, 2)


async def test_edges_of_strangers_are_refused(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=3))
        for epoch, receiver, cluster, expected in (
            (2, None, CLUSTER, WrongEpoch),
            (3, "other", CLUSTER, WrongEpoch),
            (3, None, "other", WrongCluster),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await RingEdge.open(shard, epoch, receiver, cluster)
            assert type(error_from_rpc(raised.value)) is expected


async def test_a_second_stream_replaces_the_first(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=3))
        frames = Frames(3)
        async with await RingEdge.open(shard, epoch=3) as first:
            tokens = await greedy_tokens(first, coordinator, frames, PROMPT, 1)
            async with await RingEdge.open(shard, epoch=3) as second:
                assert await first.status() is grpc.StatusCode.UNAVAILABLE
                tokens += await greedy_tokens(second, coordinator, frames, tokens, 1)
        assert tokens == expected_tokens(coordinator, 2)


async def test_more_frames_than_credits_end_the_stream(coordinator: FakeCoordinator) -> None:
    coordinator.return_credits = 0  # so nothing flows off
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=3))
        async with await RingEdge.open(shard, epoch=3) as edge:
            frames = Frames(3)
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the stream ends while frames are sent
                for _ in range(64):
                    await edge.send(frames.next([1]))
            # gRPC tells a client INTERNAL if the end came while it was writing.
            assert await edge.status() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)


async def test_strangers_on_the_port_do_no_harm(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=3))
        host, _, port = shard.address.rpartition(":")
        for data in (b"", os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(512)):
            with socket.create_connection((host, int(port))) as connection, contextlib.suppress(OSError):
                connection.sendall(data)
        async with await RingEdge.open(shard, epoch=3) as edge:
            assert await greedy_tokens(edge, coordinator, Frames(3), PROMPT, 2) == expected_tokens(coordinator, 2)


async def test_joins_again_after_the_coordinator_was_gone_and_keeps_its_weights(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=1))
        await coordinator.stop()
        await coordinator.start(coordinator.port)
        again = await coordinator.next_shard()
        assert again.hello.boot_id == shard.hello.boot_id
        await again.assign(coordinator.assignment(epoch=2, model_folder=""))
        assert again.progress[-1].from_memory_bytes == again.progress[-1].total_bytes
        async with await RingEdge.open(again, epoch=2) as edge:
            assert await greedy_tokens(edge, coordinator, Frames(2), PROMPT, 2) == expected_tokens(coordinator, 2)


async def test_joins_again_when_the_coordinator_falls_silent(tiny: Path) -> None:
    async with FakeCoordinator(tiny, lease_timeout_ms=500) as coordinator, joined(coordinator) as shard:
        coordinator.is_silent = True
        again = await coordinator.next_shard()
        coordinator.is_silent = False
        assert again.hello.boot_id == shard.hello.boot_id


async def test_a_refused_shard_asks_again(coordinator: FakeCoordinator) -> None:
    coordinator.refusal = lambda hello: NameTaken("the name 's' is taken") if len(coordinator.hellos) < 2 else None
    with shard_process(coordinator) as process:
        await soon(coordinator.refused.wait())
        await coordinator.next_shard()
        assert len(coordinator.hellos) == 2
        assert process.output().count("the name 's' is taken") == 1


async def test_a_file_with_other_weights_is_not_used(coordinator: FakeCoordinator, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_llama(tmp_path / "other.gguf", block_format="Q8_0", tied=True, seed=1)
    assert other.stat().st_size == tiny.stat().st_size
    async with joined(coordinator, "--model-dir", str(tmp_path), "--weights-cache", "0") as shard:
        await shard.assign(coordinator.assignment(epoch=1, model_folder=str(tmp_path / "gone")))
        assert shard.progress[-1].from_network_bytes == shard.progress[-1].total_bytes
        assert "other.gguf" in process_of(shard).output()
        async with await RingEdge.open(shard, epoch=1) as edge:
            assert await greedy_tokens(edge, coordinator, Frames(1), PROMPT, 4) == expected_tokens(coordinator, 4)


async def test_finds_the_file_in_a_model_folder_and_serves_its_units(coordinator: FakeCoordinator, tiny: Path) -> None:
    async with joined(coordinator, "--model-dir", str(tiny.parent)) as shard:
        await shard.assign(coordinator.assignment(epoch=1, model_folder=""))
        assert shard.progress[-1].from_disk_bytes == shard.progress[-1].total_bytes
        manifest = coordinator.manifest
        assert manifest is not None
        async with await dial([shard.address], 5.0, "the shard") as channel:
            request = weights_pb2.FetchUnitRequest(model_digest=manifest.model_digest, unit_index=1, offset_bytes=100)
            pieces = [piece async for piece in weights_pb2_grpc.WeightsServiceStub(channel).FetchUnit(request)]
        assert pieces[0].offset_bytes == 100
        assert sum(len(piece.data) for piece in pieces) == manifest.units[1].size_bytes - 100


async def test_what_does_not_fit_is_refused_with_the_numbers(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        shard.say_assignment(coordinator.assignment(epoch=1, num_kv_blocks=100_000))
        failed = await shard.next_message("stage_failed")
        assert not failed.retryable
        assert "512 MiB" in failed.message
        shard.say_assignment(coordinator.assignment(epoch=2))
        assert (await shard.next_message("stage_ready")).epoch == 2


async def test_an_assignment_that_makes_no_sense_is_answered(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        unknown = coordinator.assignment(epoch=1)
        unknown.spec.layers[2].self_attention.num_kv_heads = 3
        gap = coordinator.assignment(epoch=2)
        del gap.units[1]
        for assignment, text in ((unknown, "a multiple of num_kv_heads, 3"), (gap, "contiguous")):
            shard.say_assignment(assignment)
            failed = await shard.next_message("stage_failed")
            assert text in failed.message
            assert not failed.retryable


async def test_a_newer_assignment_supersedes_and_release_frees(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator) as shard:
        for epoch in range(1, 6):
            shard.say_assignment(coordinator.assignment(epoch=epoch))
        while (await shard.next_message("stage_ready")).epoch != 5:
            pass
        shard.to_say.put_nowait(cluster_pb2.JoinResponse(release=cluster_pb2.Release(epoch=6, reason="not needed")))
        async with await dial([shard.address], 5.0, "the shard") as channel, asyncio.timeout(10):
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            while (stats := await stub.GetStats(shard_pb2.GetStatsRequest())).usage.weights_bytes:
                await asyncio.sleep(0.02)
            assert (stats.usage.kv_cache_bytes, stats.epoch, stats.name, stats.coordinator) == (0, 0, "s", "fake")
            echo = await stub.Echo(shard_pb2.EchoRequest(reply_size_bytes=1000))
            assert len(echo.payload) == 1000


async def test_a_lost_edge_is_reported(coordinator: FakeCoordinator) -> None:
    async with joined(coordinator, name="a") as a, joined(coordinator, name="b") as b:
        to_b = cluster_pb2.Peer(name="b", addresses=[b.address])
        await a.assign(coordinator.assignment(epoch=1, units=range(0, 2), next_member=to_b))
        await b.assign(coordinator.assignment(epoch=1, units=range(2, 5)))
        async with await RingEdge.open(a, epoch=1) as edge:
            await greedy_tokens(edge, coordinator, Frames(1), PROMPT, 1)
            await asyncio.to_thread(process_of(b).kill)
            lost = await a.next_message("edge_lost")
            assert (lost.epoch, lost.peer) == (1, "b")
        process_of(b).start()


async def test_broken_weights_fail_the_sequence_and_neither_frame_nor_process(tmp_path: Path) -> None:
    """The head's norm is NaN, so all logits are."""
    path = write_tiny_llama(tmp_path / "nan.gguf", block_format="F32")
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "output_norm.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(np.full(tensor.n_elements, np.nan, np.float32).tobytes())
    async with FakeCoordinator(path) as coordinator, joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=1))
        async with await RingEdge.open(shard, epoch=1) as edge:
            await edge.send(Frames(1).next(PROMPT))
            result = await soon(coordinator.results.get())
            assert "logit" in result.results[0].failure


async def test_smollm2_agrees_with_the_golden_answer(smollm2_path: Path) -> None:
    """Teacher-forced: wherever the reference's margin is over 0.5, the same token is the best."""
    golden = json.loads((Path(__file__).parents[1] / "data" / "smollm2.json").read_text())["cases"][0]
    async with FakeCoordinator(smollm2_path) as coordinator, joined(coordinator) as shard:
        await shard.assign(coordinator.assignment(epoch=1))
        async with await RingEdge.open(shard, epoch=1) as edge:
            frames = Frames(1, logprobs=True)
            differences = []
            pending = golden["prompt_ids"]
            for token_id, margin, logprob in zip(golden["generated_ids_64"], golden["top1_margin"], golden["logprob"], strict=True):
                await edge.send(frames.next(pending))
                (sampled,) = (await soon(coordinator.results.get())).results[0].sampled
                if margin > 0.5:
                    assert sampled.token_id == token_id
                if sampled.token_id == token_id:
                    differences.append(abs(sampled.logprob - logprob))
                # With the row before it: a token alone that was not sampled would be taken as a wrong guess.
                frames.set_back(1)
                pending = [pending[-1], token_id]
    assert sum(differences) / len(differences) < 0.05


def invitation(coordinator: FakeCoordinator, **changes: object) -> shard_pb2.InviteRequest:
    facts = {"cluster_hash": cluster_hash(CLUSTER), "protocol_major": PROTOCOL_MAJOR, "coordinator_id": "fake"}
    return shard_pb2.InviteRequest(**({**facts, "addresses": [coordinator.address]} | changes))  # type: ignore[arg-type]


async def refusal_of(stub: shard_pb2_grpc.ShardServiceStub, request: shard_pb2.InviteRequest) -> DairllmError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Invite(request, timeout=10)
    return error_from_rpc(raised.value)


async def test_an_invitation_is_followed_and_none_makes_a_member_leave(coordinator: FakeCoordinator) -> None:
    """The shard was not told where the coordinator is, and nobody announces one."""
    flags = [
        "--cluster",
        CLUSTER,
        "--name",
        "s",
        "--host",
        "127.0.0.1",
        "--threads",
        "1",
        "--memory",
        "512MiB",
        "--ready-file",
        "{ready_file}",
    ]
    with ManagedProcess([sys.executable, "-m", "dairllm.shard_service.main", *flags]) as process:
        facts = await asyncio.to_thread(process.wait_ready)
        async with await dial([facts["grpc"]], 10.0, "the shard") as channel:
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            assert isinstance(await refusal_of(stub, invitation(coordinator, cluster_hash="0" * 16)), WrongCluster)
            assert isinstance(await refusal_of(stub, invitation(coordinator, addresses=[])), InvalidRequest)
            assert not (await stub.Invite(invitation(coordinator), timeout=10)).is_member
            shard = await coordinator.next_shard()
            assert len(shard.hello.announced_id) == 16
            assert (await stub.Invite(invitation(coordinator), timeout=10)).is_member
            strangers = invitation(coordinator, coordinator_id="stranger")
            assert isinstance(await refusal_of(stub, strangers), InvitationDeclined)
            shard.beat.clear()
            await soon(shard.beat.wait())
            assert (await stub.GetStats(shard_pb2.GetStatsRequest())).coordinator == "fake"
            assert len(coordinator.hellos) == 1
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0


async def test_a_shard_that_was_told_where_to_join_goes_nowhere_else(coordinator: FakeCoordinator, tiny: Path) -> None:
    coordinator.refusal = lambda hello: WrongCluster("not now")
    with shard_process(coordinator) as process:
        facts = await asyncio.to_thread(process.wait_ready)
        async with FakeCoordinator(tiny) as other, await dial([facts["grpc"]], 10.0, "the shard") as channel:
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            declined = await refusal_of(stub, invitation(other))
            assert isinstance(declined, InvitationDeclined)
            assert coordinator.address in declined.message
            assert not (await stub.Invite(invitation(coordinator), timeout=10)).is_member
            await soon(coordinator.refused.wait())
            assert other.hellos == []


def test_settings_that_make_no_sense_are_one_line(tmp_path: Path) -> None:
    for arguments, text in (
        (["--no-discovery"], "--coordinator"),
        (["--memory", "lots"], "lots"),
        (["--memory", "1MiB"], "128 MiB"),
        (["--coordinator", "here"], "here"),
    ):
        with ManagedProcess([sys.executable, "-m", "dairllm.shard_service.main", *arguments]) as process:
            assert process.wait() == 2
            assert text in process.output()
            assert "Traceback" not in process.output()
