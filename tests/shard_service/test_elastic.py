"""Plans that change under running sequences, with real shard processes: the answers have the bits that they have undisturbed."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
import pytest

from dairllm.kernels_pyx import encode_rows
from dairllm.mesh.channels import dial, error_from_rpc
from dairllm.mesh.errors import NotAMember, UnknownModel, Unsupported, WrongEpoch
from dairllm.v1 import cluster_pb2, ring_pb2, shard_pb2, shard_pb2_grpc
from tests.instruments.tcp_proxy import TcpProxy
from tests.shard_service.fake_coordinator import HEARTBEAT_MS, KV_KEY, WIRE, FakeCoordinator, JoinedShard, RingEdge, soon
from tests.shard_service.living_sequence import Answer, LivingSequence, Plan, Replay, activate, peer_of, prepare, serving
from tests.shard_service.shard_processes import joined, process_of, shard_process

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19, 71, 69, 39, 93, 75, 10, 58, 20, 97, 49, 44]
"""One token short of a cache block, so that answers begin another."""
ALONE: Plan = [("a", range(0, 5))]
BEFORE, AFTER = 6, 6


@contextlib.asynccontextmanager
async def shards_of(coordinator: FakeCoordinator, *names: str) -> AsyncIterator[dict[str, JoinedShard]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(joined(coordinator, name=name)) for name in names}


UNDISTURBED: list[Answer] = []


async def undisturbed(coordinator: FakeCoordinator) -> list[Answer]:
    """By one shard that holds everything."""
    if not UNDISTURBED:
        async with shards_of(coordinator, "a") as shards, serving(coordinator, shards, ALONE, 1) as edge:
            sequence = LivingSequence(1, PROMPT)
            await sequence.go_on(edge, coordinator, 1, BEFORE + AFTER)
            UNDISTURBED.extend(sequence.answers)
    return UNDISTURBED


def transfer(source: JoinedShard, units: range, block_ids: list[int]) -> cluster_pb2.KvTransfer:
    return transfer_from(peer_of(source), first_unit=units.start, end_unit=units.stop, block_ids=block_ids, kv_key=KV_KEY)


def transfer_from(peer: cluster_pb2.Peer, **fields: Any) -> cluster_pb2.KvTransfer:
    """The message's own name for `peer` is a keyword."""
    fields["from"] = peer
    return cluster_pb2.KvTransfer(**fields)


async def test_layers_and_their_cache_move_while_answers_run(coordinator: FakeCoordinator) -> None:
    expected = await undisturbed(coordinator)
    async with shards_of(coordinator, "a", "b") as shards:
        a = shards["a"]
        sequence = LivingSequence(1, PROMPT)
        async with serving(coordinator, shards, ALONE, 1) as edge:
            await sequence.go_on(edge, coordinator, 1, 3)
            after: Plan = [("a", range(0, 3)), ("b", range(3, 5))]
            await prepare(coordinator, shards, after, 2)
            await sequence.go_on(edge, coordinator, 1, BEFORE - 3)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await RingEdge.open(a, 2)
            assert type(error_from_rpc(raised.value)) is WrongEpoch, "prepared is not active"
            activated = await activate(shards, after, 2, [1], {"b": [transfer(a, range(3, 4), sequence.block_ids())]})
            assert await edge.status() is grpc.StatusCode.FAILED_PRECONDITION
        assert (list(activated["b"].transferred_units), activated["b"].note) == ([3], "")
        assert activated["b"].transferred_bytes > 0
        async with await RingEdge.open(a, 2) as edge:
            await sequence.go_on(edge, coordinator, 2, AFTER)
        assert sequence.answers == expected
        manifest = coordinator.manifest
        assert manifest is not None
        request = shard_pb2.FetchKvRequest(
            model_digest=manifest.model_digest,
            first_unit=3,
            end_unit=4,
            block_ids=[0],
            block_bytes=activated["b"].transferred_bytes // 2,
            kv_key=KV_KEY,
        )
        assert len(await fetch_kv(a, request)) == request.block_bytes, "a gives what it has lost until the next switch"
        request.block_bytes += 1
        assert type(await fetch_error(a, request)) is Unsupported
        request.block_bytes -= 1
        await a.assign(coordinator.assignment(3, range(0, 2)))
        assert type(await fetch_error(a, request)) is UnknownModel


