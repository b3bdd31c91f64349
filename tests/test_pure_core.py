"""The core takes events and the time and returns actions: its modules reach no network, no clock, no chance, no threads.

Read from the source, not from what happens to be loaded, and followed through every module of this project.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, imports_of, module_name, module_path, tree_of

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
    "shard_service/membership/invitations.py",
    "shard_service/membership/joining.py",
    "shard_service/weights/senders.py",
]


def with_parents(name: str) -> list[str]:
    """dairllm.a.b brings in dairllm.a too."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(2, len(parts) + 1)]


@cache
def forbidden_in(path: Path) -> frozenset[tuple[str, str]]:
    """(module, import) for each forbidden import in this file itself."""
    name, imported = module_name(path), imports_of(tree_of(path))
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
        ours = [name for name in imports_of(tree_of(current)) if name.startswith("dairllm.")]
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
