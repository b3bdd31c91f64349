"""Models small enough for a test of whole processes to take a second or two."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    return write_tiny_llama(path, with_tokenizer=True, num_layers=4, context_length=2048)


@pytest.fixture(scope="module", autouse=True)
def nothing_kept() -> Iterator[None]:
    """What shards fetch is neither left to the next test nor to the user. Not for the whole session: tests elsewhere need the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAIRLLM_SHARD_WEIGHTS_CACHE", "0")
        yield
