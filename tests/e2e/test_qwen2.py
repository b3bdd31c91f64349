"""Qwen 2, from GGUF: what the file must have, and answers of two shards against the golden data of tests/data/tiny/qwen2."""

from pathlib import Path

import pytest

from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.golden import TINY, require_golden_logits
from tests.tiny_gguf import TinyLlama, random_weights, write_llama, write_safetensors_model


def test_float32_logits_are_the_golden_ones(tmp_path: Path) -> None:
    require_golden_logits("qwen2", write_safetensors_model(tmp_path / "tiny.gguf", TINY / "qwen2"))


def test_the_description_is_that_of_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = build_manifest(write_safetensors_model(tmp_path / "m.gguf", TINY / "qwen2")).spec
    for layer in spec.layers:
        attention = layer.attention
        assert isinstance(attention, SelfAttention)
        assert (attention.q_bias, attention.k_bias, attention.v_bias, attention.output_bias) == (True, True, True, False)
        assert attention.rope == Rope(theta=10_000.0, dim=16, interleaved=False)


def test_a_file_without_its_biases_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = TinyLlama(num_layers=1, architecture="qwen2")
    with pytest.raises(CorruptModelFile, match=r"lacks the tensor 'blk\.0\.attn_[kqv]\.bias'"):
        build_manifest(write_llama(tmp_path / "m.gguf", model, random_weights(model, 0)))
