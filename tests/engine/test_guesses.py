"""Tokens that are computed before it is known that they come: where guesses come from, when they pay, and that they change nothing."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.engine.actions import EmitEvent, FailSequence
from dairllm.coordinator.engine.events import BatchCompleted
from dairllm.coordinator.engine.guesses.acceptance import Acceptance
from dairllm.coordinator.engine.guesses.choice import best_count, pays_ahead
from dairllm.coordinator.engine.guesses.pace import FORGOTTEN_AFTER, FrameTime, RingPace
from dairllm.coordinator.engine.guesses.repetition import LONGEST_PAST, Repetition
from dairllm.coordinator.engine.requests import GenerationRequest, TokenGenerated
from dairllm.mesh.ring.frames import MicroBatchResult, SequenceResult, TokenScore
from tests.engine.prophets import Prophet
from tests.engine.test_scheduler import Harness, expected_answer, geometry, limits

REQUEST = GenerationRequest((1, 2, 3), max_tokens=40)


def frames_of(harness: Harness, *requests: GenerationRequest) -> int:
    """Runs to the end; the frames that it took."""
    for number, request in enumerate(requests):
        harness.request(number, request)
    num_frames = 0
    while harness.ring.queue:
        harness.step()
        num_frames += 1
    for number, request in enumerate(requests):
        assert harness.answer(number) == expected_answer(request, 64)
    return num_frames


# What goes around the ring


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_right_guesses_bring_many_tokens_with_one_frame(stages: int) -> None:
    harness = Harness(limits(), Prophet())
    harness.open_ring(geometry(1, stages, 16))
    assert frames_of(harness, REQUEST) <= 8
    assert harness.scheduler.num_guessed == harness.scheduler.num_guessed_right >= 30


def test_guesses_fill_a_ring_that_would_be_idle() -> None:
    """One after the other, a frame each, where a row more is as dear as a frame."""
    harness = Harness(limits(max_batch_rows=1), Prophet())
    harness.open_ring(geometry(1, 4, 16))
    harness.request(1, REQUEST)
    most = 0
    while harness.ring.queue:
        most = max(most, len(harness.ring.queue))
        harness.step()
    assert most == 4
    assert harness.answer(1) == expected_answer(REQUEST, 64)


def test_guesses_that_are_mostly_wrong_are_not_sent() -> None:
    harness = Harness(limits(), Prophet(wrong=1.0, chance=0.01))
    harness.open_ring(geometry(1, 1, 16))
    frames_of(harness, REQUEST)
    assert harness.scheduler.num_guessed == 0


def test_nothing_is_guessed_if_that_is_not_wanted_or_a_state_could_not_be_set_back() -> None:
    for changes in ({"guesses": False}, {"tokens_per_place": 32}):
        harness = Harness(limits(**changes), Prophet())
        harness.open_ring(geometry(1, 2, 16))
        assert frames_of(harness, REQUEST) == 41 if "guesses" in changes else frames_of(harness, REQUEST) > 0
        assert harness.scheduler.num_guessed == 0


def test_nobody_waits_for_the_guesses_of_others() -> None:
    """As many frames as there are stages are full of tokens that are known; guesses go along, none before its time."""
    harness = Harness(limits(), Prophet(wrong=0.5))
    harness.open_ring(geometry(1, 2, 64))
    for number in range(4):
        harness.request(number, GenerationRequest((number, 2), max_tokens=12))
    while not all(harness.answer(number) for number in range(4)):
        harness.step()
    for _ in range(8):
        for slice_ in (slice_ for frame in harness.ring.queue for slice_ in frame.slices):
            assert slice_.first_position == 2 + len(harness.answer(slice_.sequence_id - 1)) - 1
        harness.step()
    harness.run()


def test_guesses_take_no_cache_from_others() -> None:
    harness = Harness(limits(), Prophet())
    harness.open_ring(geometry(1, 2, 22))
    requests = [GenerationRequest((number, 2, 3), max_tokens=40) for number in range(2)]
    frames_of(harness, *requests)
    assert harness.scheduler.num_guessed > 0
    assert harness.scheduler.kv_blocks_free == 22


def test_no_guess_goes_beyond_the_end() -> None:
    """Neither behind a token that ends the answer nor behind its greatest length."""
    ends = expected_answer(REQUEST, 64)[20]
    harness = Harness(limits(), Prophet())
    harness.open_ring(geometry(1, 1, 16))
    frames_of(harness, GenerationRequest((1, 2, 3), max_tokens=40, end_ids=frozenset({ends})), GenerationRequest((5, 2), max_tokens=4))
    assert harness.scheduler.num_guessed == harness.scheduler.num_guessed_right


@pytest.mark.parametrize("fails_always", [False, True])
def test_a_guess_that_has_no_numbers_fails_no_answer(fails_always: bool) -> None:
    """What fails with guesses is done again without."""
    harness = Harness(limits(), Prophet())
    harness.open_ring(geometry(1, 1, 16))
    harness.request(1, REQUEST)
    failed: list[FailSequence] = []
    while harness.ring.queue:
        frame = harness.ring.queue[0]
        has_guesses = any(slice_.num_samples > 1 for slice_ in frame.slices)
        if not has_guesses and not (fails_always and harness.scheduler.num_guessed):
            harness.step()
            continue
        harness.ring.compute()
        results = tuple(SequenceResult(slice_.sequence_id, failure="no numbers") for slice_ in frame.slices)
        completed = BatchCompleted(MicroBatchResult(1, frame.batch_id, results, ()))
        assert harness.scheduler.fault_in(completed.result, 64) == ""
        actions = harness.scheduler.handle(completed)
        failed += [action for action in actions if isinstance(action, FailSequence)]
        harness.apply(actions)
    assert len(failed) == fails_always
    assert fails_always or harness.answer(1) == expected_answer(REQUEST, 64)


def test_tokens_of_one_frame_come_in_their_order() -> None:
    harness = Harness(limits(), Prophet())
    harness.open_ring(geometry(1, 1, 16))
    harness.request(1, REQUEST)
    most = 0
    while harness.ring.queue:
        completed = harness.ring.compute()
        actions = harness.scheduler.handle(BatchCompleted(completed.result, 1.0))
        most = max(most, sum(isinstance(action, EmitEvent) and isinstance(action.event, TokenGenerated) for action in actions))
        harness.apply(actions)
    assert harness.answer(1) == expected_answer(REQUEST, 64)
    assert most == 1, "a frame without timings says nothing of what guesses cost"


# Where guesses come from


def guessed(tokens: list[int], count: int, num_ahead: int = 0) -> list[int]:
    repetition = Repetition(Acceptance())
    assert repetition.follow(tokens, len(tokens)) == len(tokens)
    return [guess.token_id for guess in islice(repetition.guesses(num_ahead), count)]


def test_what_followed_before_is_guessed_to_follow_again() -> None:
    assert guessed([1, 2, 3, 4, 5, 9, 1, 2, 3], 3) == [4, 5, 9]
    assert guessed([1, 2, 3, 4, 5, 9, 1, 2, 3], 2, num_ahead=1) == [5, 9]
    assert guessed([1, 2, 3], 3) == []
    assert guessed([1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1], "and so on"


def test_of_several_places_the_one_with_the_longest_past_counts() -> None:
    assert guessed([7, 1, 2, 3, 50, 8, 1, 2, 3, 60, 7, 1, 2, 3], 1) == [50]
    assert guessed([7, 1, 2, 3, 50, 7, 1, 2, 3, 60, 7, 1, 2, 3], 1) == [60], "of the same past the last one"


def test_a_long_prompt_is_taken_in_piece_by_piece() -> None:
    tokens = [*range(200), 5, 6]
    repetition = Repetition(Acceptance())
    for _ in range(2):
        assert repetition.follow(tokens, 100) == 100
        assert next(repetition.guesses(0), None) is None
    assert repetition.follow(tokens, 100) == 2
    assert next(repetition.guesses(0)).token_id == 7


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80), st.data())
def test_a_guess_is_what_follows_the_longest_past_or_goes_on_where_it_was_right(tokens: list[int], data: st.DataObject) -> None:
    """Told one by one or all at once. Places that are tried are bounded, so that a longer past may be missed only in a long list."""
    repetition, told = Repetition(Acceptance()), []
    for token in tokens:
        told.append(token)
        if data.draw(st.booleans()):
            repetition.follow(told, len(told))
    repetition.follow(told, len(told))
    guess = next(repetition.guesses(0), None)
    places = [place for place in range(2, len(tokens)) if tokens[place - 2 : place] == tokens[-2:]]
    assert (guess is None) == (not places)
    if guess is not None:
        assert guess.token_id in {tokens[place] for place in places}
        assert 0 < guess.chance < 1


def test_how_often_guesses_were_right_is_learned_by_what_spoke_for_them() -> None:
    others = Acceptance()
    acceptance = Acceptance(others)
    before = acceptance.chance(2), acceptance.chance(LONGEST_PAST)
    for _ in range(50):
        acceptance.note(2, False)
        acceptance.note(LONGEST_PAST, True)
    assert acceptance.chance(2) < 0.02 < before[0]
    assert acceptance.chance(LONGEST_PAST) > 0.95 > before[1]
    assert Acceptance(others).chance(2) < before[0], "others begin with what this one has shown"
    for _ in range(200):
        acceptance.note(2, True)
    assert acceptance.chance(2) > 0.9, "what is long ago counts less"


# What pays


def test_guesses_go_along_as_far_as_they_bring_more_than_they_cost() -> None:
    assert best_count([0.9, 0.8, 0.7], 1.0, lambda count: 1.0) == 3
    assert best_count([0.9, 0.8, 0.7], 1.0, lambda count: 1.0 + count) == 0
    assert best_count([0.9, 0.3, 0.1], 1.0, lambda count: 1.0 + 0.25 * count) == 1
    assert best_count([0.01], 1.0, lambda count: 1.0) == 0, "too little to be sure"
    assert best_count([], 1.0, lambda count: 1.0) == 0


@given(st.lists(st.floats(0.01, 1.0), max_size=8), st.integers(1, 4), st.floats(0.0, 2.0))
def test_guesses_never_make_a_frame_bring_less_in_its_time(chances: list[float], tokens: int, row_s: float) -> None:
    chances = sorted(chances, reverse=True)
    best = best_count(chances, tokens, lambda count: 1.0 + row_s * count)
    assert (tokens + sum(chances[:best])) / (1.0 + row_s * best) >= tokens


def test_a_frame_is_sent_ahead_where_it_saves_more_than_it_costs() -> None:
    assert pays_ahead(0.5, alone_s=3.0, beside_s=3.0, stage_s=1.0)
    assert not pays_ahead(0.2, alone_s=3.0, beside_s=3.0, stage_s=1.0), "computed in vain, most often"
    assert not pays_ahead(0.3, alone_s=3.0, beside_s=4.5, stage_s=1.5), "machines share what they compute with"
    assert not pays_ahead(1.0, alone_s=1.0, beside_s=1.0, stage_s=1.0)


def test_times_of_frames_are_told_by_rows_and_derived_where_they_were_not_measured() -> None:
    pace = RingPace()
    assert pace.time(1, is_beside=False) is None
    for _ in range(30):
        pace.note(1, FrameTime(0.3, 0.1), is_beside=False)
        pace.note(5, FrameTime(0.5, 0.2), is_beside=False)
    assert pace.time(1, is_beside=True) == pace.time(1, is_beside=False), "as long as it was measured in one way only"
    assert pace.time(3, is_beside=False) == pytest.approx((0.4, 0.15), rel=0.02)
    assert pace.time(8, is_beside=False) > pace.time(5, is_beside=False)  # type: ignore[operator]
    pace.note(1, FrameTime(0.9, 0.4), is_beside=True)
    assert pace.time(1, is_beside=True) > pace.time(1, is_beside=False)  # type: ignore[operator]
    for _ in range(FORGOTTEN_AFTER):
        pace.note(1, FrameTime(0.3, 0.1), is_beside=False)
    assert pace.time(5, is_beside=False) != pytest.approx((0.5, 0.2), rel=0.2), "what was measured long ago is forgotten"


def test_what_a_last_shard_gives_for_a_wrong_guess_is_a_fault() -> None:
    harness = Harness(limits(max_batch_rows=1), Prophet(wrong=1.0))
    harness.open_ring(geometry(1, 3, 16))
    harness.request(1, REQUEST)
    while len(harness.ring.queue) < 2:
        harness.step()
    harness.step()
    dead = harness.ring.compute().result
    assert harness.scheduler.fault_in(dead, 64) == ""
    (one,) = dead.results
    lie = MicroBatchResult(dead.epoch, dead.batch_id, (one._replace(sampled=(TokenScore(1, -1.0),)),), ())
    assert "a token that nobody has asked for" in harness.scheduler.fault_in(lie, 64)
