"""Commands that are expected to refuse their arguments and end."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

COORDINATOR = "dairllm.coordinator.main"
SHARD = "dairllm.shard_service.main"
END_TIMEOUT_S = 30.0


class Refusal(NamedTuple):
    code: int
    text: str

    @property
    def line(self) -> str:
        """What stands on stderr, which must be one line. Records of the log, which begin with the time, do not count."""
        lines = [line for line in self.text.splitlines() if not line.startswith("20")]
        assert len(lines) == 1, self.text
        return lines[0]


def refusal_of(module: str, *arguments: str) -> Refusal:
    """How a command ends that cannot begin."""
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=END_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.stdout == ""
    return Refusal(ended.returncode, ended.stderr)


def assert_refused(module: str, *arguments: str, expected: str) -> None:
    """Exit code 2 and one line on stderr that has the expected words."""
    refusal = refusal_of(module, *arguments)
    assert refusal.code == 2, refusal.text
    assert expected in refusal.line, refusal.line
    assert len(refusal.line) < 600


def shard_command(name: str, cluster: str, *arguments: str) -> list[str]:
    """A shard for a ManagedProcess. Without more arguments it looks for its coordinator."""
    fixed = ("--name", name, "--cluster", cluster, "--threads", "1", "--memory", "1GiB", "--ready-file", "{ready_file}")
    return [sys.executable, "-m", SHARD, *fixed, *arguments]


def without_folder(folder: Path, command: Sequence[str]) -> list[str]:
    """The command on a machine that lacks this folder: it sees an empty one in its place. Needs root."""
    return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder), *command]
