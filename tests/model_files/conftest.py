"""The small models that these tests share, and a cache folder of their own."""

from pathlib import Path

import pytest

from tests.tiny_gguf import write_tiny_llama


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """XDG_CACHE_HOME, empty for every test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in F32 with a tokenizer; not to be written to."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf", with_tokenizer=True)
