"""For all tests: their tools (`tests.instruments`, `tests.tiny_gguf`), options, the real model, and no process left behind."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.instruments.commands import RunDairllm

sys.path.insert(0, str(Path(__file__).parent.parent))


# Timings never decide a test: a busy machine is slow, and not wrong.
settings.register_profile("dairllm", deadline=None)
settings.load_profile("dairllm")

_LEFT_BY_WORKERS = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what scenario files expect anew from what happens now")
    parser.addoption("--plans", type=int, default=30, help="how many plans a shard gets while its memory is watched")
    parser.addoption("--all-faults", action="store_true", help="the whole matrix of faults, which takes long, instead of a subset of it")


@pytest.fixture
def rewrite(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--rewrite"))


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """This process's environment without settings of the person who runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DAIRLLM_")}
    return kept | {"XDG_CONFIG_HOME": str(tmp_path), "COLUMNS": "200", "TERM": "dumb"}


@pytest.fixture
def dairllm(clean_environment: dict[str, str]) -> "RunDairllm":
    """Runs the `dairllm` command to its end."""
    from tests.instruments.commands import dairllm_runner

    return dairllm_runner(clean_environment)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: the file that DAIRLLM_TEST_MODEL names, else the one in the user's cache folder, fetched if need be."""
    from dairllm.model_files.getting.resolve import resolve_model

    return resolve_model(os.environ.get("DAIRLLM_TEST_MODEL", "smollm2:135m"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that outlives the tests is a defect of the test that started it, or of the program that should have ended it."""
    from tests.instruments.templates import PROCESSES

    PROCESSES.close()
    left = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    for child in left:
        print(f"\nleft behind by a test: process {child.pid}: {' '.join(child.cmdline())}", file=sys.stderr)
        child.kill()
    workers_left = session.config.stash.setdefault(_LEFT_BY_WORKERS, 0)
    output: dict[str, int] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left"] = len(left)
    if (left or workers_left) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """pytest-xdist: a worker has ended, whose processes only it could count."""
    stash = node.config.stash
    stash[_LEFT_BY_WORKERS] = stash.setdefault(_LEFT_BY_WORKERS, 0) + getattr(node, "workeroutput", {}).get("left", 0)
