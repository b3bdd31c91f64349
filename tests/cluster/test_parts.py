"""The parts of the cluster machine call each other in one direction: that of the list in the package's docstring."""

import ast
import re
from pathlib import Path

import dairllm.coordinator.cluster as package

FOLDER = Path(package.__file__ or "").parent
PARTS = re.findall(r"^ {4}([a-z_]+) {2,}\S", package.__doc__ or "", re.MULTILINE)


def imported_by(part: str) -> set[str]:
    nodes = ast.walk(ast.parse((FOLDER / f"{part}.py").read_text()))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {module.removeprefix(f"{package.__name__}.") for module in modules if module.startswith(package.__name__)}


def test_the_list_names_every_part() -> None:
    parts = {path.stem for path in FOLDER.glob("*.py") if re.search(r"^class \w+\(Part\):", path.read_text(), re.MULTILINE)}
    assert parts | {"machine"} == set(PARTS)
    assert len(parts) > 1


def test_a_part_knows_only_parts_above_it() -> None:
    for number, part in enumerate(PARTS):
        assert not imported_by(part) & set(PARTS[number:]), part


def test_the_rest_of_the_package_knows_no_part() -> None:
    for path in FOLDER.glob("*.py"):
        assert path.stem in PARTS or not imported_by(path.stem) & set(PARTS), path.name
