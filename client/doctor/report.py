"""How `dairllm doctor` tells what it found: grouped, and at the end the one thing to look at first."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dairllm.mesh.diagnosis import Finding, Status
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.words import counted

_BY_WEIGHT = (
    "interfaces",
    "cluster_name",
    "coordinator_port",
    "coordinator_answer",
    "version",
    "multicast_blocked",
    "multicast",
    "discovery",
    "shard_name",
    "seen_shard",
    "shard_port",
)
"""A reason that stands earlier explains those that stand later."""
_MARKS = {Status.OK: ("ok", "green"), Status.WARNING: ("warning", "yellow"), Status.PROBLEM: ("problem", "bold red")}
_INDENT = "  "
_MARK_WIDTH = 9
_NARROWEST = 40


def most_likely_reason(findings: Sequence[Finding]) -> Finding | None:
    """The problem that explains most; None without any."""
    problems = [finding for finding in findings if finding.status is Status.PROBLEM]
    return min(problems, key=_weight, default=None)


def _weight(finding: Finding) -> int:
    return _BY_WEIGHT.index(finding.check) if finding.check in _BY_WEIGHT else len(_BY_WEIGHT)


def conclusion(findings: Sequence[Finding], coordinator: str | None) -> str:
    """The last lines of the report."""
    reason = most_likely_reason(findings)
    if reason is None:
        num_warnings = sum(finding.status is Status.WARNING for finding in findings)
        besides = f" ({counted(num_warnings, 'warning')} above)" if num_warnings else ""
        return f"This machine and the coordinator at {coordinator} find each other and can work together{besides}."
    parts = [f"Most likely reason: {reason.seen}."]
    parts += [f"Why: {reason.matters}."] if reason.matters else []
    parts += [f"What to do: {reason.advice}."] if reason.advice else []
    return "\n".join(parts)


def to_json(findings: Sequence[Finding], coordinator: str | None, took_s: float) -> dict[str, object]:
    reason = most_likely_reason(findings)
    return {
        "ok": reason is None,
        "coordinator": coordinator,
        "took_s": round(took_s, 3),
        "most_likely_reason": None if reason is None else _finding_json(reason),
        "findings": [_finding_json(finding) for finding in findings],
    }


def _finding_json(finding: Finding) -> dict[str, str]:
    names = ("group", "check", "seen", "matters", "advice")
    return {**{name: getattr(finding, name) for name in names}, "status": finding.status.value}


def print_report(console: Console, findings: Sequence[Finding], coordinator: str | None) -> None:
    """Lines are broken for terminals only, so that other programs find a sentence on one line. What other machines say is in them."""
    for group in dict.fromkeys(finding.group for finding in findings):
        console.print(Text(group, style="bold"))
        for finding in findings:
            if finding.group == group:
                _print_finding(console, finding)
        console.print()
    style = "bold red" if most_likely_reason(findings) else "bold green"
    for number, paragraph in enumerate(conclusion(findings, coordinator).split("\n")):
        for line in _lines(console, paragraph, 0):
            console.print(Text(line, style="" if number else style), soft_wrap=True)


def _print_finding(console: Console, finding: Finding) -> None:
    word, style = _MARKS[finding.status]
    mark = Text.assemble(_INDENT, (word.ljust(_MARK_WIDTH), style))
    advice = f"to do: {finding.advice}" if finding.advice else ""
    for paragraph, text_style in ((finding.seen, ""), (finding.matters, "dim"), (advice, "dim")):
        for line in _lines(console, paragraph, len(mark)):
            console.print(Text.assemble(mark, (line, text_style)), soft_wrap=True)
            mark = Text(" " * len(mark))


def _lines(console: Console, paragraph: str, indent: int) -> Iterator[str]:
    paragraph = on_one_line(paragraph)
    if not console.is_terminal:
        yield from [paragraph] if paragraph else []
        return
    yield from textwrap.wrap(paragraph, max(_NARROWEST, console.width - indent), break_on_hyphens=False)
