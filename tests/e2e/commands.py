"""Commands that are expected to refuse their arguments and end, and shards with arguments of their own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

COORDINATOR = "dairllm.coordinator.main"
SHARD = "dairllm.shard_service.main"
ALL_END_TIMEOUT_S = 100.0

RUN_EACH = """
import importlib, json, os, signal, sys, tempfile
main = importlib.import_module(sys.argv[1]).main
ends = []
for arguments in json.loads(sys.argv[2]):
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.argv = ["dairllm", *arguments]
            main()
            raise SystemExit(0)
        _, status = os.waitpid(pid, 0)
        output.seek(0)
        ends.append((os.waitstatus_to_exitcode(status), output.read().decode()))
print(json.dumps(ends))
"""
"""Runs a command once per list of arguments, each in a process of its own, and imports it only once, which is most of the work."""


class Refusal(NamedTuple):
    code: int
    text: str

    @property
    def line(self) -> str:
        """What stands on the terminal, which must be one line. Records of the log, which begin with the time, do not count."""
        lines = [line for line in self.text.splitlines() if not line.startswith("20")]
        assert len(lines) == 1, self.text
        return lines[0]


def refusals_of(module: str, cases: Sequence[Sequence[str]]) -> list[Refusal]:
    """How a command ends that cannot begin, with each of these arguments."""
    command = [sys.executable, "-c", RUN_EACH, module, json.dumps(cases)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=ALL_END_TIMEOUT_S, stdin=subprocess.DEVNULL, check=True)
    refusals = [Refusal(code, text) for code, text in json.loads(ended.stdout)]
    assert len(refusals) == len(cases)
    for refusal in refusals:
        assert "Traceback" not in refusal.text, refusal.text
    return refusals


def assert_refused(module: str, cases: Sequence[tuple[Sequence[str], str]]) -> None:
    """cases: arguments and words of the answer to them: exit code 2 and one line."""
    for (arguments, expected), refusal in zip(cases, refusals_of(module, [arguments for arguments, _ in cases]), strict=True):
        assert refusal.code == 2, (arguments, refusal)
        assert expected in refusal.line, (arguments, refusal.line)
        assert len(refusal.line) < 600


def shard_command(name: str, cluster: str, *arguments: str) -> list[str]:
    """A shard for a ManagedProcess. Without more arguments it looks for its coordinator."""
    fixed = ("--name", name, "--cluster", cluster, "--threads", "1", "--memory", "1GiB", "--ready-file", "{ready_file}")
    return [sys.executable, "-m", SHARD, *fixed, *arguments]


def without_folder(folder: Path, command: Sequence[str]) -> list[str]:
    """The command on a machine that lacks this folder: it sees an empty one in its place. Needs root."""
    return ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder), *command]
