"""The scheduler against a ring that checks everything a real one would, driven by hypothesis through cancellations and lost plans."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.coordinator.cluster.identities import Holder
from dairllm.coordinator.engine.actions import (
    EmitEvent,
    ReportDrained,
    ReportRecovered,
    ReportRecovery,
    SchedulerAction,
    SendBatch,
)
from dairllm.coordinator.engine.events import (
    BatchCompleted,
    GenerationCancelled,
    GenerationRequested,
    RingAvailable,
    RingDraining,
    RingUnavailable,
)
from dairllm.coordinator.engine.facts import RingGeometry, SchedulerLimits
from dairllm.coordinator.engine.guesses.guess_planner import MakeGuesser
from dairllm.coordinator.engine.guesses.repetition import Repetition
from dairllm.coordinator.engine.recovery import Placement, StagePlace
from dairllm.coordinator.engine.requests import (
    GenerationFinished,
    GenerationRequest,
    PrefixReused,
    PromptScored,
    SequenceId,
    TokenGenerated,
)
from dairllm.coordinator.engine.scheduler import Scheduler
from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.mesh.ring.frames import StageTiming
from tests.engine.prophets import Prophet
from tests.engine.shard_contents import next_token
from tests.engine.simulated_shards import SimulatedRing

BLOCK_TOKENS = 4
END_ID = 7


def expected_answer(request: GenerationRequest, context_length: int) -> list[int]:
    tokens = list(request.prompt_ids)
    limit = context_length if request.max_tokens is None else min(context_length, len(tokens) + request.max_tokens)
    while len(tokens) < limit:
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] in request.end_ids:
            break
    return tokens[len(request.prompt_ids) :]


NUM_UNITS = 8


def placement(*stages: tuple[str, int]) -> Placement:
    """Stages as (name and boot in two letters, last boundary)."""
    starts = [0, *(stop for _, stop in stages)]
    return tuple(StagePlace(Holder(who[0], who[1:]), range(start, stop)) for start, (who, stop) in zip(starts, stages, strict=False))


def even_placement(stages: int) -> Placement:
    return placement(*((f"{'abcd'[i]}1", NUM_UNITS * (i + 1) // stages) for i in range(stages)))


def geometry(epoch: int, stages: int | Placement, blocks: int) -> RingGeometry:
    where = even_placement(stages) if isinstance(stages, int) else stages
    return RingGeometry(epoch, where, blocks, BLOCK_TOKENS, "F32")


NUM_TOKENS = 2**31


STAGE_S = 1.0
"""Of a frame, at every stage; a row more takes ROW_S more."""
ROW_S = 0.01


class Harness:
    def __init__(self, limits: SchedulerLimits, make_guesser: MakeGuesser = Repetition) -> None:
        self.scheduler = Scheduler(limits, make_guesser)
        self.ring = SimulatedRing()
        self.events: dict[int, list[object]] = {}
        self.reports: list[SchedulerAction] = []

    def apply(self, actions: list[SchedulerAction]) -> None:
        self.scheduler.check_invariants()
        for action in actions:
            match action:
                case SendBatch(batch):
                    assert 0 < batch.num_rows <= self.scheduler.limits.max_batch_rows or batch.ends
                    self.ring.send(batch)
                case EmitEvent(sequence_id, event):
                    self.events.setdefault(sequence_id, []).append(event)
                case other:
                    self.reports.append(other)

    def open_ring(self, ring_geometry: RingGeometry) -> None:
        has_moved = bool(self.ring.transferred)
        present = self.ring.open(ring_geometry, self.scheduler.alive_ring_ids)
        ring_geometry = replace(ring_geometry, present=present, has_moved=has_moved)
        self.apply(self.scheduler.handle(RingAvailable(ring_geometry)))

    def close_ring(self) -> None:
        self.ring.close()
        self.apply(self.scheduler.handle(RingUnavailable()))

    def request(self, number: int, request: GenerationRequest) -> None:
        self.apply(self.scheduler.handle(GenerationRequested(SequenceId(number), request)))

    def cancel(self, number: int) -> None:
        self.apply(self.scheduler.handle(GenerationCancelled(SequenceId(number))))

    def step(self) -> None:
        if self.ring.queue:
            completed = self._timed(self.ring.queue[0].num_rows, self.ring.compute())
            assert self.scheduler.fault_in(completed.result, NUM_TOKENS) == ""
            self.apply(self.scheduler.handle(completed))

    def _timed(self, num_rows: int, completed: BatchCompleted) -> BatchCompleted:
        assert self.ring.geometry is not None
        stage_s = STAGE_S + ROW_S * num_rows
        places = self.ring.geometry.placement
        timings = tuple(StageTiming(place.holder.name, 0, round(stage_s * 1e6), 0, num_rows, 0) for place in places)
        return BatchCompleted(replace(completed.result, timings=timings), stage_s * len(places))

    def run(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.ring.queue:
                return
            self.step()
        raise AssertionError("the scheduler never came to rest")

    def answer(self, number: int) -> list[int]:
        return [event.token.token_id for event in self.events.get(number, []) if isinstance(event, TokenGenerated)]

    @property
    def known_on_shards(self) -> set[int]:
        return {ring_id for shard in self.ring.shards.values() for ring_id in shard.sequences}


def limits(**changes: Any) -> SchedulerLimits:
    return SchedulerLimits(context_length=64, max_batch_rows=16, short_chunk_rows=4, max_running=6)._replace(**changes)


def test_one_sequence_gets_every_token_and_a_finish() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 16))
    request = GenerationRequest((1, 2, 3), max_tokens=5)
    harness.request(1, request)
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)
    assert harness.events[1][-1] == GenerationFinished("length")
    assert harness.scheduler.kv_blocks_free == 16
    assert not harness.known_on_shards


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


def test_results_of_an_old_epoch_are_ignored() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 64))
    harness.request(1, GenerationRequest((1, 2), max_tokens=2))
    stale = harness.ring.compute()
    harness.open_ring(geometry(2, 1, 64))
    harness.apply(harness.scheduler.handle(stale))
    assert harness.answer(1) == []


LONG_PROMPTS = [tuple(range(first, first + 40)) for first in (1, 2)]
prompts = st.one_of(
    st.lists(st.integers(0, 63), min_size=1, max_size=40).map(tuple),
    st.builds(
        lambda prompt, kept, others: (*prompt[:kept], *others),
        st.sampled_from(LONG_PROMPTS),
        st.integers(0, 36),
        st.lists(st.integers(0, 1), min_size=1, max_size=4),
    ),
)
"""Many begin as others do."""
requests = st.builds(
    GenerationRequest,
    prompt_ids=prompts,
    max_tokens=st.none() | st.integers(0, 20),
    end_ids=st.sampled_from([frozenset(), frozenset({END_ID})]),
    score_prompt=st.booleans(),
)


def test_a_lost_shard_costs_a_replay_of_its_layers_only() -> None:
    harness = Harness(limits())
    three = placement(("a1", 3), ("b1", 5), ("c1", 8))
    harness.open_ring(geometry(1, three, 64))
    request = GenerationRequest(tuple(range(1, 40)), max_tokens=10)
    harness.request(1, request)
    while not harness.answer(1):
        harness.step()
    harness.close_ring()
    harness.open_ring(geometry(2, placement(("a1", 5), ("c1", 8)), 64))
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)
    report = next(report for report in harness.reports if isinstance(report, ReportRecovery))
    assert (report.num_kept, report.num_replayed, report.num_restarted) == (0, 1, 0)
    assert report.replayed_work * NUM_UNITS == report.all_work * 2, "two of eight units compute again"
    assert isinstance(harness.reports[-1], ReportRecovered)


@pytest.mark.parametrize("is_replayed", [False, True])
def test_a_prompt_is_cut_so_that_all_stages_compute_at_once(is_replayed: bool) -> None:
    """One that fits one frame, too."""
    harness = Harness(limits(max_batch_rows=48))
    request = GenerationRequest(tuple(range(1, 41)), max_tokens=2)
    if is_replayed:
        harness.open_ring(geometry(1, 1, 64))
        harness.request(1, request)
        while not harness.answer(1):
            harness.step()
        harness.close_ring()
    harness.open_ring(geometry(2, 2, 64))
    if not is_replayed:
        harness.request(1, request)
    assert [frame.num_rows for frame in harness.ring.queue] == [5, 5, 4], "a chunk for each stage, and one on its way back"
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)


def test_where_weights_are_streamed_all_rows_share_a_frame() -> None:
    """Of every sequence, and of a prompt beside them as much as there is room for."""
    harness = Harness(limits(max_batch_rows=48))
    harness.open_ring(replace(geometry(1, 3, 64), streams=True))
    requests = [GenerationRequest((number, 2, 3), max_tokens=6) for number in range(4)]
    for number, request in enumerate(requests):
        harness.request(number, request)
    while not all(harness.answer(number) for number in range(4)):
        harness.step()
    assert [len(frame.slices) for frame in harness.ring.queue] == [4]
    harness.request(4, GenerationRequest(tuple(range(1, 41)), max_tokens=2))
    harness.step()
    assert [frame.num_rows for frame in harness.ring.queue] == [4 + 40]
    harness.run()
    assert [harness.answer(number) for number in range(4)] == [expected_answer(request, 64) for request in requests]


def test_a_result_that_cannot_be_changes_nothing() -> None:
    """Whoever finds it so closes the ring; the answers go on in the next one."""
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 64))
    requests = [GenerationRequest((number, 2, 3), max_tokens=4) for number in range(2)]
    for number, request in enumerate(requests):
        harness.request(number, request)
    completed = harness.ring.compute().result
    wrong = replace(completed, results=completed.results[1:])
    assert harness.scheduler.fault_in(completed, NUM_TOKENS) == ""
    assert harness.scheduler.fault_in(wrong, NUM_TOKENS) == "sent no token where one was asked for for sequence 1 in frame 1"
    assert harness.scheduler.fault_in(replace(wrong, epoch=2), NUM_TOKENS) == "", "of another plan, which is not this one's business"
    harness.close_ring()
    harness.open_ring(geometry(2, 1, 64))
    harness.run()
    assert [harness.answer(number) for number in range(2)] == [expected_answer(request, 64) for request in requests]
    assert not harness.known_on_shards


def test_transferred_layers_cost_nothing() -> None:
    harness = Harness(limits())
    before, after = placement(("a1", 8)), placement(("a1", 5), ("b1", 8))
    harness.open_ring(geometry(1, before, 64))
    requests = [GenerationRequest((number, 2, 3), max_tokens=12) for number in range(3)]
    for number, request in enumerate(requests):
        harness.request(number, request)
    for _ in range(6):
        harness.step()
    harness.apply(harness.scheduler.handle(RingDraining()))
    harness.run()
    assert isinstance(harness.reports[-1], ReportDrained)
    moved = frozenset({5, 6})
    harness.ring.transfer(after, moved, before, harness.scheduler.used_block_ids)
    harness.close_ring()
    harness.open_ring(geometry(2, after, 64))
    assert harness.ring.replayed_rows == 0
    harness.run()
    assert [harness.answer(number) for number in range(3)] == [expected_answer(request, 64) for request in requests]
    assert harness.ring.replayed_rows == 0


@pytest.mark.parametrize(("intact_blocks", "restarted"), [(8, 0), (7, 1), (None, 0)])
def test_blocks_that_a_shard_has_given_back_meanwhile_mean_a_restart(intact_blocks: int | None, restarted: int) -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, 1, 16))
    request = GenerationRequest(tuple(range(1, 30)), max_tokens=8)
    harness.request(1, request)
    for _ in range(3):
        harness.step()
    assert harness.scheduler.used_block_ids == tuple(range(8))
    harness.close_ring()
    harness.open_ring(replace(geometry(2, 1, 16), intact_blocks=intact_blocks))
    assert [report.num_restarted for report in harness.reports if isinstance(report, ReportRecovery)] == [restarted]
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)


def test_lost_records_mean_a_restart() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, placement(("a1", 3), ("b1", 8)), 64))
    request = GenerationRequest(tuple(range(1, 30)), max_tokens=8)
    harness.request(1, request)
    for _ in range(5):
        harness.step()
    next(iter(harness.ring.shards.values())).sent_rows.clear()
    harness.close_ring()
    harness.open_ring(geometry(2, placement(("a1", 3), ("c1", 8)), 64))
    harness.run()
    assert harness.answer(1) == expected_answer(request, 64)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    cuts = draw(st.lists(st.integers(1, NUM_UNITS - 1), min_size=len(names) - 1, max_size=len(names) - 1, unique=True))
    boots = [draw(st.sampled_from("112")) for _ in names]
    return placement(*((n + b, stop) for n, b, stop in zip(names, boots, [*sorted(cuts), NUM_UNITS], strict=True)))


stimuli = st.one_of(
    st.tuples(st.just("request"), requests),
    st.tuples(st.just("cancel"), st.integers(0, 10)),
    st.tuples(st.just("step"), st.integers(1, 10)),
    st.tuples(st.just("break"), st.integers(0, 4), placements(), st.integers(16, 40), st.booleans()),
    st.tuples(st.just("move"), placements(), st.integers(16, 40), st.sets(st.integers(1, NUM_UNITS - 2))),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("forget sent rows"), st.none()),
)

guessers = st.just(Repetition) | st.builds(Prophet, st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.just(0.9), st.integers(0, 9))


@settings(max_examples=400, deadline=None)
@given(st.lists(stimuli, min_size=1, max_size=40), st.sampled_from(PrefixReuse), guessers)
def test_every_answer_is_right_whatever_happens(script: list[tuple[str, Any]], reuse: PrefixReuse, make_guesser: MakeGuesser) -> None:
    harness = Harness(limits(prefix_reuse=reuse), make_guesser)
    epoch = 1
    now = even_placement(2)
    harness.open_ring(geometry(epoch, now, 16))
    asked: dict[int, GenerationRequest] = {}
    cancelled: set[int] = set()
    for kind, *rest in script:
        match kind:
            case "request":
                asked[len(asked)] = rest[0]
                harness.request(len(asked) - 1, rest[0])
            case "cancel":
                if rest[0] in asked:
                    cancelled.add(rest[0])
                harness.cancel(rest[0])
            case "step":
                for _ in range(rest[0]):
                    harness.step()
            case "break":
                if harness.ring.geometry is not None:
                    harness.ring.compute_partly(rest[0])
                harness.close_ring()
                epoch, now = epoch + 1, rest[1]
                harness.open_ring(replace(geometry(epoch, now, rest[2]), streams=rest[3]))
            case "move":
                harness.apply(harness.scheduler.handle(RingDraining()))
                harness.run()
                transferred = frozenset(rest[2]) & _held(harness, now)
                harness.ring.transfer(rest[0], transferred, now, harness.scheduler.used_block_ids)
                harness.close_ring()
                epoch, now = epoch + 1, rest[0]
                harness.open_ring(geometry(epoch, now, rest[1]))
            case "close":
                harness.close_ring()
            case "forget sent rows":
                for shard in harness.ring.shards.values():
                    shard.sent_rows.clear()
    harness.open_ring(geometry(epoch + 1, 2, 16))
    harness.run()
    for number, request in asked.items():
        answer, expected = harness.answer(number), expected_answer(request, 64)
        if number in cancelled:
            assert answer == expected[: len(answer)]
            continue
        assert answer == expected
        finishes = [event for event in harness.events[number] if isinstance(event, GenerationFinished)]
        reason = "stop" if expected and expected[-1] in request.end_ids else "length"
        assert finishes == [GenerationFinished(reason)]
        assert sum(isinstance(event, PrefixReused) for event in harness.events[number][1:]) == 0
        assert sum(isinstance(event, PromptScored) for event in harness.events[number]) == request.score_prompt
    assert harness.scheduler.kv_blocks_free == 16
    assert harness.scheduler.num_running == harness.scheduler.num_waiting == 0
    assert not harness.known_on_shards, "nothing is left on the shards"


def _held(harness: Harness, now: Placement) -> frozenset[int]:
    """Units whose owner still lives."""
    return frozenset(unit for stage in now if stage.holder in harness.ring.shards for unit in stage.units)


def test_no_more_sequences_run_than_have_places() -> None:
    """Where layers carry states along. A smaller plan has fewer places: the last ones begin anew, and nobody loses a token."""
    harness = Harness(limits(tokens_per_place=32))
    harness.open_ring(geometry(1, 2, 32))
    requests = {number: GenerationRequest((number, 2, 3), max_tokens=20) for number in range(1, 7)}
    for number, request in requests.items():
        harness.request(number, request)
    for _ in range(30):
        harness.step()
        assert harness.scheduler.num_running <= 4
    assert harness.scheduler.num_running == 4
    harness.close_ring()
    harness.open_ring(geometry(2, 2, 16))
    assert harness.scheduler.num_running == 2
    while harness.ring.queue:
        harness.step()
        assert harness.scheduler.num_running <= 2
    for number, request in requests.items():
        assert harness.answer(number) == expected_answer(request, 64)
