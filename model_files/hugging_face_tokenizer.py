"""The tokenizer of a folder as transformers saves it: tokenizer.json, and what its neighbours say of special tokens.

https://huggingface.co/docs/transformers/main/main_classes/tokenizer: tokenizer_config.json (or special_tokens_map.json) names them by text,
generation_config.json and config.json name those that end an answer by id.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dairllm.model_files.containers import Container
from dairllm.model_files.containers.bounded_json import MAX_JSON_BYTES, parse_json_object
from dairllm.model_files.containers.regular_files import read_whole
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.tokenizer import SpecialTokens, TokenizerParts
from dairllm.model_files.tokenizer_json import SPARE_IDS, TokenizerJson, read_tokenizer_json
from dairllm.model_files.vocabulary import TokenKind

TOKENIZER_JSON, TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION_CONFIG = "generation_config.json"
_SPECIAL_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"))
MAX_END_IDS = 1024


def read_hugging_face_tokenizer(container: Container) -> TokenizerParts:
    """UnsupportedModel, CorruptModelFile."""
    found = _within_rows(read_tokenizer_json(container.companions[TOKENIZER_JSON]), container)
    return TokenizerParts(
        found.vocabulary, found.token_bytes, found.text_model, found.cuts, _Neighbours(container, found).special_tokens(), found.doubts
    )


def read_companion(container: Container, name: str) -> Mapping[str, Any]:
    """A JSON file beside the weights; an empty object if there is none."""
    path = container.companions.get(name)
    return {} if path is None else parse_json_object(read_whole(path, MAX_JSON_BYTES), str(path))


def _within_rows(found: TokenizerJson, container: Container) -> TokenizerJson:
    """With as many tokens as the model has rows: further ones cannot be computed, and missing ones have no text."""
    num_tokens, num_rows = len(found.vocabulary.texts), container.metadata.get("vocab_size")
    if type(num_rows) is not int or not 0 < num_rows <= num_tokens + SPARE_IDS:
        return found
    texts, kinds = list(found.vocabulary.texts[:num_rows]), list(found.vocabulary.kinds[:num_rows])
    added = tuple(token for token in found.added if token.token_id < num_rows)
    if num_rows + len(found.added) - len(added) < num_tokens:
        path = container.companions[TOKENIZER_JSON]
        raise CorruptModelFile(f"{path} has {num_tokens} tokens, but the model has only {num_rows} rows of its vocabulary")
    missing = num_rows - len(texts)
    vocabulary = replace(found.vocabulary, texts=[*texts, *[""] * missing], kinds=[*kinds, *[TokenKind.UNUSED] * missing])
    token_bytes = [*found.token_bytes[:num_rows], *[b""] * missing]
    return replace(found, vocabulary=vocabulary, token_bytes=token_bytes, added=added)


class _Neighbours:
    """What the files beside tokenizer.json say of its tokens."""

    def __init__(self, container: Container, found: TokenizerJson) -> None:
        self._container, self._found = container, found
        self._config = read_companion(container, TOKENIZER_CONFIG)
        self._map = read_companion(container, SPECIAL_TOKENS_MAP)

    def special_tokens(self) -> SpecialTokens:
        texts = {name: text for name in _SPECIAL_NAMES if (text := self._text(name)) is not None}
        bos_id, eos_id = (self._id_of(texts.get(name, "")) for name in ("bos_token", "eos_token"))
        found = self._found
        return SpecialTokens(
            bos_id=bos_id,
            eos_id=eos_id,
            ends=found.vocabulary.ends_of_generation([eos_id, *self._named_ends()]),
            before=self._around("add_bos_token", found.before, bos_id),
            behind=self._around("add_eos_token", found.behind, eos_id),
            eats_left=frozenset(token.text for token in found.added if token.eats_left),
            eats_right=frozenset(token.text for token in found.added if token.eats_right),
            shown=found.vocabulary.shown_texts(),
            texts=texts,
        )

    def _id_of(self, text: str) -> int | None:
        texts = self._found.vocabulary.texts
        return texts.index(text) if text and text in texts else None

    def _text(self, name: str) -> str | None:
        value = self._config.get(name) or self._map.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and not isinstance(text, str):
            raise CorruptModelFile(f"{self._container.path} has {text!r:.60} as {name}; expected a text")
        return text

    def _around(self, flag: str, processed: tuple[int, ...], token_id: int | None) -> tuple[int, ...]:
        """A flag that is there decides; else the post-processor of tokenizer.json does."""
        outside = [one for one in processed if one >= len(self._found.vocabulary.texts)]
        if outside:
            raise CorruptModelFile(f"{self._container.path} puts the token id {outside[0]} around texts; expected one of its tokens")
        match self._config.get(flag):
            case True if not processed and token_id is not None:
                return (token_id,)
            case False:
                return ()
        return processed

    def _named_ends(self) -> Iterator[int]:
        for path, value in self._end_values():
            ids = value if isinstance(value, list) else [value]
            if len(ids) > MAX_END_IDS or not all(type(one) is int and one >= 0 for one in ids):
                raise CorruptModelFile(f"{path} has {value!r:.60} as eos_token_id; expected token ids")
            yield from (one for one in ids if one < len(self._found.vocabulary.texts))

    def _end_values(self) -> Iterator[tuple[Path, Any]]:
        generation = read_companion(self._container, GENERATION_CONFIG).get("eos_token_id")
        if generation is not None:
            yield self._container.companions[GENERATION_CONFIG], generation
        config = self._container.metadata.get("eos_token_id")
        if config is not None:
            yield self._container.path, config.tolist() if isinstance(config, np.ndarray) else config


def refuse_other_files(container: Container) -> UnsupportedModel:
    """What to say of a folder without tokenizer.json."""
    others = [name for name in ("tokenizer.model", "vocab.json") if name in container.companions]
    if others:
        return UnsupportedModel(
            f"{container.path.name} has its tokenizer as {others[0]} only, which is not read; expected a {TOKENIZER_JSON}, as "
            "transformers saves it with `AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)`"
        )
    return UnsupportedModel(f"{container.path.name} has no tokenizer; the model takes and gives token ids")
