"""Measurements of several processes on one host, and what is remembered of them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dairllm.shard_service.machine.probe import alone, recall, remember, scaled

HOLD = """
import sys
from pathlib import Path
from dairllm.shard_service.machine.probe import alone
with alone(Path(sys.argv[1]), 5.0):
    print("alone", flush=True)
    sys.stdin.readline()
"""
SPEED = 1e-10
WRONG_SPEEDS = ("-1", "0", "NaN", "Infinity", "null", "[]", '"x"', "1" + "0" * 400)


def test_only_one_process_measures_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "probe.lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "alone\n"
        began_s = time.monotonic()
        with alone(path, 0.3):
            assert time.monotonic() - began_s >= 0.3, "it waits as long as it may, and then goes on"
        other.stdin.write("\n")
        other.stdin.flush()
        began_s = time.monotonic()
        with alone(path, 20.0):
            assert time.monotonic() - began_s < 10.0


def test_without_a_folder_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with alone(tmp_path / "file" / "probe.lock", 5.0):
        pass


def test_what_is_remembered_is_recalled_for_a_week(tmp_path: Path) -> None:
    remember(tmp_path / "probe.json", SPEED, now_s=1000.0)
    assert recall(tmp_path / "probe.json", now_s=2000.0) == SPEED
    assert recall(tmp_path / "probe.json", now_s=1000.0 + 8 * 24 * 3600) is None
    assert recall(tmp_path / "probe.json", now_s=0.0) is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "{}", "[]", "null", "{", "[" * 100_000, "\udcff"),
        *(
            f'{{"measured_s": 1500, "decode_s_per_byte": {value}}}'
            for value in ("-1", "0", "NaN", "Infinity", "null", "[]", '"x"', "1" + "0" * 400)
        ),
        '{"measured_s": 1500, "speed": {"decode_s_per_byte": 1e-10}}',
    ],
)
def test_a_file_of_anything_else_is_not_believed(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe.json").write_text(content, errors="surrogateescape")
    assert recall(tmp_path / "probe.json", now_s=2000.0) is None


@pytest.mark.parametrize(("old", "new", "decode"), [(4, 2, 2e-10), (2, 4, 5e-11), (3, 3, 1e-10)])
def test_fewer_threads_are_expected_to_be_slower(old: int, new: int, decode: float) -> None:
    assert scaled(SPEED, old, new) == pytest.approx(decode)
