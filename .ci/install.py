"""Compiles the kernels and installs dairllm into the environment that runs this, a line per compiled file; the log only if it fails."""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "pip", "install", "--verbose", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)]
STEPS = (
    (re.compile(r"Cythonizing (\S+)"), "translating"),
    (re.compile(r" -c (\S+\.c)\b"), "compiling"),
    (re.compile(r" -shared .*?(\S+\.so)\b"), "linking"),
)
LOG_TAIL_LINES = 60


def describe(line: str) -> str | None:
    """The step that a line of the build's output begins, or None."""
    for pattern, verb in STEPS:
        if found := pattern.search(line):
            return f"{verb} {Path(found[1]).name}"
    return None


def main() -> int:
    began_s, log = time.monotonic(), []
    with subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if step := describe(line):
                print(f"    [{time.monotonic() - began_s:3.0f} s] {step}", flush=True)
    if process.returncode != 0:
        print("".join(log[-LOG_TAIL_LINES:]), file=sys.stderr)
        print(f"dairllm: building failed with status {process.returncode}; the end of its output stands above", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
