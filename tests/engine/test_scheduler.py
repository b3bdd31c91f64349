"""The scheduler against a ring that checks everything a real one would, driven by hypothesis through cancellations and lost plans."""

import hashlib
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.coordinator.engine.requests import (
    GenerationFinished,
    GenerationRequest,
    PromptScored,
    SequenceId,
    TokenGenerated,
    TokenScore,
)
from dairllm.coordinator.engine.scheduler import (
    Batch,
    BatchCompleted,
    EmitEvent,
    GenerationCancelled,
    GenerationRequested,
    RingClosed,
    RingGeometry,
    RingOpened,
    Scheduler,
    SchedulerAction,
    SchedulerLimits,
    SendBatch,
    SliceResult,
)

BLOCK_TOKENS = 4
END_ID = 7


def next_token(tokens: list[int]) -> int:
    """Stands for the model: depends on every token before."""
    return hashlib.sha256(repr(tokens).encode()).digest()[0] % 64


def expected_answer(request: GenerationRequest, context_length: int) -> list[int]:
    tokens = list(request.prompt_ids)
    limit = context_length if request.max_tokens is None else min(context_length, len(tokens) + request.max_tokens)
    while len(tokens) < limit:
        tokens.append(next_token(tokens))
        if tokens[-1] in request.end_ids:
            break
    return tokens[len(request.prompt_ids) :]


@dataclass
class CheckedRing:
    """Holds what the shards would hold: per position of each block the token written there."""

    geometry: RingGeometry
    cells: dict[tuple[int, int], int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    queue: deque[Batch] = field(default_factory=deque)

    def send(self, batch: Batch) -> None:
        assert batch.epoch == self.geometry.epoch
        self.queue.append(batch)
        assert len(self.queue) <= self.geometry.num_stages + 1

    def compute(self) -> BatchCompleted:
        batch = self.queue.popleft()
        for begin in batch.begins:
            assert begin.ring_id not in self.tables
            self.tables[begin.ring_id], self.lengths[begin.ring_id] = [], 0
        results = []
        for piece in batch.slices:
            results.append(self._compute_slice(piece))
        for ring_id in batch.ends:
            del self.tables[ring_id], self.lengths[ring_id]
        return BatchCompleted(batch.epoch, batch.batch_id, tuple(results))

    def _compute_slice(self, piece) -> SliceResult:
        table = self.tables[piece.ring_id]
        assert piece.first_position == self.lengths[piece.ring_id]
        table.extend(piece.new_block_ids)
        assert all(0 <= block < self.geometry.num_kv_blocks for block in table)
        end = piece.first_position + len(piece.token_ids)
        assert len(table) == -(-end // BLOCK_TOKENS)
        for position, token in enumerate(piece.token_ids, piece.first_position):
            self.cells[table[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = token
        self.lengths[piece.ring_id] = end
        seen = [self.cells[table[p // BLOCK_TOKENS], p % BLOCK_TOKENS] for p in range(end)]
        sampled = TokenScore(next_token(seen), -1.0) if piece.sample else None
        scores = tuple(TokenScore(target, float(-target)) for target in piece.score_targets)
        assert len(scores) in (0, len(piece.token_ids))
        return SliceResult(piece.ring_id, sampled, scores)


def geometry(epoch: int, stages: int, blocks: int) -> RingGeometry:
    return RingGeometry(epoch, stages, blocks, BLOCK_TOKENS, {1: "Q8_0"} if stages > 1 else {})


class Harness:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.scheduler = Scheduler(limits)
        self.ring: CheckedRing | None = None
        self.events: dict[int, list[object]] = {}
        self.max_in_flight = 0

    def apply(self, actions: list[SchedulerAction]) -> None:
        for action in actions:
            match action:
                case SendBatch(batch):
                    assert self.ring is not None
                    assert 0 < batch.num_rows <= self.scheduler.limits.max_batch_rows or batch.ends
                    self.ring.send(batch)
                    self.max_in_flight = max(self.max_in_flight, len(self.ring.queue))
                case EmitEvent(sequence_id, event):
                    self.events.setdefault(sequence_id, []).append(event)

    def open_ring(self, ring_geometry: RingGeometry) -> None:
        self.ring = CheckedRing(ring_geometry)
        self.apply(self.scheduler.handle(RingOpened(ring_geometry)))

    def close_ring(self) -> None:
        self.ring = None
        self.apply(self.scheduler.handle(RingClosed()))

    def request(self, number: int, request: GenerationRequest) -> None:
        self.apply(self.scheduler.handle(GenerationRequested(SequenceId(number), request)))

    def step(self) -> None:
        if self.ring is not None and self.ring.queue:
            self.apply(self.scheduler.handle(self.ring.compute()))

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if self.ring is None or not self.ring.queue:
                return
            self.step()
        raise AssertionError("the scheduler never came to rest")

    def answer(self, number: int) -> list[int]:
        return [event.token.token_id for event in self.events.get(number, []) if isinstance(event, TokenGenerated)]


def limits(**changes: int) -> SchedulerLimits:
    return SchedulerLimits(context_length=64, max_batch_rows=16, chunk_rows_while_decoding=4, max_running=6)._replace(**changes)


def test_one_sequence_gets_every_token_and_a_finish() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 16))
    request = GenerationRequest((1, 2, 3), max_tokens=5)
    harness.request(1, request)
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)
    assert harness.events[1][-1] == GenerationFinished("length")
    assert harness.scheduler.kv_blocks_free == 16
    assert not harness.ring.tables


def test_as_many_frames_are_in_flight_as_there_are_stages() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 3, 64))
    for number in range(6):
        harness.request(number, GenerationRequest((1 + number, 2), max_tokens=8))
    for _ in range(12):
        harness.step()
    decoding = [len(batch.slices) for batch in harness.ring.queue]
    assert len(decoding) == 3
    assert max(decoding) <= 2, "six decoding sequences are dealt evenly over three stages"


def test_a_long_prompt_lets_running_answers_flow() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 64))
    harness.request(1, GenerationRequest((1, 2), max_tokens=40))
    harness.step()
    harness.request(2, GenerationRequest(tuple(range(1, 41)), max_tokens=2))
    for _ in range(5):
        harness.step()
    assert len(harness.answer(1)) >= 5, "the running answer got a token with every frame"