async def test_kv_cache_is_for_those_who_have_its_key(coordinator: FakeCoordinator) -> None:
    """A switch without the key costs a replay and no more."""
    async with shards_of(coordinator, "a", "b") as shards:
        a = shards["a"]
        sequence = LivingSequence(1, PROMPT)
        manifest = coordinator.manifest
        assert manifest is not None
        facts: dict[str, Any] = {"model_digest": manifest.model_digest, "first_unit": 1, "end_unit": 2, "block_ids": [0]}
        assert type(await fetch_error(a, shard_pb2.FetchKvRequest(**facts))) is NotAMember, "before any assignment nobody may"
        async with serving(coordinator, shards, ALONE, 1) as edge:
            await sequence.go_on(edge, coordinator, 1, 3)
            for key in (b"", KV_KEY[:-1], bytes(len(KV_KEY)), KV_KEY + b"x"):
                refusal = await fetch_error(a, shard_pb2.FetchKvRequest(**facts, kv_key=key))
                assert type(refusal) is NotAMember, "it is not told either whether the rest of its request was right"
            assert type(await fetch_error(a, shard_pb2.FetchKvRequest(**facts, kv_key=KV_KEY))) is Unsupported, "0 bytes are no block"
            await a.prepare(coordinator.assignment(2, range(0, 3), next_member=peer_of(shards["b"]), kv_key=b"another key"))
            await shards["b"].prepare(coordinator.assignment(2, range(3, 5)))
        after: Plan = [("a", range(0, 3)), ("b", range(3, 5))]
        activated = await activate(shards, after, 2, [1], {"b": [transfer(a, range(3, 4), sequence.block_ids())]})
        assert not activated["b"].transferred_units
        assert "kv_key" in activated["b"].note
        async with await RingEdge.open(a, 2) as edge:
            await sequence.replay(edge, coordinator, 2, Replay(0, 4))
            await sequence.go_on(edge, coordinator, 2, BEFORE + AFTER - 3)
    assert sequence.answers == await undisturbed(coordinator)


async def fetch_kv(shard: JoinedShard, request: shard_pb2.FetchKvRequest) -> bytes:
    async with await dial([shard.address], 5.0, "the shard") as channel:
        return b"".join([piece.data async for piece in shard_pb2_grpc.ShardServiceStub(channel).FetchKv(request)])


async def fetch_error(shard: JoinedShard, request: shard_pb2.FetchKvRequest) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await fetch_kv(shard, request)
    return error_from_rpc(raised.value)


@pytest.mark.parametrize(
    ("before", "lost", "after", "replay"),
    [
        ([("a", range(0, 2)), ("b", range(2, 4)), ("c", range(4, 5))], "b", [("a", range(0, 2)), ("c", range(2, 5))], Replay(2, 4, "a")),
        ([("a", range(0, 2)), ("b", range(2, 5))], "b", [("a", range(0, 3)), ("c", range(3, 5))], Replay(2, 4, "a")),
        ([("a", range(0, 2)), ("b", range(2, 5))], "a", [("c", range(0, 2)), ("b", range(2, 5))], Replay(0, 2)),
    ],
    ids=["middle", "into-the-sender", "first"],
)
async def test_what_a_lost_shard_held_is_replayed_to_the_same_bits(
    coordinator: FakeCoordinator, before: Plan, lost: str, after: Plan, replay: Replay
) -> None:
    expected = await undisturbed(coordinator)
    async with shards_of(coordinator, "a", "b", "c") as shards:
        sequence = LivingSequence(1, PROMPT)
        async with serving(coordinator, shards, before, 1) as edge:
            await sequence.go_on(edge, coordinator, 1, BEFORE)
            await asyncio.to_thread(process_of(shards[lost]).kill)
        said = shards[before[0][0]] if before[1][0] == lost else None
        if said is not None:
            assert (await said.next_message("edge_lost")).peer == lost
        async with serving(coordinator, shards, after, 2, [1]) as edge:
            results = await sequence.replay(edge, coordinator, 2, replay)
            assert all(not result.results for result in results)
            await sequence.go_on(edge, coordinator, 2, AFTER)
        assert sequence.answers == expected
        process_of(shards[lost]).start()


