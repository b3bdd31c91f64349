"""The parts of the cluster machine call each other in one direction, and write to the books that the books' docstring says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import dairllm.coordinator.cluster.books as books_package
import dairllm.coordinator.cluster.parts as package
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.events import Event, WordOfShard
from dairllm.coordinator.cluster.machine import ClusterMachine

FOLDER = Path(package.__file__ or "").parent
CLUSTER = FOLDER.parent
PARTS = re.findall(r"^ {4}([a-z_]+) {2,}\S", package.__doc__ or "", re.MULTILINE)
WRITERS = {
    book: set(writers.split(", "))
    for book, writers in re.findall(r"^ {4}([a-z_]+) {2,}\S.*? {2,}([a-z_, ]+)$", books_package.__doc__ or "", re.MULTILINE)
    if book != "book"
}
BOOK_CLASSES = {
    "members": ("members", "Members"),
    "state": ("state", "ClusterState"),
    "timer": ("waits", "PlanTimer"),
    "better": ("waits", "BetterPlan"),
    "pause": ("waits", "RingPause"),
    "retries": ("waits", "Backoff"),
    "retries_beside": ("waits", "Backoff"),
    "cache": ("cache_places", "CachePlaces"),
    "links": ("links", "Links"),
    "steps": ("step_times", "StepTimes"),
    "losses": ("losses", "Losses"),
    "awaited": ("watch", "Watch"),
}
CHANGING = {"add", "append", "clear", "discard", "extend", "pop", "remove", "setdefault", "update"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported_by(path: Path) -> set[str]:
    """Names of parts."""
    modules = {node.module or "" for node in ast.walk(parse(path)) if isinstance(node, ast.ImportFrom)}
    return {module.removeprefix(f"{package.__name__}.") for module in modules if module.startswith(package.__name__)}


def test_the_list_names_every_part() -> None:
    parts = {path.stem for path in FOLDER.glob("*.py") if re.search(r"^class \w+\(MachinePart\):", path.read_text(), re.MULTILINE)}
    assert parts == set(PARTS)
    assert len(parts) > 1


def test_a_part_knows_only_parts_above_it() -> None:
    for number, part in enumerate(PARTS):
        assert not imported_by(FOLDER / f"{part}.py") & set(PARTS[number:]), part


def test_only_the_machine_knows_parts() -> None:
    others = {path for path in CLUSTER.rglob("*.py") if path.parent != FOLDER and path.stem != "machine"}
    for path in others | {FOLDER / "machine_part.py", FOLDER / "placement.py"}:
        assert not imported_by(path) & set(PARTS), path.name


# The table of events


def test_every_event_has_its_rows_in_the_table() -> None:
    table = ClusterMachine(ClusterConfig("home", 1))._table
    assert table.rows.keys() == set(get_args(Event))


def test_what_a_shard_says_is_heard_of_its_present_life_only() -> None:
    rows = [row for rows in ClusterMachine(ClusterConfig("home", 1))._table.rows.values() for row in rows]
    assert {row.scope.__name__ for row in rows if row.event in get_args(WordOfShard)} == {"boot", "candidate", "active"}


# Who writes what


def changes_itself(method: ast.FunctionDef) -> bool:
    for node in ast.walk(method):
        match node:
            case ast.Assign() | ast.AugAssign() | ast.Delete():
                targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
                flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
                if any(isinstance(target, ast.Attribute | ast.Subscript) for target in flat):
                    return True
            case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name("self")), attr=attr)) if attr in CHANGING:
                return True
    return False


def commands_of(book: str) -> set[str]:
    """Methods that change the book."""
    module, name = BOOK_CLASSES[book]
    body = next(
        node for node in parse(CLUSTER / "books" / f"{module}.py").body if isinstance(node, ast.ClassDef) and node.name == name
    ).body
    methods = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {method.name for method in methods if changes_itself(method)}


def book_of(node: ast.expr) -> str | None:
    """self._timer, or `state`, which everywhere is self._state."""
    match node:
        case ast.Attribute(value=ast.Name("self"), attr=attr):
            return attr.removeprefix("_") if attr.removeprefix("_") in BOOK_CLASSES else None
        case ast.Name("state"):
            return "state"
    return None


def written_by(path: Path) -> Iterator[str]:
    """Books."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            book = book_of(node.value)
            if book and node.attr in commands_of(book):
                yield book


def test_the_list_of_books_says_who_writes() -> None:
    assert WRITERS.keys() - {"journal"} == BOOK_CLASSES.keys()
    paths = [CLUSTER / "machine.py", *(FOLDER / f"{part}.py" for part in PARTS)]
    found = {(book, path.stem) for path in paths for book in written_by(path)}
    assert found == {(book, writer) for book in BOOK_CLASSES for writer in WRITERS[book]}


def test_parts_change_the_books_by_their_methods_only() -> None:
    for path in [CLUSTER / "machine.py", *FOLDER.glob("*.py")]:
        stores = [node for node in ast.walk(parse(path)) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)]
        assert not [node.attr for node in stores if book_of(node.value) or ast.unparse(node.value) == "candidate"], path.name


def test_the_check_knows_questions_from_commands() -> None:
    assert commands_of("timer") == {"schedule", "demand", "settle_held", "stop", "begin_anew"}
    assert {"fail", "end_avoidances", "hold", "forget"} == commands_of("links")
