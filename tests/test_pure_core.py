"""The core takes events and the time and returns actions: its modules reach no network, no clock, no chance, no threads.

Read from the source, not from what happens to be loaded, and followed through every module of this project.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"grpc", "asyncio", "socket", "time", "random", "threading"}
ALLOWED = {("dairllm.mesh.errors", "grpc")}
"""The table of errors names gRPC's status codes."""
SHELL = {"coordinator/engine/engine.py", "coordinator/engine/interface.py"}
"""What drives the scheduler, beside it."""
CORE = [
    *(
        path
        for package in ("cluster", "planner", "engine")
        for path in (str(found.relative_to(ROOT)) for found in sorted((ROOT / "coordinator" / package).rglob("*.py")))
        if path not in SHELL
    ),
    "coordinator/invitations/seen_shards.py",
    "shard_service/membership/joining.py",
    "shard_service/weights/senders.py",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("dairllm", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def module_path(name: str) -> Path | None:
    """The source of dairllm.X.Y, or None if it is a name inside a module."""
    parts = name.split(".")[1:]
    base = ROOT.joinpath(*(["protos", "dairllm"] if parts[:1] == ["v1"] else []), *parts)
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Every imported name, also those inside functions: 'a.b' for `import a.b`, 'a', 'a.b' for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not followed"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def with_parents(name: str) -> list[str]:
    """dairllm.a.b brings in dairllm.a too."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(2, len(parts) + 1)]


@cache
def forbidden_in(path: Path) -> frozenset[tuple[str, str]]:
    """(module, import) for each forbidden import in this file itself."""
    name, imported = module_name(path), imports_of(ast.parse(path.read_text()))
    found = {(name, root) for one in imported if (root := one.split(".")[0]) in FORBIDDEN}
    return frozenset(found - ALLOWED)


def reachable(path: Path) -> set[Path]:
    """The file and every file of this project that importing it brings in."""
    seen, waiting = set(), [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        ours = [name for name in imports_of(ast.parse(current.read_text())) if name.startswith("dairllm.")]
        waiting += [found for name in ours for package in with_parents(name) if (found := module_path(package))]
    return seen


@pytest.mark.parametrize("module", CORE)
def test_the_core_is_pure(module: str) -> None:
    impure = sorted(found for path in reachable(ROOT / module) for found in forbidden_in(path))
    assert not impure, f"{module} reaches {impure}"


def test_the_check_sees_imports_inside_functions_and_through_modules() -> None:
    tree = ast.parse("def f():\n    import asyncio.events\n    from time import sleep\n")
    assert {"asyncio.events", "time", "time.sleep"} <= set(imports_of(tree))
    assert ("dairllm.mesh.channels", "grpc") in forbidden_in(ROOT / "mesh" / "channels.py")
    assert ROOT / "mesh" / "errors.py" in reachable(ROOT / "coordinator" / "cluster" / "machine.py")
    assert module_path("dairllm.coordinator.planner.make_plan") is None
    assert module_path("dairllm.v1.ring_pb2") is not None
