"""What came of a long run, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from tests.endurance.memory import Resident


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The first column is words, the others are figures."""
    lines = [f"| {' | '.join(header)} |", f"| --- {'| ---: ' * (len(header) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def memory_table(seen: Mapping[str, Resident], budgets: Mapping[str, int], begin_s: float, end_s: float) -> str:
    """The most that each process had, and in the first and the last quarter of the time from begin_s to end_s."""
    quarter_s = (end_s - begin_s) / 4
    rows = (
        (
            name,
            _mebibytes(budgets[name]) if name in budgets else "none",
            _mebibytes(resident.most_bytes),
            _mebibytes(resident.most_between(begin_s, begin_s + quarter_s)),
            _mebibytes(resident.most_between(end_s - quarter_s, end_s)),
        )
        for name, resident in sorted(seen.items())
    )
    return table(("process", "budget", "most resident", "in the first quarter", "in the last"), rows)


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which this share of them lies; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
