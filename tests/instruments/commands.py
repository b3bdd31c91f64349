"""The `dairllm` command, run to its end: the fixture `dairllm` of every test."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Protocol

COMMAND_TIMEOUT_S = 60


class RunDairllm(Protocol):
    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]: ...


def dairllm_runner(environment: Mapping[str, str]) -> RunDairllm:
    """Nobody ever sees a traceback."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dairllm.client.cli", *arguments]
        result = subprocess.run(
            command, input=stdin, capture_output=True, text=True, env=environment, timeout=COMMAND_TIMEOUT_S, check=False
        )
        assert "Traceback" not in result.stdout + result.stderr
        return result

    return run
