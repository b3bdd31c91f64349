"""Sequences that begin alike share cache blocks: what is computed, what is not, and who may share with whom."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.coordinator.engine.blocks import BlockPool
from dairllm.coordinator.engine.recovery import Placement
from dairllm.coordinator.engine.requests import Asker, GenerationRequest, PrefixReused, PromptScored
from dairllm.coordinator.prefix_reuse import PrefixReuse
from tests.engine.test_scheduler import Harness, expected_answer, geometry, limits, placement

SYSTEM_PROMPT = tuple(range(1, 41))
"""Ten blocks."""
WHOLE = placement(("a1", 8))
TWO_STAGES = placement(("a1", 4), ("b1", 8))


def ask(harness: Harness, number: int, *tail: int, max_tokens: int = 2, client: str = "", score_prompt: bool = False) -> GenerationRequest:
    request = GenerationRequest((*SYSTEM_PROMPT, *tail), max_tokens=max_tokens, asker=Asker(client), score_prompt=score_prompt)
    harness.request(number, request)
    return request


def reused(harness: Harness, number: int) -> int:
    return sum(event.num_tokens for event in harness.events[number] if isinstance(event, PrefixReused))


def count_rows(harness: Harness) -> int:
    """Runs to the end. Rows that were computed on the way."""
    num_rows = 0
    while harness.ring.queue:
        num_rows += harness.ring.queue[0].num_rows
        harness.step()
    return num_rows


def test_a_next_turn_computes_only_what_is_new() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, WHOLE, 32))
    first = ask(harness, 1, 60, max_tokens=8)
    count_rows(harness)
    second = (*first.prompt_ids, *harness.answer(1), 61, 62)
    harness.request(2, GenerationRequest(second, max_tokens=1))
    in_cache = (len(first.prompt_ids) + 8 - 1) // 4 * 4
    assert count_rows(harness) == len(second) - in_cache
    assert reused(harness, 2) == harness.scheduler.num_reused_tokens == in_cache
    assert harness.answer(2) == expected_answer(GenerationRequest(second, max_tokens=1), 64)


def test_the_last_row_of_a_prompt_is_always_computed() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, WHOLE, 32))
    for number in (1, 2):
        ask(harness, number)
        rows = count_rows(harness)
    assert (rows, reused(harness, 2)) == (4 + 1, 36)
    assert harness.answer(1) == harness.answer(2)


@pytest.mark.parametrize("stages", [WHOLE, TWO_STAGES])
def test_a_hundred_requests_that_come_at_once_compute_what_they_share_once(stages: Placement) -> None:
    harness = Harness(limits(max_running=100))
    harness.open_ring(geometry(1, stages, 256))
    requests = {number: ask(harness, number, 100 + number, max_tokens=1) for number in range(100)}
    assert count_rows(harness) == len(SYSTEM_PROMPT) + 100
    for number, request in requests.items():
        assert harness.answer(number) == expected_answer(request, 64)


def test_what_is_shared_takes_the_room_of_one() -> None:
    """Eleven blocks for the first, one for each of the others, and one more for each that may grow."""
    harness = Harness(limits(max_running=8))
    harness.open_ring(geometry(1, WHOLE, 11 + 7 + 8))
    for number in range(8):
        ask(harness, number, 100 + number, max_tokens=8)
    most = 0
    while harness.ring.queue:
        most = max(most, harness.scheduler.num_running)
        harness.step()
    assert most == 8


def test_who_waits_for_one_that_goes_away_computes_it_itself() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, WHOLE, 64))
    ask(harness, 1, 50)
    request = ask(harness, 2, 51)
    harness.step()
    assert harness.scheduler.num_running == harness.scheduler.num_waiting == 1
    harness.cancel(1)
    harness.run()
    assert harness.answer(2) == expected_answer(request, 64)
    assert 0 < reused(harness, 2) < 40, "what had come back was there"


def test_prompts_that_are_scored_are_computed_whole() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, WHOLE, 32))
    for number in (1, 2):
        ask(harness, number, 50, score_prompt=True, max_tokens=0)
        assert count_rows(harness) == 41
    assert harness.events[1] == harness.events[2]
    assert isinstance(harness.events[2][0], PromptScored)


@pytest.mark.parametrize(
    ("reuse", "from_own", "from_others"), [(PrefixReuse.EVERYONE, 40, 40), (PrefixReuse.CLIENT, 40, 0), (PrefixReuse.OFF, 0, 0)]
)
def test_who_shares_with_whom(reuse: PrefixReuse, from_own: int, from_others: int) -> None:
    harness = Harness(limits(prefix_reuse=reuse))
    harness.open_ring(geometry(1, WHOLE, 64))
    for number, client in enumerate(["a", "a", "b"]):
        ask(harness, number, 50, client=client)
        harness.run()
    assert [reused(harness, number) for number in range(3)] == [0, from_own, from_others]


def test_those_who_have_lost_what_they_share_replay_it_once() -> None:
    harness = Harness(limits(max_running=5))
    harness.open_ring(geometry(1, TWO_STAGES, 128))
    requests = {number: ask(harness, number, 50 + number, max_tokens=16) for number in range(5)}
    while not all(len(harness.answer(number)) >= 3 for number in requests):
        harness.step()
    harness.close_ring()
    harness.open_ring(geometry(2, placement(("a1", 4), ("c1", 8)), 128))
    harness.run()
    for number, request in requests.items():
        assert harness.answer(number) == expected_answer(request, 64)
    assert len(SYSTEM_PROMPT) < harness.ring.replayed_rows < len(SYSTEM_PROMPT) + 5 * (1 + 16)


def test_one_that_follows_a_replay_goes_on_alone_if_the_other_goes_away() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, TWO_STAGES, 128))
    ask(harness, 1, 50, max_tokens=16)
    request = ask(harness, 2, 51, max_tokens=16)
    while not (harness.answer(1) and harness.answer(2)):
        harness.step()
    harness.close_ring()
    harness.open_ring(geometry(2, placement(("a1", 4), ("c1", 8)), 128))
    harness.step()
    harness.cancel(1)
    harness.run()
    assert harness.answer(2) == expected_answer(request, 64)


@pytest.mark.parametrize("steps", range(8))
def test_who_replays_for_others_goes_away_while_one_that_shares_nothing_has_come_less_far(steps: int) -> None:
    """The second is scored: it makes the same blocks for itself, and has not got to those that the third one needs."""
    harness = Harness(limits(context_length=256))
    harness.open_ring(geometry(1, TWO_STAGES, 256))
    ask(harness, 1, 50, max_tokens=64)
    while not harness.answer(1):
        harness.step()
    scored = ask(harness, 2, 51, max_tokens=4, score_prompt=True)
    last = ask(harness, 3, 52, max_tokens=4, client="another")
    harness.step()
    harness.step()
    harness.close_ring()
    harness.open_ring(geometry(2, placement(("a1", 4), ("c1", 8)), 256))
    for _ in range(steps):
        harness.step()
    harness.cancel(1)
    harness.run()
    for number, request in ((2, scored), (3, last)):
        assert harness.answer(number) == expected_answer(request, 256)


@pytest.mark.parametrize(
    ("next_stages", "next_blocks", "in_cache"),
    [
        (TWO_STAGES, 64, 40),
        (placement(("a1", 4), ("c1", 8)), 64, 0),
        (TWO_STAGES, 6, 6 * 4),
    ],
)
def test_what_no_sequence_holds_outlives_a_plan_if_the_shards_keep_it(next_stages: Placement, next_blocks: int, in_cache: int) -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, TWO_STAGES, 64))
    ask(harness, 1, 50)
    harness.run()
    harness.close_ring()
    harness.open_ring(geometry(2, next_stages, next_blocks))
    harness.open_ring(geometry(3, next_stages, 64))
    request = ask(harness, 2, 51)
    harness.run()
    assert harness.answer(2) == expected_answer(request, 64)
    assert reused(harness, 2) == in_cache


def test_what_no_sequence_holds_moves_with_its_layers() -> None:
    harness = Harness(limits())
    harness.open_ring(geometry(1, TWO_STAGES, 64))
    ask(harness, 1, 50)
    harness.run()
    moved = placement(("a1", 4), ("c1", 8))
    used = harness.scheduler.used_block_ids
    assert len(used) == 10, "full blocks only"
    harness.ring.transfer(moved, frozenset(range(4, 8)), TWO_STAGES, used)
    harness.close_ring()
    harness.open_ring(geometry(2, moved, 64))
    request = ask(harness, 2, 51)
    harness.run()
    assert harness.answer(2) == expected_answer(request, 64)
    assert reused(harness, 2) == 40


def test_one_that_was_set_back_goes_on_from_what_is_left_of_it() -> None:
    """Two that grow beyond the cache: the second is set back, and computes less than all of it anew."""
    harness = Harness(limits())
    harness.open_ring(geometry(1, WHOLE, 16))
    requests = {number: GenerationRequest((number, *range(20)), max_tokens=20) for number in (1, 2)}
    for number, request in requests.items():
        harness.request(number, request)
    rows = count_rows(harness)
    assert harness.scheduler.num_reused_tokens > 0
    assert rows < 2 * 40 + 40 - harness.scheduler.num_reused_tokens
    for number, request in requests.items():
        assert harness.answer(number) == expected_answer(request, 64)


@given(st.data())
def test_a_pool_of_blocks_loses_none(data: st.DataObject) -> None:
    pool = BlockPool(12, 4)
    held: list[list[int]] = []
    keys = [bytes([number]) for number in range(6)]
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["allocate", "know", "share", "release", "resize"])):
            case "allocate":
                before = pool.num_free
                count = data.draw(st.integers(0, 13))
                blocks = pool.allocate(count)
                assert (blocks is None) == (count > before)
                held += [blocks] if blocks else []
            case "know" if held:
                pool.make_known(data.draw(st.sampled_from(held))[0], data.draw(st.sampled_from(keys)))
            case "share":
                found = pool.find(data.draw(st.permutations(keys)))
                pool.share(found)
                held += [found] if found else []
            case "release" if held:
                pool.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
            case "resize":
                highest = max((block for blocks in held for block in blocks), default=-1)
                pool.resize(data.draw(st.integers(highest + 1, 14)), data.draw(st.integers(0, 14)))
        pool.check_invariants(Counter(block for blocks in held for block in blocks))
    for blocks in held:
        pool.release(blocks)
    assert pool.num_free == pool.num_blocks
