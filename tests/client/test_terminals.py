"""The `dairllm` command where it reads and writes: whatever stands there, nobody sees a defect, and nobody else's control characters."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dairllm.client.status import render
from dairllm.mesh.foreign_text import is_text, message_on_one_line, on_lines, on_one_line
from dairllm.mesh.terminal import console
from dairllm.v1 import cluster_pb2
from tests.client.fake_cluster import FakeCluster
from tests.instruments.clusters import Cluster

HOSTILE = ("[/red]", "[link=x]a[/]", "\x1b[2J\x1b]0;title\x07", "a\u202eb", "ü·€😀", "line\nanother", "\x9b31m", ":smile:")
PLAIN_ENCODINGS = ("ascii", "latin-1")
COMMAND = (sys.executable, "-m", "dairllm.client.cli")


def hostile_state(*, is_checked: bool = False) -> cluster_pb2.ClusterState:
    """All that others may name or say is hostile. is_checked: names as far as they pass the checks of messages."""
    state = cluster_pb2.ClusterState(model=HOSTILE[0], reason=HOSTILE[2], num_layers=2)
    for words in HOSTILE:
        name = "".join(c for c in words if c.isprintable()) if is_checked else words
        state.shards.add(name=name, addresses=["127.0.0.1:1"], note=f"why {words}", software_version=name).capabilities.isa = name
        state.seen.add(name=name, addresses=[name], reason=words)
        state.lost.add(name=name, reason=f"is lost: {words}")
        state.events.add(kind="joined", shard=name, text=f"shard {words} joined")
    return state


@pytest.fixture(scope="module")
def hostile() -> Iterator[FakeCluster]:
    with FakeCluster([hostile_state(is_checked=True)]) as fake:
        yield fake


def run(environment: Mapping[str, str], *arguments: str | bytes, **options: object) -> "subprocess.CompletedProcess[bytes]":
    settings: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.run([*COMMAND, *arguments], env=dict(environment), timeout=60, check=False, **settings)  # type: ignore[call-overload,no-any-return]


def has_control_characters(output: bytes) -> bool:
    return any(c != "\n" and not c.isprintable() for c in output.decode("utf-8", errors="replace"))


@pytest.mark.parametrize("command", ["status", "events"])
@pytest.mark.parametrize("encoding", ["utf-8", *PLAIN_ENCODINGS])
def test_names_and_reasons_of_others_are_shown_and_do_nothing(
    clean_environment: dict[str, str], hostile: FakeCluster, command: str, encoding: str
) -> None:
    result = run(clean_environment | {"PYTHONIOENCODING": encoding}, command, "--coordinator", hostile.address)
    assert result.returncode == 0, result.stderr
    assert (b"why [/red]" if command == "status" else b"shard [/red] joined") in result.stdout
    assert b"\\x1b[2J" in result.stdout
    assert not has_control_characters(result.stdout.decode(encoding).encode())


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_status_fits_its_terminal(width: int) -> None:
    screen = Console(width=width, record=True, markup=False, file=io.StringIO())
    screen.print(render(hostile_state()))
    lines = screen.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert any(line.startswith("  [/red]: why [/red]") for line in lines)


def test_a_status_of_two_shards_takes_two_lines_each_at_80_columns() -> None:
    state = cluster_pb2.ClusterState(model="m", num_layers=30)
    names = ("raspberrypi-kitchen", "desktop")
    for stage, name in enumerate(names):
        shard = state.shards.add(name=name, stage=stage, first_unit=16 * stage, end_unit=16 * stage + 16, phase="SHARD_PHASE_READY")
        shard.capabilities.memory_budget_bytes, shard.capabilities.num_threads, shard.capabilities.isa = 3 << 30, 12, "avx512"
        shard.usage.weights_bytes, shard.measured_step_s, shard.predicted_step_s, shard.round_trip_us = 1234567890, 0.01234, 0.012, 400
    screen = Console(width=80, record=True, markup=False, file=io.StringIO())
    screen.print(render(state))
    lines = screen.export_text().splitlines()
    assert [line.split() for line in lines if any(name in line for name in names)] == [
        ["0", names[0], "ready", "embedding,", "layers", "0-14"],
        ["1", names[1], "ready", "layers", "15-29,", "head"],
    ]
    assert sum("1.15 GiB of 3 GiB · 12 avx512 · step 12.3 ms, planned 12 ms · trip 0.4 ms" in line for line in lines) == 2


@pytest.mark.parametrize(("command", "closed"), [(("status",), (1,)), (("chat",), (0,)), (("chat", "hi"), (0, 1, 2)), (("models",), (2,))])
def test_closed_streams_are_no_defect(
    clean_environment: dict[str, str], hostile: FakeCluster, command: Sequence[str], closed: Sequence[int]
) -> None:
    """The fake serves no answers, which is one sentence."""
    script = " ".join(["exec", '"$@"', *(f"{descriptor}>&-" for descriptor in closed)])
    arguments = ["sh", "-c", script, "sh", *COMMAND, *command, "--coordinator", hostile.address]
    result = subprocess.run(arguments, env=clean_environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert result.returncode in (0, 2), result.stderr
    assert b"defect" not in result.stderr


@pytest.mark.parametrize("is_buffered", [False, True])
@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("--help",)])
def test_a_full_disk_is_one_sentence(
    clean_environment: dict[str, str], hostile: FakeCluster, command: Sequence[str], is_buffered: bool
) -> None:
    environment = clean_environment | {"PYTHONUNBUFFERED": "" if is_buffered else "1", "DAIRLLM_COORDINATOR": hostile.address}
    with open("/dev/full", "wb") as full:
        result = run(environment, *command, stdout=full)
    assert result.returncode == 2
    assert result.stderr.decode().endswith("stdout can't be written: No space left on device\n")
    assert len(result.stderr.splitlines()) == 1


def test_stderr_may_be_full_too(clean_environment: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        assert run(clean_environment, "status", "--coordinator", "127.0.0.1:1", stdout=full, stderr=full).returncode == 2


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_input_that_is_no_utf_8_is_refused(clean_environment: dict[str, str], cluster: Cluster, environment: dict[str, str]) -> None:
    where = ("--coordinator", cluster.grpc)
    by_pipe = subprocess.run(
        [*COMMAND, "chat", *where], input=b"caf\xe9", capture_output=True, env=clean_environment | environment, timeout=60, check=False
    )
    by_argument = run(clean_environment | environment, "chat", b"caf\xe9", *where)
    by_option = run(clean_environment | environment, "chat", "hi", "--system", b"\xff", *where)
    for result in (by_pipe, by_argument, by_option):
        assert result.returncode == 2, result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert re.search(rb"utf-8|ascii", result.stderr, re.IGNORECASE)


def test_nobody_needs_a_home(clean_environment: dict[str, str], hostile: FakeCluster) -> None:
    homeless = {name: value for name, value in clean_environment.items() if name != "HOME" and not name.startswith("XDG_")}
    program = "import pwd; pwd.getpwuid = {}.__getitem__; from dairllm.client.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "status", "--coordinator", hostile.address],
        capture_output=True,
        env=homeless,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("encoding", PLAIN_ENCODINGS)
def test_an_answer_in_any_encoding(clean_environment: dict[str, str], cluster: Cluster, encoding: str) -> None:
    options = ("--coordinator", cluster.grpc, "--max-tokens", "40", "--temperature", "2", "--seed", "1")
    result = run(clean_environment | {"PYTHONIOENCODING": encoding}, "chat", "hi", *options)
    assert result.returncode == 0, result.stderr


def test_an_answer_on_a_terminal_does_nothing_to_it(clean_environment: dict[str, str], cluster: Cluster) -> None:
    """Random weights say anything, control characters included; they are shown, and only our own escape sequences are real."""
    descriptor, other = pty.openpty()
    options = ("--coordinator", cluster.grpc, "--max-tokens", "200", "--temperature", "2", "--seed", "7")
    command = [*COMMAND, "chat", "hi", *options]
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=subprocess.DEVNULL, env=clean_environment) as process:
        os.close(other)
        output = read_all(descriptor)
        assert process.wait(60) == 0
    os.close(descriptor)
    assert not {c for c in output.decode(errors="replace") if c < " "} - {"\r", "\n", "\t"}


def read_all(descriptor: int) -> bytes:
    output, deadline_s = b"", time.monotonic() + 60
    while time.monotonic() < deadline_s:
        readable, _, _ = select.select([descriptor], [], [], 1.0)
        try:
            output += os.read(descriptor, 65536) if readable else b""
        except OSError:  # what a terminal says when its last user is gone
            break
    return output


@pytest.mark.parametrize("width", [60])
@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("dairllm.coordinator.main", ()),
        ("dairllm.shard_service.main", ()),
        *(("dairllm.client.cli", (name,)) for name in ("chat", "set", "doctor", "bench")),
    ],
)
def test_help_names_every_flag_in_full(clean_environment: dict[str, str], module: str, command: Sequence[str], width: int) -> None:
    environment = clean_environment | {"COLUMNS": str(width)}
    result = subprocess.run(
        [sys.executable, "-m", module, *command, "--help"], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert "…" not in result.stdout
    assert "--config" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= width
    if module != "dairllm.client.cli":
        assert "--version" in result.stdout
        for flag in ("--ready-file", "--log-level"):
            assert f"{flag} " in result.stdout


@given(st.text(st.characters()))
def test_what_is_shown_prints_and_encodes(text: str) -> None:
    line, lines = on_one_line(text), on_lines(text)
    assert line.isprintable()
    assert is_text(line)
    assert not {c for c in lines if c < " " or "\x7f" <= c <= "\x9f"} - {"\n", "\t"}
    assert is_text(lines)
    assert line == text or not text.isprintable()


def test_messages_are_cleaned_to_the_ground() -> None:
    clean = message_on_one_line(hostile_state())
    assert clean.shards[2].capabilities.isa == on_one_line(HOSTILE[2])
    assert list(clean.seen[2].addresses) == [on_one_line(HOSTILE[2])]
    assert clean.shards[4].name == HOSTILE[4]


def test_a_console_takes_text_as_text() -> None:
    screen = console()
    with screen.capture() as capture:
        screen.print("[/red] :smile: [bold]x[/]")
    assert capture.get() == "[/red] :smile: [bold]x[/]\n"


def test_what_a_machine_streams_is_told_for_a_token() -> None:
    usage = cluster_pb2.ShardUsage(rows=10, streamed_bytes=50 << 20, stalled_us=25_000, experts_found=3, experts_missed=1)
    shard = cluster_pb2.ShardState(name="a", first_unit=0, end_unit=12, stage=0, expert_places=12, experts_touched=8, usage=usage)
    screen = Console(width=120, record=True, markup=False, file=io.StringIO())
    screen.print(render(cluster_pb2.ClusterState(model="m", num_layers=10, shards=[shard])))
    text = screen.export_text()
    assert "a has 12 experts in memory, 75% of those that were chosen were there" in text
    assert "a, a token so far: 5 MiB read, 2.5 ms waited" in text
