"""Prints the folders with the imports between them, and how long files and functions are: `make structure`."""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tests.structure.order import FILES, MAY_IMPORT, ROOMS, Place, imports, place_of
from tests.structure.sources import PACKAGES, sources_of, tree_of

QUANTILES = (0.1, 0.5, 0.9, 1.0)


def picture() -> Iterator[str]:
    """Packages from above to below, and the rooms of each, with those that they import and how often; ▲ is what must not be."""
    found = list(imports())
    between: dict[Place, Counter[Place]] = {}
    for one in found:
        between.setdefault(place_of(one.importer), Counter())[place_of(one.imported)] += 1
    for package in reversed(PACKAGES):
        others = Counter(place_of(one.imported).package for one in found if place_of(one.importer).package == package)
        below = ((other, others[other]) for other in reversed(MAY_IMPORT[package]))
        above = ((f"▲{other}", others[other]) for other in PACKAGES if other not in (package, *MAY_IMPORT[package]))
        yield f"{package:<20} ► {listed([*below, *above])}"
        rooms = ROOMS.get(package, ())
        for index, room in reversed([*enumerate(rooms)]):
            counts = between.get(Place(package, room), Counter())
            below = ((label(other), counts[Place(package, other)]) for other in reversed(rooms[:index]))
            above = ((f"▲{label(other)}", counts[Place(package, other)]) for other in rooms[index + 1 :])
            yield f"    {label(room):<16} ► {listed([*below, *above])}"


def label(room: str) -> str:
    return "(files)" if room == FILES else room


def listed(counts: Iterable[tuple[str, int]]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts if count) or "–"


def sizes() -> Iterator[str]:
    files, functions = [], []
    for package in PACKAGES[1:]:
        for path in sources_of(package):
            files.append(len(path.read_text().splitlines()))
            nodes = ast.walk(tree_of(path))
            functions += [lines_of(node) for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    yield f"{'lines of':<12} {'count':>6} " + " ".join(f"{f'{quantile:.0%}':>6}" for quantile in QUANTILES)
    yield quantiles_of("a file", files)
    yield quantiles_of("a function", functions)


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def quantiles_of(what: str, lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    found = (ordered[round(quantile * (len(ordered) - 1))] for quantile in QUANTILES)
    return f"{what:<12} {len(ordered):>6} " + " ".join(f"{value:>6}" for value in found)


if __name__ == "__main__":
    print("\n".join([*picture(), "", *sizes()]))
