"""Many short histories of clusters with faults. `make soak` runs more; `python -m tests.simulation --seed N` shows one."""

import pytest

from dairllm.coordinator.cluster.cache_places import CachePlaces, Intact
from tests.simulation.simulation import Simulation, run
from tests.simulation.world import Wrong

SEEDS_PER_TEST = 100


def run_all(seeds: range) -> None:
    for seed in seeds:
        run(seed)


@pytest.mark.parametrize("first", range(0, 1000, SEEDS_PER_TEST))
def test_every_answer_is_right_or_has_properly_failed_and_the_cluster_serves_in_the_end(first: int) -> None:
    run_all(range(first, first + SEEDS_PER_TEST))


def test_a_seed_replays_exactly() -> None:
    logs = []
    for _ in range(2):
        simulation = Simulation(7)
        simulation.run()
        logs.append(list(simulation.world.log))
    assert logs[0] == logs[1]
    assert len(logs[0]) > 10


def test_the_simulation_notices_a_cache_that_is_believed_to_be_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = frozenset(range(100))
    monkeypatch.setattr(CachePlaces, "intact", lambda self, owners: Intact(everything, frozenset()))
    with pytest.raises(Wrong, match=r"seed \d+, .* was believed to have unit"):
        run_all(range(200))
