"""What the engine does with requests while no ring is open."""

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.engine import engine as engine_module
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.engine.facts import RingGeometry, SchedulerLimits
from dairllm.coordinator.engine.recovery import StagePlace
from dairllm.coordinator.engine.requests import GenerationEvent, GenerationFinished, GenerationRequest, TokenGenerated
from dairllm.mesh.errors import Busy, DairllmError, NotEnoughMemory, NotReady, RequestLost
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, SequenceResult, TokenScore
from dairllm.mesh.sampling import SamplingParams

SCORE = TokenScore(7, -1.0)
LIMITS = SchedulerLimits(context_length=64, max_running=2, max_waiting=2)
NO_SHARDS = NotReady("the model is not served yet: no shard has joined", retry_after_s=2.0)
NO_MEMORY = NotEnoughMemory("the model is not served yet: 17 MiB of memory are missing", retry_after_s=2.0)
LONG_S, SHORT_S = 30.0, 0.1
NUM_BLOCKS = 16


class Serving:
    """An engine and the ring that it uses, whose frames come back at once, or never. unready: what the engine is told."""

    def __init__(self, recovery_limit_s: float = LONG_S) -> None:
        self.unready: DairllmError | None = NO_SHARDS
        self.frames_come_back = True
        self.sent: list[MicroBatch] = []
        self.faults: list[str] = []
        self.engine = Engine(LIMITS, 100, lambda: self.unready, recovery_limit_s)
        self._epoch = 0

    def open(self) -> None:
        self._epoch += 1
        self.unready = None
        geometry = RingGeometry(self._epoch, (StagePlace(Holder("a", "1"), range(4)),), NUM_BLOCKS, 8, "F32")
        self.engine.open_ring(geometry, self._send, lambda report, duration_s: None, self.faults.append)

    def close(self, unready: DairllmError | None = NO_MEMORY) -> None:
        self.unready = unready
        self.engine.close_ring()

    def _send(self, batch: MicroBatch) -> None:
        self.sent.append(batch)
        if self.frames_come_back:
            asyncio.get_running_loop().call_soon(self._complete, batch)

    def _complete(self, batch: MicroBatch) -> None:
        results = tuple(SequenceResult(slice_.sequence_id, (SCORE,) * slice_.num_samples) for slice_ in batch.slices)
        self.engine.complete(MicroBatchResult(batch.epoch, batch.batch_id, results, ()))

    def answer_last_frame(self) -> None:
        self._complete(self.sent[-1])

    def request(self, num_tokens: int = 3) -> AsyncGenerator[GenerationEvent, None]:
        return self.engine.generate(GenerationRequest((1, 2, 3), SamplingParams(), num_tokens))

    def ask(self) -> "asyncio.Task[list[GenerationEvent]]":
        async def read() -> list[GenerationEvent]:
            return [event async for event in self.request()]

        return asyncio.create_task(read())

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def until_load(self, running: int, waiting: int) -> None:
        await self.until(lambda: self.load == (running, waiting))

    @property
    def load(self) -> tuple[int, int]:
        stats = self.engine.engine_stats()
        return stats.running, stats.waiting

    def assert_empty(self) -> None:
        stats = self.engine.engine_stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert stats.kv_blocks_free == stats.kv_blocks_total
        assert self.engine.used_block_ids == ()


ANSWER = [TokenGenerated(SCORE)] * 3 + [GenerationFinished("length")]


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "REOPENING_LIMIT_S", SHORT_S)


async def test_the_next_frame_leaves_before_anything_is_made_of_the_token_that_came_back() -> None:
    order: list[str] = []

    class Ordered(Serving):
        def _send(self, batch: MicroBatch) -> None:
            super()._send(batch)
            asyncio.get_running_loop().call_soon(order.append, "frame")

    serving = Ordered()
    serving.open()
    async for event in serving.request(num_tokens=2):
        order.append(type(event).__name__)
    assert order == ["frame", "frame", "TokenGenerated", "TokenGenerated", "GenerationFinished"]


async def test_a_cluster_that_never_served_refuses_at_once() -> None:
    serving = Serving()
    with pytest.raises(NotReady) as refused:
        await anext(serving.request())
    assert refused.value is NO_SHARDS


async def test_a_request_shortly_after_the_ring_was_closed_is_served_when_it_opens() -> None:
    serving = Serving()
    serving.open()
    serving.close()
    asked = serving.ask()
    await serving.until_load(0, 1)
    serving.open()
    assert await asked == ANSWER
    serving.assert_empty()


async def test_when_nothing_opens_it_is_refused_as_ever_and_later_ones_at_once(short_wait: None) -> None:
    serving = Serving()
    serving.open()
    serving.close()
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(NotEnoughMemory) as refused:
        await anext(serving.request())
    assert refused.value == NO_MEMORY
    assert asyncio.get_running_loop().time() - began_s >= SHORT_S * 0.9
    later = serving.request()
    with pytest.raises(NotEnoughMemory):
        later.asend(None).send(None)  # without a single turn of the loop
    serving.assert_empty()
    serving.open()
    assert await serving.ask() == ANSWER


