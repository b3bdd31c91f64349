"""What is installed: only the name `dairllm`, all of its packages, the commands, and the files that are no Python code."""

import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions, entry_points, packages_distributions, requires
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGES = ("client", "coordinator", "kernels_pyx", "mesh", "model_files", "shard_service", "v1")

pytestmark = pytest.mark.wheel


def submodules(package: str) -> list[str]:
    module = importlib.import_module(f"dairllm.{package}")
    found = pkgutil.walk_packages(module.__path__, prefix=f"dairllm.{package}.")
    return [f"dairllm.{package}", *(info.name for info in found)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_can_be_imported(package: str) -> None:
    """In a process of its own, since some modules change what the process does with signals or logging."""
    names = submodules(package)
    program = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def imported_names() -> set[str]:
    """The first part of every name that the installed packages import, their own and the standard library's left out."""
    sources = [path for package in PACKAGES for path in Path(*importlib.import_module(f"dairllm.{package}").__path__).rglob("*.py")]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - {"dairllm", *sys.stdlib_module_names}


def distribution_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]


def test_what_is_needed_to_run_is_what_is_imported() -> None:
    needed = {distribution_name(line) for line in requires("dairllm") or () if "extra ==" not in line}
    givers = {name: {distribution_name(found) for found in packages_distributions().get(name, ())} for name in imported_names()}
    assert not {name for name, found in givers.items() if not found & needed}, "imported and not asked for"
    assert needed <= set().union(*givers.values()), "asked for and not imported"


def test_nested_packages_are_there() -> None:
    assert {"dairllm.coordinator.cluster", "dairllm.coordinator.engine", "dairllm.coordinator.http"} <= set(submodules("coordinator"))


def test_only_the_name_dairllm_is_taken() -> None:
    # A checkout in which a wheel was built has an egg-info folder, too, which lists the sources.
    installed = [found for found in distributions(name="dairllm") if any(file.name == "RECORD" for file in found.files or ())]
    assert installed
    recorded = installed[0].files or []
    tops = {file.parts[0] for file in recorded if file.parts[0] != ".." and not file.name.startswith("__editable__")}
    assert {top for top in tops if not top.endswith(".dist-info") and top != "__pycache__"} <= {"dairllm"}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("dairllm.v1", "inference.proto"),
        ("dairllm.v1", "inference_pb2.pyi"),
        ("dairllm.kernels_pyx", "_kernels.pyi"),
        ("dairllm.coordinator.dashboard", "index.html"),
        ("dairllm.client", "py.typed"),
    ],
)
def test_files_that_are_no_code_are_there(package: str, name: str) -> None:
    assert files(package).joinpath(name).is_file()


@pytest.mark.parametrize("command", ["dairllm", "dairllm-coordinator", "dairllm-shard"])
def test_every_command_explains_itself(command: str) -> None:
    program = shutil.which(command, path=str(Path(sys.executable).parent))
    assert program is not None
    result = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "--help" in result.stdout


def test_the_bench_is_a_command_of_another_package() -> None:
    (bench,) = entry_points(group="dairllm.commands")
    assert bench.name == "bench"
    assert callable(bench.load())


def test_the_doctor_finds_the_checks_of_other_packages() -> None:
    checks = {entry.name: entry.load() for entry in entry_points(group="dairllm.doctor")}
    assert set(checks) == {"machine", "models"}
    assert all(map(callable, checks.values()))


def test_the_client_imports_only_the_wire_and_the_mesh() -> None:
    """A program that talks to a cluster must not load kernels, models or services."""
    program = """
        import sys
        import dairllm.client.cli
        loaded = {name.split(".")[1] for name in sys.modules if name.startswith("dairllm.")}
        assert loaded <= {"client", "mesh", "v1"}, loaded
    """
    lines = "\n".join(line.strip() for line in program.splitlines())
    result = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
