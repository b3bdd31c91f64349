"""A model of five units, a coordinator that serves it, and one cache folder for all processes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.shard_service.fake_coordinator import FakeCoordinator
from tests.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf", block_format="Q8_0", tied=True)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The probe runs once for all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
async def coordinator(tiny: Path) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(tiny) as fake:
        yield fake
