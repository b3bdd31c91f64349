"""Many short histories of clusters with faults. `make soak` runs more; `python -m tests.simulation --seed N` shows one."""

import pytest

from dairllm.coordinator.cluster.books.cache_places import CachePlaces, Intact
from dairllm.coordinator.engine import sequences
from dairllm.coordinator.engine.blocks import BlockPool
from dairllm.coordinator.engine.recovery import Placement, SentRowsHolders, holders_under
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.mesh.ring.frames import Replay
from tests.simulation.simulation import Simulation, run
from tests.simulation.world import Wrong

SEEDS_PER_TEST = 100


def run_all(seeds: range) -> None:
    for seed in seeds:
        run(seed)


@pytest.mark.parametrize("first", range(0, 1000, SEEDS_PER_TEST))
def test_every_answer_is_right_or_has_properly_failed_and_the_cluster_serves_in_the_end(first: int) -> None:
    run_all(range(first, first + SEEDS_PER_TEST))


def test_nobody_is_blamed_who_is_only_slow_frozen_or_cut_off() -> None:
    for seed in range(1000, 1100):
        simulation = Simulation(seed, may_hang=False)
        simulation.run()
        assert not [line for line in simulation.world.log if "it is set aside until it proves" in line]


def test_who_hangs_is_blamed_by_name() -> None:
    blamed = 0
    for seed in range(200):
        simulation = run(seed)
        log = "\n".join(simulation.world.log)
        for name in simulation.shards:
            assert f"{name} hangs for" in log or f"shard {name} lives, but has computed nothing" not in log
        blamed += "it is set aside until it proves" in log
    assert blamed > 5


def test_a_seed_replays_exactly() -> None:
    logs = []
    for _ in range(2):
        simulation = Simulation(7)
        simulation.run()
        logs.append(list(simulation.world.log))
    assert logs[0] == logs[1]
    assert len(logs[0]) > 10


def not_planned(holders: SentRowsHolders, placement: Placement, present: frozenset[int]) -> Replay | None:
    return None


def from_anyone(holders: SentRowsHolders, placement: Placement, replay: Replay | None) -> SentRowsHolders:
    """As if who sends at a boundary now had always done so."""
    return holders_under(placement)


def test_the_simulation_notices_a_cache_that_is_believed_to_be_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = frozenset(range(100))
    monkeypatch.setattr(CachePlaces, "intact", lambda self, owners: Intact(everything, frozenset()))
    with pytest.raises(Wrong, match=r"seed \d+, .* was believed to have unit"):
        run_all(range(200))


def test_the_simulation_notices_that_nothing_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "plan_replay", not_planned)
    with pytest.raises(Wrong, match=r"seed \d+, .* was believed to have unit"):
        run_all(range(200))


def test_the_simulation_notices_lost_blocks_that_are_believed_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockPool, "forget_all", lambda self: None)
    with pytest.raises(Wrong, match=r"seed \d+, .* was believed to have unit"):
        run_all(range(200))


def test_the_simulation_notices_blocks_that_have_not_moved_with_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockPool, "newest_idle", lambda self, most: [])
    with pytest.raises(Wrong, match=r"seed \d+, .* was believed to have unit"):
        run_all(range(1000))


def test_the_simulation_notices_that_a_wrong_guess_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop_guesses(self: Sequence, num_valid: int, next_frame: int) -> None:
        self.ahead = []
        self.num_sent = num_valid

    monkeypatch.setattr(Sequence, "drop_guesses", drop_guesses)
    with pytest.raises(Wrong, match=r"seed \d+, "):
        run_all(range(50))


def test_guesses_are_under_way_while_things_happen() -> None:
    assert sum(run(seed).counts["guesses right"] for seed in range(20)) > 20


def test_records_that_are_not_where_they_are_believed_to_be_cost_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "holders_after", from_anyone)
    run_all(range(50))


def test_the_simulation_notices_blocks_that_two_sequences_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockPool.allocate

    def allocate(self: BlockPool, count: int) -> list[int] | None:
        blocks = real(self, count)
        return [0, *blocks[1:]] if blocks else blocks

    monkeypatch.setattr(BlockPool, "allocate", allocate)
    with pytest.raises(Wrong, match=r"seed \d+"):
        run_all(range(50))
