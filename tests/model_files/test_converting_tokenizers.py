"""Tokenizers of folders in GGUF: the same token ids for every text, or none at all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dairllm.model_files.containers import open_container
from dairllm.model_files.converting.tokenizer_keys import PROBES
from dairllm.model_files.converting.writing import convert_model
from dairllm.model_files.pretokenizers import find_word_rules, make_pre_tokenizer
from dairllm.model_files.template_sources import read_templates
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.golden import TINY
from tests.instruments.stored_models import safetensors_bytes, stored
from tests.tiny_gguf import read_safetensors

ROOT = Path(__file__).parent.parent.parent
SPARE_ROWS = 10


def byte_level(name: str) -> Tokenizer:
    """Words are cut by the rules of this name."""
    rules = find_word_rules(name)
    tokenizer = Tokenizer(models.BPE(ignore_merges=rules.whole_words))
    tokenizer.pre_tokenizer = make_pre_tokenizer(rules)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, vocab_size=300, special_tokens=["<|begin|>", "<|end|>"], initial_alphabet=alphabet)


def spaced(*, prefix: bool) -> Tokenizer:
    """As of SentencePiece, with byte tokens; prefix: texts begin with a space."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marks = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *marks] if prefix else marks)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return trained(tokenizer, vocab_size=512, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])


def trained(tokenizer: Tokenizer, **options: Any) -> Tokenizer:
    texts = [(ROOT / "docs" / name).read_text() for name in ("architecture.md", "models.md", "kernels.md")]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(show_progress=False, **options))
    return tokenizer


def folder_with(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    """A llama whose vocabulary has some rows more than the tokenizer has tokens."""
    shutil.copytree(TINY / "llama", folder)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    rows = tokenizer.get_vocab_size() + SPARE_ROWS
    tensors = read_safetensors(TINY / "llama" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.resize(tensors[name], (rows, tensors[name].shape[1]))
    (folder / "model.safetensors").write_bytes(safetensors_bytes({name: stored(values) for name, values in tensors.items()}))
    model = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(model | {"vocab_size": rows}))
    return folder


def require_same_ids(folder: Path, path: Path) -> None:
    ours, source = load_tokenizer(open_container(path)), load_tokenizer(open_container(folder))
    for text in (*PROBES, (ROOT / "README.md").read_text(), "<|begin|>a<|end|> </s> b"):
        for parse_special in (True, False):
            expected = source.encode(text, add_special=True, parse_special=parse_special)
            assert ours.encode(text, add_special=True, parse_special=parse_special) == expected
    assert ours.end_of_generation_ids == source.end_of_generation_ids


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2", "smollm", "tekken", "deepseek-v3"])
def test_byte_level_bpe_by_the_name_of_its_word_rules(tmp_path: Path, name: str) -> None:
    config = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "chat_template": "{{ messages }}"}
    folder = folder_with(tmp_path / "m", byte_level(name), config)
    assert convert_model(folder, tmp_path / "m.gguf") == []
    container = open_container(tmp_path / "m.gguf")
    assert container.text("tokenizer.ggml.pre") == name
    assert read_templates(container) == read_templates(open_container(folder))
    assert len(container.texts("tokenizer.ggml.tokens")) == container.tensors["token_embd.weight"].shape[0]
    require_same_ids(folder, tmp_path / "m.gguf")


@pytest.mark.parametrize("prefix", [True, False])
def test_merges_become_scores_where_spaces_are_marked(tmp_path: Path, prefix: bool) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    folder = folder_with(tmp_path / "m", spaced(prefix=prefix), config)
    assert convert_model(folder, tmp_path / "m.gguf") == []
    container = open_container(tmp_path / "m.gguf")
    assert (container.text("tokenizer.ggml.model"), container.boolean("tokenizer.ggml.add_space_prefix")) == ("llama", prefix)
    require_same_ids(folder, tmp_path / "m.gguf")


def test_rules_without_a_name_are_told_and_no_tokenizer_is_written(tmp_path: Path) -> None:
    tokenizer = byte_level("gpt-2")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[aeiou]"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    folder = folder_with(tmp_path / "m", tokenizer, {"bos_token": "<|begin|>"})
    (note,) = convert_model(folder, tmp_path / "m.gguf")
    assert "the file has no tokenizer, and takes and gives token ids" in note
    assert "in a way that GGUF has no name for" in note
    assert open_container(tmp_path / "m.gguf").text("tokenizer.ggml.model") == "none"
