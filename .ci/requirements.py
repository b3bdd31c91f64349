"""Prints what pyproject.toml asks for, one requirement a line: to build, to run, to test and to lint."""

import tomllib
from pathlib import Path


def requirements(pyproject: Path) -> list[str]:
    settings = tomllib.loads(pyproject.read_text())
    project = settings["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    return ["wheel", *settings["build-system"]["requires"], *project["dependencies"], *extras]


if __name__ == "__main__":
    print("\n".join(requirements(Path(__file__).parent.parent / "pyproject.toml")))
