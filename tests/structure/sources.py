"""The project's own source, read and not run: its modules, what they import, and how long they and their functions are."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("v1", "kernels_pyx", "model_files", "mesh", "shard_service", "coordinator", "client")


def folder_of(package: str) -> Path:
    return ROOT / "protos" / "dairllm" / "v1" if package == "v1" else ROOT / package


def sources_of(package: str) -> list[Path]:
    """A compiled module is there as its stub."""
    found = {path.with_suffix(""): path for suffix in ("pyi", "py") for path in folder_of(package).rglob(f"*.{suffix}")}
    return sorted(found.values())


def module_name(path: Path) -> str:
    relative = path.relative_to(folder_of("v1").parent) if path.is_relative_to(folder_of("v1")) else path.relative_to(ROOT)
    parts = relative.with_suffix("").parts
    return ".".join(("dairllm", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def module_path(name: str) -> Path | None:
    """The source of dairllm.X.Y, or None if it is a name inside a module."""
    package, *inner = name.split(".")[1:]
    base = folder_of(package).joinpath(*inner)
    candidates = (base.with_suffix(".py"), base / "__init__.py", base.with_suffix(".pyi"))
    return next((path for path in candidates if path.is_file()), None)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


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


def imported_modules(path: Path) -> set[str]:
    """Modules of this project that the file names in its imports; packages only where they are all that it names."""
    named = {name for name in imports_of(tree_of(path)) if name.startswith("dairllm.") and module_path(name)}
    return {name for name in named if not any(other.startswith(f"{name}.") for other in named)}
