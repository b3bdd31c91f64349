"""One word for one thing: no two classes share a name, nor two files of a package; the glossary says where each thing is.

Where the docstring of a package lists its files or rooms, each knows only those above it in the list.
"""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels_pyx", "model_files", "mesh", "shard_service", "coordinator", "client")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
LISTED = re.compile(r"^ {4}([a-z_]+(?:, [a-z_]+)*) {2,}\S", re.MULTILINE)

SAME_CLASS = {"Message": "of a conversation, by OpenAI's schema: what a client sends, and what the API takes"}
"""Names that two classes may have, and why."""

SAME_FILE = {
    "__init__": "of every package",
    "actions": "of every machine",
    "events": "of every machine",
    "invariants": "of every machine",
}
"""Names that two files of a package may have, and why."""


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in shared.items() if name not in SAME_CLASS} == {}
    assert SAME_CLASS.keys() <= shared.keys(), "an exception that nothing needs"


def test_no_two_files_of_a_package_share_a_name() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in FILES:
        places[path.relative_to(ROOT).parts[0], path.stem].append(str(path.relative_to(ROOT)))
    assert {key: found for key, found in places.items() if len(found) > 1 and key[1] not in SAME_FILE} == {}


def test_what_the_glossary_points_to_exists() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    places = [place for brackets in re.findall(r"\[([^\]]*)\]", text) for place in re.findall(r"`([^`]+)`", brackets)]
    assert len(places) > 30
    names = {path.name for path in FILES}
    assert [place for place in places if not (ROOT / place).exists() and Path(place).name not in names] == []


# Lists in docstrings


def listed_in(package: Path) -> list[list[str]]:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()), clean=False) or ""
    return [names.split(", ") for names in LISTED.findall(docstring)]


def entries_of(package: Path) -> set[str]:
    return {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}


def entries_imported_by(path: Path, package: Path) -> set[str]:
    prefix = ".".join(("dairllm", *package.relative_to(ROOT).parts, ""))
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}
    return {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}


LISTS = [
    path.parent
    for path in FILES
    if path.name == "__init__.py" and len(entries_of(path.parent) & {name for names in listed_in(path.parent) for name in names}) > 2
]


@pytest.mark.parametrize("package", LISTS, ids=lambda package: str(package.relative_to(ROOT)))
def test_what_a_list_names_knows_only_what_stands_above_it(package: Path) -> None:
    level = {name: number for number, names in enumerate(listed_in(package)) for name in names}
    entries = entries_of(package)
    for name in level.keys() & entries:
        paths = [package / f"{name}.py"] if (package / f"{name}.py").exists() else sorted((package / name).rglob("*.py"))
        imported = {other for path in paths for other in entries_imported_by(path, package)} & entries - {name}
        assert not [other for other in imported if level.get(other, -1) > level[name]], name


def test_there_are_lists() -> None:
    assert {str(package.relative_to(ROOT)) for package in LISTS} >= {"coordinator/cluster", "coordinator/membership"}