async def test_those_that_ran_wait_longer_than_those_that_came_later(short_wait: None) -> None:
    serving = Serving()
    serving.open()
    serving.frames_come_back = False
    running = serving.ask()
    await serving.until_load(1, 0)
    serving.close()
    with pytest.raises(NotEnoughMemory):
        await serving.ask()
    assert not running.done()
    serving.frames_come_back = True
    serving.open()
    assert await running == ANSWER
    serving.assert_empty()


async def test_while_a_plan_is_prepared_requests_wait_for_it(short_wait: None) -> None:
    """Also those that came when none could be made."""
    serving = Serving()
    serving.open()
    serving.close()
    early = serving.ask()
    await serving.until_load(0, 1)
    serving.unready = None
    late = serving.ask()
    await asyncio.sleep(2 * SHORT_S)
    assert serving.load == (0, 2)
    serving.open()
    assert [await early, await late] == [ANSWER, ANSWER]


async def test_the_queue_has_its_limit_also_while_requests_wait_for_a_ring() -> None:
    serving = Serving()
    serving.open()
    serving.close()
    asked = [serving.ask() for _ in range(LIMITS.max_waiting)]
    await serving.until_load(0, LIMITS.max_waiting)
    with pytest.raises(Busy):
        await anext(serving.request())
    serving.open()
    assert [await one for one in asked] == [ANSWER] * LIMITS.max_waiting


async def test_a_client_that_goes_away_while_it_waits_for_a_ring_is_dropped() -> None:
    serving = Serving()
    serving.open()
    serving.close()
    asked = serving.ask()
    await serving.until_load(0, 1)
    asked.cancel()
    await asyncio.wait([asked])
    serving.assert_empty()
    serving.open()
    assert serving.sent == []


async def test_at_the_recovery_limit_every_answer_fails_with_what_is_missing() -> None:
    serving = Serving(SHORT_S)
    serving.open()
    serving.frames_come_back = False
    asked = [serving.ask() for _ in range(2)]
    await serving.until_load(1, 1)
    serving.close()
    closed_s = asyncio.get_running_loop().time()
    for one in asked:
        with pytest.raises(NotEnoughMemory, match=r"17 MiB of memory are missing; gave up after 0\.1 s") as failed:
            await one
        assert failed.value.retry_after_s == NO_MEMORY.retry_after_s
    assert asyncio.get_running_loop().time() - closed_s >= SHORT_S * 0.9
    serving.assert_empty()
    serving.frames_come_back = True
    serving.open()
    assert await serving.ask() == ANSWER


async def test_a_shutdown_ends_what_waits_for_a_ring() -> None:
    serving = Serving()
    serving.open()
    serving.close()
    asked = serving.ask()
    await serving.until_load(0, 1)
    serving.engine.shut_down()
    with pytest.raises(RequestLost):
        await asked


async def close_for(serving: Serving, seconds: float) -> None:
    serving.close()
    await asyncio.sleep(seconds)  # time itself is what counts here
    serving.open()


async def test_a_ring_that_opens_and_answers_nothing_does_not_stop_the_clock() -> None:
    serving = Serving(recovery_limit_s=5 * SHORT_S)
    serving.open()
    serving.frames_come_back = False
    running = serving.ask()
    await serving.until_load(1, 0)
    for _ in range(2):
        await close_for(serving, 2 * SHORT_S)
        assert not running.done()
    serving.close()
    with pytest.raises(NotEnoughMemory, match="gave up"):
        await running
    serving.assert_empty()


async def test_an_answer_that_went_on_has_the_whole_limit_again() -> None:
    serving = Serving(recovery_limit_s=5 * SHORT_S)
    serving.open()
    serving.frames_come_back = False
    running = serving.ask()
    await serving.until_load(1, 0)
    await close_for(serving, 3 * SHORT_S)
    serving.answer_last_frame()
    await close_for(serving, 3 * SHORT_S)
    assert not running.done()
    serving.frames_come_back = True
    serving.answer_last_frame()
    assert await running == ANSWER
    serving.assert_empty()


async def test_a_result_that_cannot_be_names_the_fault_and_the_answer_goes_on() -> None:
    serving = Serving()
    serving.open()
    serving.frames_come_back = False
    stream = serving.request()
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    sent = serving.sent[-1]
    outside = SequenceResult(sent.slices[0].sequence_id, (TokenScore(100, -1.0),))
    serving.engine.complete(MicroBatchResult(sent.epoch, sent.batch_id, (outside,), ()))
    serving.engine.complete(MicroBatchResult(sent.epoch, 99, (), ()))
    assert serving.faults == [
        f"sent token 100, which is not in the vocabulary of 100, for sequence 1 in frame {sent.batch_id}",
        "sent a result for frame 99, which nobody has asked for",
    ]
    assert not first.done()
    serving.close()
    serving.frames_come_back = True
    serving.open()
    tokens = [await first, *[event async for event in stream]]
    assert len([event for event in tokens if isinstance(event, TokenGenerated)]) == 3
