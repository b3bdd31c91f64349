"""Writes .typing/: a module dairllm.X.Y for each X.Y of this checkout that forwards to it, for editors and type checkers.

The editable install maps folder X to dairllm.X in a finder, which only a running Python asks. Forwarding, not linking, leaves every class
one identity and one true file: an editor goes to it, and finds from there who uses it. protos/ needs none: its folders bear their names.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TREE = ROOT / ".typing"


def modules() -> Iterator[Path]:
    """Sources of the packages at the root, relative to it; of a compiled module its stub."""
    for package in sorted(path.parent for path in ROOT.glob("[a-z]*/__init__.py")):
        yield from (path.relative_to(ROOT) for suffix in ("py", "pyi") for path in sorted(package.rglob(f"*.{suffix}")))


def private_names(source: str) -> list[str]:
    """What a star does not bring along."""
    targets: list[ast.expr] = []
    names = []
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign():
                targets += node.targets
            case ast.AnnAssign():
                targets.append(node.target)
    names += [target.id for target in targets if isinstance(target, ast.Name)]
    return sorted({name for name in names if name.startswith("_") and not name.startswith("__")})


def forward(module: Path) -> str:
    parts = module.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    private = [f"from {name} import {one} as {one}\n" for one in private_names((ROOT / module).read_text())]
    return "".join([f"from {name} import *\n", *private])


def main() -> None:
    """Touches only what has changed, since editors watch it."""
    for link in [path for path in TREE.glob("dairllm/*") if path.is_symlink()]:
        link.unlink()  # as earlier versions of the Makefile made them: what is written behind one would replace a source
    wanted = {TREE / "dairllm" / module.with_suffix(".py"): forward(module) for module in modules()}
    for path in TREE.rglob("*.py"):
        if path not in wanted:
            path.unlink()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


if __name__ == "__main__":
    main()
