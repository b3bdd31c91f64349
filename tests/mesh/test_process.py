"""run_until_signal in processes of its own, ready files, and logs."""

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.protocol import software_version
from dairllm.mesh.ready_file import remove_ready_file, write_ready_file
from dairllm.mesh.telemetry import configure_logging, fields, get_logger
from tests.instruments.processes import ManagedProcess

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.process import run_until_signal
from dairllm.mesh.ready_file import write_ready_file

async def main(stop):
    {before}
    write_ready_file(Path(sys.argv[1]), {{"pid": os.getpid()}})
    await stop.wait()
    print("stopping", flush=True)
    {after}

sys.exit(run_until_signal(main, {options}))
"""


def program(before: str = "pass", after: str = "pass", options: str = "") -> ManagedProcess:
    return ManagedProcess([sys.executable, "-c", PROGRAM.format(before=before, after=after, options=options), "{ready_file}"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_gracefully(number: signal.Signals) -> None:
    """Also where whoever runs the tests has them ignore SIGHUP."""
    heeding = f"import signal; signal.signal({number:d}, signal.default_int_handler)\n" + PROGRAM.format(
        before="pass", after="pass", options=""
    )
    with ManagedProcess([sys.executable, "-c", heeding, "{ready_file}"]) as process:
        assert process.wait_ready()["pid"] == process.pid
        process.send(number)
        assert process.wait(10) == 0
        assert process.output() == "stopping\n"


def test_nohup_is_respected() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + PROGRAM.format(before="pass", after="pass", options="")
    with ManagedProcess([sys.executable, "-c", ignoring, "{ready_file}"]) as process:
        process.wait_ready()
        process.send(signal.SIGHUP)
        process.send(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_second_signal_ends_at_once() -> None:
    with program(after="await asyncio.sleep(1000)") as process:
        process.wait_ready()
        process.send(signal.SIGTERM)
        process.wait_output("stopping")
        process.send(signal.SIGINT)
        assert process.wait(5) == 128 + signal.SIGINT


def test_one_that_does_not_stop_is_cancelled() -> None:
    with program(after="await asyncio.sleep(1000)", options="stop_timeout_s=0.2") as process:
        process.wait_ready()
        process.send(signal.SIGTERM)
        assert process.wait(10) == 0


def test_an_error_at_the_start_is_one_line_and_code_2() -> None:
    with program(before='raise InvalidSetting("port 80 is in use")') as process:
        assert process.wait(10) == 2
        assert process.output() == "-c: port 80 is in use\n"


def test_another_exception_shows_its_traceback() -> None:
    with program(before="1 / 0") as process:
        assert process.wait(10) == 1
        assert "ZeroDivisionError" in process.output()


def test_that_descriptors_run_out_is_said_once() -> None:
    """Not by gRPC, once a second past the log."""
    setup = "import dairllm.mesh.process as p, resource; p._DESCRIPTORS_POLL_S = 0.01; from dairllm.mesh.telemetry import configure_logging"
    taking = "; resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)); taken = [os.dup(1) for _ in range(20)]; configure_logging()"
    with program(before=setup + taking) as process:
        process.wait_output("file descriptors run out")
        process.terminate()
        assert process.output().count("file descriptors run out") == 1


PARENT = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[2].replace("PARENT", str(os.getpid())), sys.argv[1]])
time.sleep(1000)
"""


@pytest.mark.parametrize("platform", ["linux", "another"])
def test_a_child_does_not_outlive_its_killed_parent(platform: str) -> None:
    """With prctl where there is Linux, and by looking at the parent elsewhere."""
    setup = f"import sys; sys.platform = {platform!r}\n"
    child = setup + PROGRAM.format(before="pass", after="pass", options="parent_pid=PARENT")
    with ManagedProcess([sys.executable, "-c", PARENT, "{ready_file}", child]) as parent:
        orphan = psutil.Process(parent.wait_ready()["pid"])
        assert orphan.ppid() == parent.pid
        parent.kill()
        gone, _ = psutil.wait_procs([orphan], timeout=5)
        assert gone or orphan.status() == psutil.STATUS_ZOMBIE
        assert parent.output() == "stopping\n"


def test_a_ready_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_ready_file(path, {"http_port": 80, "pid": os.getpid()})
    write_ready_file(path, {"http_port": 81})
    assert json.loads(path.read_text()) == {"http_port": 81}
    assert list(tmp_path.iterdir()) == [path]
    remove_ready_file(path)
    remove_ready_file(path)
    assert not path.exists()


def test_a_ready_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=f"ready file {tmp_path}/none/ready can't be written: No such file"):
        write_ready_file(tmp_path / "none" / "ready", {})


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the log goes; the configuration of logging is as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_record_is_a_line_with_its_facts(stream: io.StringIO) -> None:
    configure_logging("info", stream=stream)
    logger = get_logger("dairllm.test")
    logger.info("joined %s", "it", extra=fields(epoch=3, name="a b", share=1 / 3, empty=""))
    logger.debug("not shown")
    time, _, rest = stream.getvalue().partition(" ")
    assert rest == 'INFO dairllm.test joined it | epoch=3 name="a b" share=0.333333 empty=""\n'
    assert time.endswith("Z")


def test_json_lines_hold_the_same(stream: io.StringIO) -> None:
    configure_logging("debug", as_json=True, stream=stream)
    try:
        raise ValueError("x")
    except ValueError:
        get_logger("dairllm.test").exception("failed", extra=fields(epoch=3, where=Path("/a"), message="not over the real one"))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["logger"], line["message"]) == ("error", "dairllm.test", "failed")
    assert (line["epoch"], line["where"]) == (3, "/a")
    assert "ValueError: x" in line["traceback"]


@given(st.text(), st.text())
def test_nobody_can_forge_a_second_line(message: str, value: str) -> None:
    for as_json in (False, True):
        stream = io.StringIO()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            configure_logging("info", as_json=as_json, stream=stream)
            get_logger("dairllm.test").info("%s", message, extra=fields(value=value))
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        assert len(stream.getvalue().splitlines()) == 1


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="'loud' is unknown; expected one of debug, info, warning, error"):
        configure_logging("loud")


def test_the_version_is_that_of_the_package() -> None:
    assert software_version().count(".") == 2
