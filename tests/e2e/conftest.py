"""Models small enough for a test of whole processes to take a second or two."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_gguf import write_tiny_llama
from tests.tiny_hybrid import write_tiny_hybrid


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write_tiny_llama(path, with_tokenizer=True, num_layers=4, context_length=2048)


@pytest.fixture(scope="session")
def hybrid_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of its layers carry states along."""
    return write_tiny_hybrid(tmp_path_factory.mktemp("models") / "hybrid.gguf")


@pytest.fixture(scope="session")
def larger_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Needs 46 MiB with its cache for 1024 tokens: too much for a shard with 133 MiB, of which 25 are for the model, streamed or not."""
    path = tmp_path_factory.mktemp("models") / "larger.gguf"
    shape: dict[str, Any] = {"num_layers": 6, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 8}
    return write_tiny_llama(path, **shape, vocab_size=8192, context_length=1024)


@pytest.fixture(scope="module", autouse=True)
def nothing_kept() -> Iterator[None]:
    """What shards fetch is neither left to the next test nor to the user. Not for the whole session: tests elsewhere need the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAIRLLM_SHARD_WEIGHTS_CACHE", "0")
        yield
