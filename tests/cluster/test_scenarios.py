"""Replays the scenarios. A file is a list of blocks; a block is commands, a line of four dashes, and the transcript."""

from pathlib import Path

import pytest

from tests.cluster.scenario import Scenario

HERE = Path(__file__).parent
FILES = sorted((HERE / "scenarios").glob("*.txt"))
SEPARATOR = "----"


def replay(text: str) -> str:
    """The same file with the transcript as it is now."""
    run = Scenario()
    return "\n\n".join(replay_block(run, block) for block in text.strip().split("\n\n")) + "\n"


def replay_block(run: Scenario, block: str) -> str:
    lines = block.splitlines()
    commands = lines[: lines.index(SEPARATOR)] if SEPARATOR in lines else lines
    if all(line.startswith("#") for line in commands):
        return block
    output = [answer for line in commands if not line.startswith("#") for answer in run.run(line)]
    return "\n".join([*commands, SEPARATOR, *output])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path, rewrite: bool) -> None:
    text = path.read_text()
    result = replay(text)
    if rewrite:
        path.write_text(result)
    assert result == path.read_text()


def test_there_are_scenarios() -> None:
    assert len(FILES) >= 14
