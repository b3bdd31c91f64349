"""A log that nobody reads holds nobody up, and what is said again and again is told rarely."""

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.line_writer import LineWriter
from dairllm.mesh.repetition import ALIKE_PER_MINUTE, FIRST_PAUSE_S, LONGEST_PAUSE_S, Repetitions
from dairllm.mesh.telemetry import fields
from tests.instruments.pipes import full_pipe

HOUR_S = 3600.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def describe_drop(number: int) -> str:
    return f"{number} dropped"


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor, describe_drop, max_waiting_chars=200_000)
    line = "x" * 4000
    for _ in range(1000):
        writer.write(line)
    assert not writer.flush(0.05)
    with os.fdopen(os.dup(reader), "r") as stream:
        lines: list[str] = []
        while not lines or "dropped" not in lines[-1]:
            lines.append(stream.readline())
        writer.write("after it")
        lines += itertools.takewhile(lambda text: text != "after it\n", stream)
    writer.close()
    dropped = sum(int(text.split()[0]) for text in lines if "dropped" in text)
    assert 0 < dropped < 1000
    assert lines.count(line + "\n") + dropped == 1000


def test_lines_come_in_order_and_as_utf_8(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor, describe_drop)
    for line in ("one", "zwölf", "not \udcff UTF-8"):
        writer.write(line)
    assert writer.flush(10.0)
    writer.close()
    assert os.read(reader, 1000).decode() == "one\nzwölf\nnot \\udcff UTF-8\n"


def test_a_full_disk_and_a_closed_pipe_raise_nothing() -> None:
    reader, closed = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (closed, full):
        writer = LineWriter(descriptor, describe_drop)
        writer.write("lost")
        assert writer.flush(10.0)
        writer.close()
    os.close(closed)
    os.close(full)


PROGRAM = """
import os, sys
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.process import report_error
from dairllm.mesh.telemetry import configure_logging, get_logger
{before}
configure_logging()
get_logger("a").error("something")
report_error(InvalidSetting("the end"))
"""


CLOSED, FULL_DISK, FULL_PIPE = (
    "os.close(2); sys.stderr = None",
    "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
    "os.dup2({pipe}, 2)",
)


@pytest.mark.parametrize("before", [CLOSED, FULL_DISK, FULL_PIPE])
def test_a_process_whose_stderr_takes_nothing_ends_as_ever(before: str) -> None:
    with full_pipe() as descriptor:
        program = PROGRAM.format(before=before.format(pipe=descriptor))
        process = subprocess.run([sys.executable, "-c", program], pass_fds=[descriptor], timeout=60, check=False)
    assert process.returncode == 0


def test_the_error_stands_on_the_last_line() -> None:
    program = PROGRAM.format(before="")
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert [line.rpartition(" ")[2] for line in process.stderr.splitlines()] == ["something", "end"]


def record(text: str, level: int = logging.ERROR, **facts: object) -> logging.LogRecord:
    made = logging.LogRecord("some.logger", level, __file__, 1, text, None, None)
    vars(made).update(fields(**facts))
    return made


def told(make: Callable[[int], logging.LogRecord], times_s: range) -> list[int]:
    repetitions = Repetitions()
    verdicts = [repetitions.judge(make(i), float(now_s)) for i, now_s in enumerate(times_s)]
    return [verdict for verdict in verdicts if verdict is not None]


def test_the_same_every_two_seconds_is_told_rarely_and_counted() -> None:
    counts = told(lambda _: record("port 5353 is taken"), range(0, int(HOUR_S), 2))
    assert counts[0] == 0
    assert 5 < len(counts) < 20
    assert sum(counts) + len(counts) > HOUR_S / 2 - LONGEST_PAUSE_S


def test_the_same_with_other_numbers_is_told_a_few_times_a_minute() -> None:
    assert len(told(lambda i: record(f"socket {i} <0x7f{i:06x}> failed"), range(60) or range(0))) == ALIKE_PER_MINUTE
    burst = Repetitions()
    assert sum(burst.judge(record(f"fd {i}"), 0.0) is not None for i in range(20_000)) == ALIKE_PER_MINUTE


def test_who_debugs_is_told_everything() -> None:
    assert told(lambda _: record("again", logging.DEBUG), range(100)) == [0] * 100


def test_news_is_told_at_once() -> None:
    """Also if it differs in facts only, and news that is no warning also if it differs in numbers only."""
    assert len(told(lambda i: record("joined", shard=i), range(ALIKE_PER_MINUTE))) == ALIKE_PER_MINUTE
    assert len(told(lambda i: record(f"plan {i} serves", logging.INFO), range(1000))) == 1000


@given(st.lists(st.floats(0, 1000), max_size=60))
def test_nothing_is_lost_uncounted(pauses_s: list[float]) -> None:
    repetitions = Repetitions()
    counts = [repetitions.judge(record("again"), now_s) for now_s in itertools.accumulate(pauses_s)]
    kept_back = 0
    for count, pause_s in zip(counts, pauses_s, strict=True):
        if count is None:
            kept_back += 1
            continue
        assert count == kept_back
        kept_back = 0
        assert pause_s >= 0
    assert not counts or counts[0] == 0
    assert all(count is not None for count, pause_s in zip(counts, pauses_s, strict=True) if pause_s >= LONGEST_PAUSE_S >= FIRST_PAUSE_S)
