"""Byte-level BPE, the tokenizer of GPT-2 and of most models since, by the `tokenizers` library."""

import os
from collections.abc import Sequence

import tokenizers
from tokenizers.models import BPE

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.pretokenizers import find_word_rules, make_pre_tokenizer
from dairllm.model_files.vocabulary import TokenKind, Vocabulary

# The other cores compute layers.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class ByteLevelBpe:
    """Control tokens are kept out of it, so that text cannot become one by merging. pre: name of the pre-tokenizer."""

    def __init__(self, gguf: Container, vocabulary: Vocabulary, pre: str) -> None:
        rules = find_word_rules(pre)
        ids = vocabulary.ids_of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED, TokenKind.BYTE)
        model = BPE(vocab=ids, merges=_merges_within(ids, gguf), ignore_merges=rules.whole_words)
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = make_pre_tokenizer(rules)
        self.prefix = ""

    def encode(self, pieces: Sequence[str]) -> list[int]:
        # Not `encode` of each: that holds the GIL.
        encodings = self._tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
        return [token_id for encoding in encodings for token_id in encoding.ids]


def _merges_within(ids: dict[str, int], gguf: Container) -> list[tuple[str, str]]:
    """Merges as pairs, without those that involve a control token."""
    control = {text for text in gguf.texts("tokenizer.ggml.tokens") if text not in ids}
    merges: list[tuple[str, str]] = []
    for merge in gguf.texts("tokenizer.ggml.merges"):
        # From 1: the left part may itself be a space in vocabularies that are not byte level at heart.
        cut = merge.find(" ", 1)
        if cut < 1:
            raise CorruptModelFile(f"{gguf.path} has the merge {merge[:60]!r}; expected two parts with a space between them")
        left, right = merge[:cut], merge[cut + 1 :]
        if left in ids and right in ids and left + right in ids:
            merges.append((left, right))
        elif not {left, right, left + right} & control:
            raise CorruptModelFile(f"{gguf.path} has the merge {merge[:60]!r}, whose parts or result are not tokens")
    return merges
