"""Prints what pyproject.toml asks for to build and run, and for the extras that are named, one requirement a line: `[test] [lint]`."""

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path


def requirements(pyproject: Path, extras: Sequence[str] = ()) -> list[str]:
    settings = tomllib.loads(pyproject.read_text())
    project = settings["project"]
    extra = [line for name in extras for line in project["optional-dependencies"][name]]
    return ["wheel", *settings["build-system"]["requires"], *project["dependencies"], *extra]


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).parent.parent / "pyproject.toml", sys.argv[1:])))