async def test_a_replay_without_sent_rows_fails_alone_and_token_replay_helps(coordinator: FakeCoordinator) -> None:
    """Of two sequences in one frame, a has sent only one."""
    expected = await undisturbed(coordinator)
    plan: Plan = [("a", range(0, 2)), ("b", range(2, 5))]
    async with shards_of(coordinator, "a", "b") as shards:
        known, unknown = LivingSequence(1, PROMPT), LivingSequence(2, PROMPT, first_block=4)
        async with serving(coordinator, shards, plan, 1) as edge:
            await known.go_on(edge, coordinator, 1, BEFORE)
        unknown.tokens, unknown.completed = list(known.tokens), known.completed
        unknown.answers = list(known.answers)
        async with serving(coordinator, shards, plan, 2, [1, 2]) as edge:
            from_sent_rows = Replay(2, 4, "a")
            frames = [sequence.frame(2, range(20), replay=from_sent_rows) for sequence in (known, unknown)]
            frames[0].MergeFrom(ring_pb2.MicroBatch(begins=frames[1].begins, slices=frames[1].slices))
            await edge.send(frames[0])
            result = await soon(coordinator.results.get())
            assert [(one.sequence_id, one.replay_failed) for one in result.results] == [(2, True)]
            await edge.send(known.frame(2, range(20, known.completed), replay=from_sent_rows))
            assert not (await soon(coordinator.results.get())).results
            await unknown.replay(edge, coordinator, 2, Replay(0, 5))
            await known.go_on(edge, coordinator, 2, AFTER)
            await unknown.go_on(edge, coordinator, 2, AFTER)
        assert known.answers == unknown.answers == expected