def test_prompt_scores_come_once_and_in_order() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 2, 64))
    prompt = tuple(range(10, 50))
    harness.request(1, GenerationRequest(prompt, max_tokens=0, score_prompt=True))
    harness.request(2, GenerationRequest((5,), max_tokens=0, score_prompt=True))
    harness.request(3, GenerationRequest(prompt, max_tokens=2, score_prompt=True))
    harness.run()
    scored = harness.events[1][0]
    assert isinstance(scored, PromptScored)
    assert [score.token_id for score in scored.scores] == list(prompt[1:])
    assert harness.events[1][1:] == [GenerationFinished("length")]
    assert harness.events[2] == [PromptScored(()), GenerationFinished("length")]
    assert [type(event) for event in harness.events[3]] == [PromptScored, TokenGenerated, TokenGenerated, GenerationFinished]


def test_rounding_points_stay_with_a_sequence_when_the_plan_changes() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 2, 64))
    harness.request(1, GenerationRequest((1, 2), max_tokens=8))
    harness.step()
    harness.open_ring(geometry(2, 1, 64))
    assert harness.ring.queue[0].begins[0].rounding_points == {1: "Q8_0"}


def test_results_of_an_old_epoch_are_ignored() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 64))
    harness.request(1, GenerationRequest((1, 2), max_tokens=2))
    stale = harness.ring.compute()
    harness.open_ring(geometry(2, 1, 64))
    harness.apply(harness.scheduler.handle(stale))
    assert harness.answer(1) == []


requests = st.builds(
    GenerationRequest,
    prompt_ids=st.lists(st.integers(0, 63), min_size=1, max_size=40).map(tuple),
    max_tokens=st.none() | st.integers(0, 20),
    end_ids=st.sampled_from([frozenset(), frozenset({END_ID})]),
    score_prompt=st.booleans(),
)
stimuli = st.one_of(
    st.tuples(st.just("request"), requests),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
    st.tuples(st.just("step"), st.integers(1, 10)),
    st.tuples(st.just("reopen"), st.integers(1, 4), st.integers(16, 40)),
    st.tuples(st.just("close"), st.none()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(stimuli, min_size=1, max_size=40))
def test_every_answer_is_right_whatever_happens(script: list[tuple]) -> None:
    harness = Harness(limits())
    epoch = 1
    harness.open_ring(geometry(epoch, 2, 16))
    asked: dict[int, GenerationRequest] = {}
    cancelled: set[int] = set()
    for kind, *rest in script:
        match kind:
            case "request":
                asked[len(asked)] = rest[0]
                harness.request(len(asked) - 1, rest[0])
            case "cancel":
                cancelled.add(rest[0]) if rest[0] in asked else None
                harness.apply(harness.scheduler.handle(GenerationCancelled(SequenceId(rest[0]))))
            case "step":
                for _ in range(rest[0]):
                    harness.step()
            case "reopen":
                epoch += 1
                harness.open_ring(geometry(epoch, rest[0], rest[1]))
            case "close":
                harness.close_ring()
    harness.open_ring(geometry(epoch + 1, 2, 16))
    harness.run()
    for number, request in asked.items():
        answer, expected = harness.answer(number), expected_answer(request, 64)
        if number in cancelled:
            assert answer == expected[: len(answer)]
            continue
        assert answer == expected
        finishes = [event for event in harness.events[number] if isinstance(event, GenerationFinished)]
        assert finishes == [GenerationFinished("stop" if expected and expected[-1] in request.end_ids else "length")]
        assert sum(isinstance(event, PromptScored) for event in harness.events[number]) == request.score_prompt
    assert harness.scheduler.kv_blocks_free == 16
    assert harness.scheduler.num_running == harness.scheduler.num_waiting == 0
    assert not harness.ring.tables, "nothing is left on the shards"
