"""The fault matrix: what goes wrong × where × when, with real processes on hosts of their own.

By default a subset in which every pair of fault and place, place and moment, fault and moment occurs; all of it with `--all-faults`
(`make faults`), which prints the table. The kernel's netem is not needed: links lose and delay packets in a relay of our own.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.cases import ALL_CASES, Case, Fault, Moment, Outcome, Place, pairs_of, pairwise_subset
from tests.faults.lossy_network import unavailable_reason as no_lossy_links
from tests.faults.runner import SETUPS, Observation, Undisturbed, run_lane
from tests.instruments.namespaces import unavailable_reason
from tests.tiny_gguf import write_tiny_llama

LANES_AT_ONCE = 4
RESULT_TIMEOUT_S = 1500.0
SUBSET = tuple(pairwise_subset(ALL_CASES))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.namespaces,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason())),
]
Results = dict[Case, Future[Observation]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = ALL_CASES if metafunc.config.getoption("--all-faults") else SUBSET
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    path = folder / "tiny.gguf"
    return write_tiny_llama(path, with_tokenizer=True, num_layers=8, hidden_size=128, intermediate_size=256, context_length=4096)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, model: Path) -> Iterator[Results]:
    """Of the cases that were selected: lanes, one for each fault, run at the same time, since most of the time is waiting."""
    chosen = list(_chosen(request.session.items))
    results: Results = {case: Future() for case in chosen}
    undisturbed = Undisturbed()
    with ThreadPoolExecutor(LANES_AT_ONCE) as pool:
        for fault in SETUPS:
            pool.submit(run_lane, fault, model, [case for case in chosen if case.fault is fault], undisturbed, results)
        yield results
    if request.config.getoption("--all-faults"):
        capture = request.config.pluginmanager.get_plugin("capturemanager")
        assert capture is not None
        with capture.global_and_fixture_disabled():
            print(f"\n\n{table(results)}")


def _chosen(items: Sequence[pytest.Item]) -> Iterator[Case]:
    """Cases of this module; tests elsewhere have parameters of that name, too."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case = parameters.get("case")
        if isinstance(case, Case):
            yield case


def test_answers_survive(case: Case, results: Results) -> None:
    if case.fault is Fault.BAD_LINK and no_lossy_links() is not None:
        pytest.skip(str(no_lossy_links()))
    seen = results[case].result(RESULT_TIMEOUT_S)
    print(f"{case}: {seen.outcome}; phase {seen.phase}, longest silence {seen.silence_s:.2f} s, took {seen.took_s:.1f} s")


def test_the_subset_has_every_pair() -> None:
    every = set[tuple[int, str, str]]().union(*map(pairs_of, ALL_CASES))
    assert set[tuple[int, str, str]]().union(*map(pairs_of, SUBSET)) == every
    assert len(SUBSET) < len(ALL_CASES) / 3


def table(results: Results) -> str:
    """As Markdown, a table for each fault: what the clients saw, and the longest silence between two tokens of one answer."""
    return "\n\n".join(_table_of(fault, results) for fault in Fault if any(case.fault is fault for case in results))


def _table_of(fault: Fault, results: Results) -> str:
    lines = [f"| {fault} | {' | '.join(Moment)} |", f"| --- {'| ---: ' * len(Moment)}|"]
    for place in Place:
        cells = (results.get(Case(fault, place, moment)) for moment in Moment)
        lines.append(f"| {place} | {' | '.join('' if cell is None else _cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def _cell(result: Future[Observation]) -> str:
    error = result.exception()
    if error is not None:
        return f"FAILED: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    seen = result.result()
    return f"{seen.silence_s:.1f} s" if seen.outcome is Outcome.SAME_ANSWER else seen.outcome