async def test_sequences_that_are_not_alive_are_forgotten(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        sequence = LivingSequence(1, PROMPT)
        async with serving(coordinator, shards, ALONE, 1) as edge:
            await sequence.go_on(edge, coordinator, 1, 1)
        async with serving(coordinator, shards, ALONE, 2, [7]) as edge:
            frame = sequence.frame(2, range(sequence.completed, len(sequence.tokens)))
            del frame.begins[:]
            await edge.send(frame)
            assert "has not begun" in (await edge.next_refusal()).message


async def test_a_cache_that_can_not_be_taken_over_is_no_failure(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        await prepare(coordinator, shards, ALONE, 1)
        gone = cluster_pb2.Peer(name="gone", addresses=["127.0.0.1:9"])
        lost = transfer_from(gone, first_unit=1, end_unit=3, block_ids=[0])
        unused = transfer_from(gone, first_unit=3, end_unit=4)
        activated = await shards["a"].activate(1, transfers=[lost, unused])
        assert list(activated.transferred_units) == [3]
        assert "gone" in activated.note


async def test_an_epoch_that_is_not_prepared_is_not_activated(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        a = shards["a"]
        await prepare(coordinator, shards, ALONE, 1)
        await prepare(coordinator, shards, ALONE, 2)
        a.say(cluster_pb2.JoinResponse(activate_stage=cluster_pb2.ActivateStage(epoch=1)))
        failed = await a.next_message("stage_failed")
        assert (failed.epoch, failed.retryable) == (1, True)
        await a.activate(2)


async def test_what_does_not_fit_beside_the_active_plan_needs_room_first(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        a = shards["a"]
        ready = await a.assign(coordinator.assignment(1, range(1, 2)))
        blocks = 200 * 1024**2 // (ready.kv_cache_bytes // 16)
        await a.assign(coordinator.assignment(2, range(1, 2), num_kv_blocks=blocks))
        a.say_assignment(coordinator.assignment(3, range(2, 3), num_kv_blocks=blocks))
        failed = await a.next_message("stage_failed")
        assert (failed.needs_exclusive, failed.retryable) == (True, False)
        assert "512 MiB" in failed.message
        async with await RingEdge.open(a, 2):
            pass  # epoch 2 is as it was
        a.say_assignment(coordinator.assignment(4, range(2, 3), num_kv_blocks=3 * blocks))
        failed = await a.next_message("stage_failed")
        assert (failed.needs_exclusive, failed.retryable) == (False, False)
        await a.assign(coordinator.assignment(5, range(2, 3), num_kv_blocks=blocks, exclusive=True))


async def test_one_sequence_with_broken_numbers_fails_alone(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "b") as shards:
        await shards["b"].assign(coordinator.assignment(1, range(2, 5)))
        assert coordinator.manifest is not None
        width = coordinator.manifest.spec.hidden_size
        broken, sound = (LivingSequence(number, [5], first_block=number).frame(1, range(1), sample=True) for number in (1, 2))
        broken.slices[0].failure = "no numbers behind a"
        sound.slices[0].activations = encode_rows(np.full((1, width), 0.5, np.float32), WIRE)
        broken.MergeFrom(ring_pb2.MicroBatch(begins=sound.begins, slices=sound.slices))
        async with await RingEdge.open(shards["b"], 1) as edge:
            await edge.send(broken)
            failed, worked = sorted((await soon(coordinator.results.get())).results, key=lambda result: result.sequence_id)
        assert failed.failure == "no numbers behind a"
        assert not failed.sampled
        assert worked.failure == ""
        assert worked.sampled


async def test_a_shard_that_is_told_to_stop_serves_until_others_have_taken_over(coordinator: FakeCoordinator) -> None:
    coordinator.releases_leavers = False
    expected = await undisturbed(coordinator)
    async with shards_of(coordinator, "b") as shards:
        with shard_process(coordinator, name="a") as process:
            shards["a"] = await coordinator.next_shard()
            sequence = LivingSequence(1, PROMPT)
            async with serving(coordinator, shards, ALONE, 1) as edge:
                process.send(signal.SIGTERM)
                assert (await shards["a"].next_message("leaving")).drain
                await sequence.go_on(edge, coordinator, 1, BEFORE)
                after: Plan = [("b", range(0, 5))]
                await prepare(coordinator, shards, after, 2)
            moved = transfer(shards["a"], range(1, 4), sequence.block_ids())
            activated = await activate(shards, after, 2, [1], {"b": [moved]})
            assert list(activated["b"].transferred_units) == [1, 2, 3]
            shards["a"].say(cluster_pb2.JoinResponse(release=cluster_pb2.Release(epoch=2, leave=True)))
            assert not (await shards["a"].next_message("leaving")).drain
            assert await asyncio.to_thread(process.wait) == 0
            async with await RingEdge.open(shards["b"], 2) as edge:
                await sequence.go_on(edge, coordinator, 2, AFTER)
            assert sequence.answers == expected
        coordinator.releases_leavers = True


async def test_drained_by_the_coordinator(coordinator: FakeCoordinator) -> None:
    with shard_process(coordinator, name="a") as process:
        shard = await coordinator.next_shard()
        shard.say(cluster_pb2.JoinResponse(drain=cluster_pb2.Drain(reason="maintenance")))
        leaving = await shard.next_message("leaving")
        assert (leaving.drain, leaving.reason) == (True, "maintenance")
        assert await asyncio.to_thread(process.wait) == 0


async def test_told_twice_it_ends_at_once(coordinator: FakeCoordinator) -> None:
    coordinator.releases_leavers = False
    with shard_process(coordinator, name="a") as process:
        shard = await coordinator.next_shard()
        await soon(shard.beat.wait())
        process.send(signal.SIGTERM)
        await shard.next_message("leaving")
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 5.0) == 128 + signal.SIGTERM


async def test_a_shard_that_is_leaving_ends_with_its_coordinator(coordinator: FakeCoordinator) -> None:
    coordinator.releases_leavers = False
    with shard_process(coordinator, name="a") as process:
        shard = await coordinator.next_shard()
        await soon(shard.beat.wait())
        process.send(signal.SIGTERM)
        await shard.next_message("leaving")
        await coordinator.stop()
        assert await asyncio.to_thread(process.wait, 5.0) == 0


async def test_limits_change_while_it_runs(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        a = shards["a"]
        async with serving(coordinator, shards, ALONE, 1) as edge:
            sequence = LivingSequence(1, PROMPT)
            await sequence.go_on(edge, coordinator, 1, BEFORE)
            a.say(cluster_pb2.JoinResponse(configure=cluster_pb2.Configure(memory_budget_bytes=256 * 1024**2, num_threads=2)))
            changed = (await a.next_message("capabilities_changed")).capabilities
            assert (changed.memory_budget_bytes, changed.num_threads) == (256 * 1024**2, 2)
            assert changed.decode_s_per_byte > 0
            for nonsense, words in (
                (
                    cluster_pb2.Configure(memory_budget_bytes=1, num_threads=1),
                    "--memory is 1 B; expected at least 128 MiB",
                ),
                (cluster_pb2.Configure(memory_budget_bytes=512 * 1024**2, num_threads=100_000), "num_threads is 100000, expected 1 to 256"),
            ):
                a.say(cluster_pb2.JoinResponse(configure=nonsense))
                again = await a.next_message("capabilities_changed")
                assert again.capabilities == changed, "all of it or nothing"
                assert words in again.refusal
            await sequence.go_on(edge, coordinator, 1, AFTER)
        assert sequence.answers == await undisturbed(coordinator)


async def test_another_coordinator_learns_what_a_shard_holds(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        await shards["a"].assign(coordinator.assignment(7, range(1, 3)))
        await coordinator.stop()
        coordinator.welcome.coordinator_id = "another"
        await coordinator.start(coordinator.port)
        again = await coordinator.next_shard()
        assert coordinator.manifest is not None
        assert again.hello.held.model_digest == coordinator.manifest.model_digest
        assert list(again.hello.held.unit_indexes) == [1, 2]
        with pytest.raises(grpc.aio.AioRpcError):
            await RingEdge.open(again, 7)
        await asyncio.sleep(HEARTBEAT_MS / 1000)
        assert again.heartbeats


async def test_another_run_of_the_coordinator_hears_nothing_of_the_plans_of_the_last(coordinator: FakeCoordinator) -> None:
    """Its epochs have the same numbers. The switch of the last one is under way when it comes, and would be told after the welcome."""
    async with shards_of(coordinator, "a") as shards, TcpProxy("127.0.0.1", 9) as hole:
        hole.black_hole()
        await prepare(coordinator, shards, ALONE, 1)
        lost = transfer_from(cluster_pb2.Peer(name="hole", addresses=[hole.address]), first_unit=1, end_unit=3, block_ids=[0])
        activation = cluster_pb2.ActivateStage(epoch=1, transfers=[lost])
        shards["a"].say(cluster_pb2.JoinResponse(activate_stage=activation))
        async with asyncio.timeout(20):
            while not hole.num_connections:
                await asyncio.sleep(0.01)
        await coordinator.stop()
        coordinator.welcome.coordinator_id = "another"
        await coordinator.start(coordinator.port)
        again = await coordinator.next_shard()
        await again.prepare(coordinator.assignment(1))
        with pytest.raises(grpc.aio.AioRpcError):
            await RingEdge.open(again, 1)
        await again.activate(1)
        async with await RingEdge.open(again, 1) as edge:
            sequence = LivingSequence(1, PROMPT)
            await sequence.go_on(edge, coordinator, 1, BEFORE)
            assert sequence.answers == (await undisturbed(coordinator))[:BEFORE]


async def test_a_release_by_an_older_plan_keeps_what_the_next_one_prepares(coordinator: FakeCoordinator) -> None:
    async with shards_of(coordinator, "a") as shards:
        a = shards["a"]
        await a.assign(coordinator.assignment(1))
        await prepare(coordinator, shards, ALONE, 3)
        a.say(cluster_pb2.JoinResponse(release=cluster_pb2.Release(epoch=2, reason="not in plan 2")))
        await a.activate(3)
        async with await RingEdge.open(a, 3) as edge:
            sequence = LivingSequence(1, PROMPT)
            await sequence.go_on(edge, coordinator, 3, BEFORE)
        assert sequence.answers == (await undisturbed(coordinator))[:BEFORE]


async def test_a_later_plan_does_not_wait_for_caches_of_the_one_before(coordinator: FakeCoordinator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await superseded_while_caches_are_on_their_way(coordinator, f"127.0.0.1:{silent.getsockname()[1]}")


async def superseded_while_caches_are_on_their_way(coordinator: FakeCoordinator, silent: str) -> None:
    async with shards_of(coordinator, "a") as shards:
        a = shards["a"]
        await prepare(coordinator, shards, ALONE, 1)
        peer = cluster_pb2.Peer(name="silent", addresses=[silent])
        stuck = transfer_from(peer, first_unit=1, end_unit=4, block_ids=[0])
        a.say(cluster_pb2.JoinResponse(activate_stage=cluster_pb2.ActivateStage(epoch=1, transfers=[stuck])))
        a.say_assignment(coordinator.assignment(2))
        activated = await a.next_message("stage_activated")
        assert (activated.epoch, list(activated.transferred_units)) == (1, [])
        assert activated.seconds < 2.0
        assert (await a.next_message("stage_ready")).epoch == 2
