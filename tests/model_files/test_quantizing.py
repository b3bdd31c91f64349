"""Models whose matrices are quantised while they are loaded: digests of what is stored, a digest of what is computed."""

from pathlib import Path

import pytest

from dairllm.model_files.codec import manifest_from_bytes, manifest_to_bytes
from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.manifest import Manifest
from dairllm.model_files.manifest_builder import build_manifest
from dairllm.model_files.memory import weights_bytes
from dairllm.model_files.quantizing import quantized_manifest
from tests.instruments.golden import TINY
from tests.tiny_gguf import write_tiny_llama


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return build_manifest(TINY / "llama")


def formats_of(manifest: Manifest, unit: int) -> dict[str, str]:
    return {tensor.role: tensor.packed_format for tensor in manifest.units[unit].tensors}


@pytest.mark.parametrize(("asked", "outer"), [("Q8_0", "Q8_0"), ("Q4_0", "Q8_0")])
def test_matrices_get_the_format_and_numbers_stay(manifest: Manifest, asked: str, outer: str) -> None:
    found = quantized_manifest(manifest, asked)
    layer = formats_of(found, 1)
    assert {role: layer[role] for role in ("q", "down", "attention_norm")} == {"q": asked, "down": asked, "attention_norm": "F32"}
    assert formats_of(found, 0)["token_embedding"] == formats_of(found, 4)["output"] == outer
    assert [unit.digest for unit in found.units] == [unit.digest for unit in manifest.units]
    assert found.model_digest != manifest.model_digest
    assert found.model_digest != quantized_manifest(manifest, "Q4_0" if asked == "Q8_0" else "Q8_0").model_digest
    assert manifest_from_bytes(manifest_to_bytes(found)) == found


def test_rows_that_are_no_whole_blocks_get_smaller_ones(manifest: Manifest) -> None:
    """A row of 64 has no block of 256."""
    assert formats_of(quantized_manifest(manifest, "Q4_K"), 1)["q"] == "Q8_0"


def test_memory_and_bytes_read_are_those_of_the_packed_matrices(manifest: Manifest) -> None:
    found = quantized_manifest(manifest, "Q8_0")
    spec, unit, quantised = manifest.spec, manifest.units[1], found.units[1]
    assert quantised.bytes_read_per_step(spec) < unit.bytes_read_per_step(spec) / 3
    assert weights_bytes([quantised]) < weights_bytes([unit]) / 3
    assert quantised.size_bytes == unit.size_bytes, "of what is stored"


def test_what_cannot_be_quantised_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="quantised to 'Q3_K'; expected one of Q8_0, Q4_0, Q4_K"):
        quantized_manifest(manifest, "Q3_K")
    quantised = build_manifest(write_tiny_llama(tmp_path / "m.gguf", block_format="Q8_0"))
    with pytest.raises(UnsupportedModel, match="has no matrices that can be quantised"):
        quantized_manifest(quantised, "Q4_0")
