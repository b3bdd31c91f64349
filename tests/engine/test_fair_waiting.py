"""Whose turn it is: small requests beside greedy clients, long prompts beside short ones, and nobody waits for ever."""

import itertools
from collections.abc import Iterator
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.coordinator.engine.events import GenerationRequested
from dairllm.coordinator.engine.facts import SchedulerLimits
from dairllm.coordinator.engine.requests import Asker, GenerationRequest, SequenceId
from dairllm.coordinator.engine.scheduler import Scheduler
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.coordinator.engine.turns import Turn, even_shares, take_turns
from tests.engine.simulated_clients import SimulatedClients

LIMITS = SchedulerLimits(context_length=2048)
CONCURRENT = 32
"""Sequences of one HTTP request that are with the engine at the same time."""


def greedy(clients: SimulatedClients, askers: list[Asker], n: int, prompt: int, answer: int) -> Iterator[None]:
    """Calls for n answers each; every step is a frame."""
    left = dict.fromkeys(askers, n - CONCURRENT)
    whose = {clients.ask(asker, prompt, answer): asker for asker in askers for _ in range(CONCURRENT)}
    while True:
        for number in clients.frame():
            asker = whose.get(number)
            if asker is not None and left[asker] > 0:
                left[asker] -= 1
                whose[clients.ask(asker, prompt, answer)] = asker
        yield


@pytest.mark.parametrize("num_blocks", [2000, 200])
@pytest.mark.parametrize("one_address", [False, True])
def test_small_requests_are_answered_at_once_beside_four_clients_that_want_much(num_blocks: int, one_address: bool) -> None:
    clients = SimulatedClients(LIMITS, num_blocks)
    name = (lambda who: "everybody") if one_address else str
    frames = greedy(clients, [Asker(name(f"greedy {call}"), call) for call in range(1, 5)], 128, 20, 200)
    for _ in range(50):
        next(frames)
    small = [clients.ask(Asker(name(f"small {index}"), 100 + index), 15, 8) for index in range(10)]
    while any(clients.waited[number].end_frames is None for number in small):
        next(frames)
    assert max(clients.waited[number].first_frames or 0 for number in small) <= 8


def test_a_long_prompt_begins_soon_in_a_small_cache_full_of_short_answers() -> None:
    clients = SimulatedClients(LIMITS, num_blocks=70)
    for number in range(20):
        clients.ask(Asker(f"short {number}"), 20, 60)
    clients.frame()
    long = clients.ask(Asker("long"), 1500, 10)
    for newcomer in itertools.count():
        if clients.waited[long].end_frames is not None:
            break
        clients.ask(Asker(f"newcomer {newcomer}"), 20, 60)
        clients.frame()
        assert newcomer < 1000
    others = [one.first_frames for number, one in clients.waited.items() if number != long and one.first_frames is not None]
    assert (clients.waited[long].first_frames or 0) <= 200
    assert median(others) < 100, "those behind it were not blocked"


def test_a_short_prompt_does_not_wait_behind_a_long_one_of_another_client() -> None:
    clients = SimulatedClients(LIMITS, num_blocks=200)
    clients.ask(Asker("answers"), 5, 200)
    clients.frame()
    long = clients.ask(Asker("long"), 1500, 5)
    short = clients.ask(Asker("short"), 20, 5)
    while clients.waited[long].first_frames is None:
        clients.frame()
    assert (clients.waited[short].first_frames or 0) <= 6
    assert (clients.waited[long].first_frames or 0) <= 1500 // LIMITS.short_chunk_rows + 8


def test_answers_that_would_fill_every_frame_leave_rows_to_prompts_and_take_turns() -> None:
    clients = SimulatedClients(LIMITS._replace(max_batch_rows=4, short_chunk_rows=2, max_running=12), 200, num_stages=1)
    running = [clients.ask(Asker(f"{index}"), 2, 40) for index in range(10)]
    while any(clients.waited[number].first_frames is None for number in running):
        clients.frame()
    late = clients.ask(Asker("late"), 20, 2)
    while clients.waited[late].end_frames is None:
        clients.frame()
    assert (clients.waited[late].first_frames or 0) <= 12
    while not clients.is_idle:
        clients.frame()
    ends = [clients.waited[number].frame + (clients.waited[number].end_frames or 0) for number in running]
    assert max(ends) - min(ends) <= 40, "no answer was served before the others"


