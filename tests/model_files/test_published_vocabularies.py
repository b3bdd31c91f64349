"""Ids of published vocabularies as their makers' own tokenizers give them.

They come with llama.cpp (MIT), in the source archive of llama-cpp-python on PyPI, in the folder vendor/llama.cpp/models, 80 MB:
`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python`. Its .inp files hold texts, its .out files the ids that transformers
gave. DAIRLLM_VOCABULARIES names the folder; without it there is nothing to compare with.
"""

import os
from pathlib import Path

import pytest

from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.tokenizer_sources import load_tokenizer

FOLDER = Path(os.environ.get("DAIRLLM_VOCABULARIES", ""))
VOCABULARIES = sorted(path for path in FOLDER.glob("ggml-vocab-*.gguf") if path.with_suffix(".gguf.out").exists())
UNSUPPORTED = {"bert": "WordPiece"}
SEPARATOR = "__ggml_vocab_test__"


@pytest.mark.skipif(not os.environ.get("DAIRLLM_VOCABULARIES"), reason="DAIRLLM_VOCABULARIES names no folder with vocabularies")
def test_there_are_vocabularies() -> None:
    assert VOCABULARIES


@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem)
def test_ids_of_a_published_vocabulary(path: Path) -> None:
    container = read_gguf(path)
    if container.text("tokenizer.ggml.model") in UNSUPPORTED:
        pytest.skip(f"{path.name} is a vocabulary of {UNSUPPORTED[container.text('tokenizer.ggml.model')]}, which is refused")
    tokenizer = load_tokenizer(container)
    texts = path.with_suffix(".gguf.inp").read_text().split(f"\n{SEPARATOR}\n")
    lines = path.with_suffix(".gguf.out").read_text().splitlines()
    assert len(texts) - 1 <= len(lines) <= len(texts)
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special=False, parse_special=False) == [int(token_id) for token_id in line.split()], text
