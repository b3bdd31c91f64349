"""The long runs, short and with a tiny model."""

from pathlib import Path

import pytest

from tests.endurance import chaos, load
from tests.faults.lossy_network import unavailable_reason as no_lossy_links
from tests.instruments.namespaces import unavailable_reason
from tests.tiny_gguf import write_tiny_llama

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    return write_tiny_llama(path, with_tokenizer=True, num_layers=8, hidden_size=128, intermediate_size=256, context_length=4096)


@pytest.mark.namespaces
@pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))
@pytest.mark.skipif(no_lossy_links() is not None, reason=str(no_lossy_links()))
def test_chaos_costs_no_answer(model: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert chaos.run(model, 10.0, 3, log) == 0, log.read_text()[-10000:]


def test_a_crowd_gets_its_answers(model: Path) -> None:
    assert load.run(model, 5.0, running=16, waiting=24, num_shards=2, stall_s=2.0) == 0