def test_nobody_is_set_back_in_turn_with_another() -> None:
    """Two clients that both want more than half of the cache: each row is computed about once."""
    clients = SimulatedClients(LIMITS, num_blocks=40)
    for _ in range(6):
        for client in "ab":
            clients.ask(Asker(client), 500, 60)
    while not clients.is_idle:
        clients.frame()
    assert sum(clients.rows) <= 1.25 * 12 * 560


asked = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 60), st.integers(1, 60))
"""Client, call, rows of the prompt and of the answer."""


@settings(max_examples=25, deadline=None)
@given(st.lists(asked, min_size=1, max_size=12), st.lists(asked, min_size=1, max_size=8), st.booleans(), st.integers(8, 40), st.booleans())
def test_whoever_came_first_ends_whatever_comes_after(
    early: list[tuple[int, int, int, int]], flood: list[tuple[int, int, int, int]], strangers: bool, num_blocks: int, alike: bool
) -> None:
    """Within frames that depend on the requests before alone, however many come later, also if each comes from a client never seen."""
    small = SchedulerLimits(context_length=128, max_batch_rows=16, short_chunk_rows=8, max_running=6, max_waiting=30)
    clients = SimulatedClients(small, num_blocks, block_tokens=16, alike=alike)
    first = [clients.ask(Asker(f"{client}", call), prompt, answer) for client, call, prompt, answer in early]
    bound = 30 + 4 * sum(prompt + answer for _, _, prompt, answer in early) + 300 * len(early)
    for number, (client, call, prompt, answer) in enumerate(itertools.cycle(flood)):
        if all(clients.waited[one].end_frames is not None for one in first):
            break
        assert not clients.is_idle, "there is work, and nothing is computed"
        name = f"stranger {number}" if strangers else f"{client}"
        if not clients.scheduler.is_full_for(name):
            clients.ask(Asker(name, call), prompt, answer)
        clients.frame()
        assert clients.frames < bound
    while not clients.is_idle:
        clients.frame()
    assert all(one.end_frames is not None for one in clients.waited.values())


@settings(max_examples=50, deadline=None)
@given(st.lists(asked, max_size=20), st.integers(8, 40))
def test_the_same_requests_have_the_same_turns(requests: list[tuple[int, int, int, int]], num_blocks: int) -> None:
    def waits() -> list[int | None]:
        clients = SimulatedClients(SchedulerLimits(context_length=128, max_batch_rows=16, max_running=6), num_blocks, block_tokens=16)
        for client, call, prompt, answer in requests:
            clients.ask(Asker(f"{client}", call), prompt, answer)
            clients.frame()
        while not clients.is_idle:
            clients.frame()
        return [one.first_frames for one in clients.waited.values()]

    assert waits() == waits()


def test_turns_go_round_clients_then_calls_then_by_age() -> None:
    askers = [Asker("a", 1), Asker("a", 1), Asker("a", 2), Asker("b"), Asker("b"), Asker("c", 1)]
    sequences = [Sequence(SequenceId(index), GenerationRequest((1,), asker=asker), 9) for index, asker in enumerate(askers, 1)]
    turns = take_turns(sequences, lambda sequence: 10)
    assert turns == {1: Turn(0, SequenceId(1)), 3: Turn(10, SequenceId(3)), 2: Turn(20, SequenceId(2))} | {
        4: Turn(0, SequenceId(4)),
        5: Turn(10, SequenceId(5)),
        6: Turn(0, SequenceId(6)),
    }
    assert sorted(turns, key=lambda number: turns[number]) == [1, 4, 6, 3, 5, 2]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(0, 200))
def test_even_shares_give_out_all_and_nobody_has_more_than_one_who_lacks(wanted: list[int], total: int) -> None:
    shares = even_shares(wanted, total)
    assert sum(shares) == min(total, sum(wanted))
    lacking = [share for share, want in zip(shares, wanted, strict=True) if share < want]
    assert all(share <= min(lacking, default=share) + 1 for share in shares)
    assert all(share <= want for share, want in zip(shares, wanted, strict=True))


def test_a_queue_that_one_client_has_filled_has_places_for_others() -> None:
    scheduler = Scheduler(LIMITS._replace(max_waiting=10))
    numbers = itertools.count()

    def ask_while_not_full(client: str, most: int) -> int:
        for asked_so_far in range(most):
            if scheduler.is_full_for(client):
                return asked_so_far
            scheduler.handle(GenerationRequested(SequenceId(next(numbers)), GenerationRequest((1,), asker=Asker(client))))
        return most

    assert ask_while_not_full("greedy", 100) == 10
    assert ask_while_not_full("other", 100) == 5
    assert sum(ask_while_not_full(f"{stranger}", 1) for stranger in range(100)) == 5, "twice as many at most"
