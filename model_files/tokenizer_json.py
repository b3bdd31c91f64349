"""tokenizer.json, the file of the `tokenizers` library, as it is: with its own normaliser, pre-tokenizer and model.

What the file says is checked before the library sees it, since that trusts its files. Two things are changed: control tokens are kept
out of the model, so that text cannot become one, and added tokens are found by `special_texts`. Where a text goes on behind a special token
or behind a cut, what the file adds at the beginning of a text is left out as the library leaves it out.

Format: https://github.com/huggingface/tokenizers/tree/main/tokenizers/src (`serialization.rs` of each part).
"""

import contextlib
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import BPE, Unigram

from dairllm.model_files.errors import CorruptModelFile, UnencodableText, UnsupportedModel
from dairllm.model_files.large_json import read_large_json
from dairllm.model_files.library_components import Component, bytes_of_tokens, component_at, find_cuts, parts_of
from dairllm.model_files.library_model import LibraryModel, library_failures
from dairllm.model_files.text_cuts import TextCuts
from dairllm.model_files.text_pieces import TextModel, TextPiece, TextPlace
from dairllm.model_files.vocabulary import MAX_TOKEN_BYTES, TokenKind, Vocabulary, checked_vocabulary

SPARE_IDS = 1 << 20
"""How many ids may lie between those of tokens."""
MOST_BYTES_PER_BYTE, SPARE_BYTES = 8, 128 << 20
"""So much may the library and the way there take for each byte of the file, and so much more. Published files need it: 128,000 tokens and
280,000 merges in 6 to 17 MB take 144 MiB for a moment, of which the library's own part is 90.
"""
_TOKEN_BYTES, _ADDED_BYTES, _MERGE_BYTES, _NODE_BYTES = 400, 900, 300, 110
"""For a token, an added one, a merge, and a node of unigram's tree."""
_BPE_TEXTS = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix")
PROBES = ("a", "1", " ", "\n", "'", "aB", "a b", "a1", ".", "\u4e2d", "\u0301")
PROBE_LENGTHS = (4, 16, 28, 40, 400, 4000)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """`special`: a control token. eats_left, eats_right: takes the white space there with it."""

    text: str
    token_id: int
    special: bool
    eats_left: bool
    eats_right: bool


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """What the file says. before, behind: ids of the special tokens around a text."""

    vocabulary: Vocabulary
    token_bytes: list[bytes]
    text_model: TextModel
    cuts: TextCuts
    added: tuple[AddedToken, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]
    doubts: tuple[str, ...]


def read_tokenizer_json(path: Path) -> TokenizerJson:
    """CorruptModelFile if it contradicts itself, UnsupportedModel if it has parts that are not known."""
    return _Reader(path).read()


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._root, self._size_bytes = read_large_json(path)
        self._most_bytes = MOST_BYTES_PER_BYTE * self._size_bytes + SPARE_BYTES
        model = self._root.get("model")
        if not isinstance(model, dict):
            raise self._corrupt("has no model")
        self._model: dict[str, Any] = model
        self._kind = model.get("type", "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else None)
        if self._kind not in ("BPE", "Unigram"):
            raise UnsupportedModel(f"{path} has a model of type {_shown(self._kind)}, which is not supported; expected BPE or Unigram")

    def read(self) -> TokenizerJson:
        added = tuple(map(self._added_token, self._objects("added_tokens")))
        texts, kinds = self._texts_and_kinds(added)
        merges = self._take_merges() if self._kind == "BPE" else []
        vocabulary = checked_vocabulary(self._path, texts, kinds, {left + right for left, right in merges})
        parts = {name: parts_of(self._path, name, self._root.get(name)) for name in ("normalizer", "pre_tokenizer", "decoder")}
        token_bytes = self._token_bytes(vocabulary, added, parts)
        model = self._make_model(vocabulary, merges)
        by_place = {place: self._library(model, parts, place) for place in TextPlace}
        text_model = LibraryModel(by_place)
        self._probe(text_model)
        with _library_at(self._path):
            cuts = find_cuts(by_place, [*parts["normalizer"], *parts["pre_tokenizer"]], token_bytes)
        before, behind = self._around()
        return TokenizerJson(vocabulary, token_bytes, text_model, cuts, added, before, behind, tuple(self._doubts(vocabulary)))

    def _corrupt(self, sentence: str) -> CorruptModelFile:
        return CorruptModelFile(f"{self._path} {sentence}")

    def _objects(self, name: str) -> list[dict[str, Any]]:
        value = self._root.get(name) or []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self._corrupt(f"has {_shown(value)} as {name}; expected a list of objects")
        return value

    def _added_token(self, token: Mapping[str, Any]) -> AddedToken:
        text, token_id = token.get("content"), token.get("id")
        if not isinstance(text, str) or not text or len(text) > MAX_TOKEN_BYTES or type(token_id) is not int or token_id < 0:
            raise self._corrupt(f"has the added token {_shown(text)} with id {_shown(token_id)}; expected a text and an id of its own")
        flags = [token.get(name, False) for name in ("special", "lstrip", "rstrip")]
        if not all(isinstance(flag, bool) for flag in flags):
            raise self._corrupt(f"has the added token {_shown(text)} with {_shown(flags)}; expected true or false")
        return AddedToken(text, token_id, *flags)

    def _texts_and_kinds(self, added: Sequence[AddedToken]) -> tuple[list[str], list[TokenKind]]:
        ids = self._model_ids()
        self._check_weight(len(ids), len(added))
        highest = max([*ids.values(), *(token.token_id for token in added)], default=-1)
        if highest >= len(ids) + len(added) + SPARE_IDS:
            raise self._corrupt(f"has the token id {highest} with {len(ids) + len(added)} tokens; expected ids without large gaps")
        texts, kinds = [""] * (highest + 1), [TokenKind.UNUSED] * (highest + 1)
        for text, token_id in ids.items():
            if kinds[token_id] is not TokenKind.UNUSED:
                raise self._corrupt(
                    f"gives the id {token_id} to {_shown(texts[token_id])} and to {_shown(text)}; expected ids of their own"
                )
            texts[token_id], kinds[token_id] = text, TokenKind.NORMAL
        for token in added:
            if ids.get(token.text, token.token_id) != token.token_id:
                raise self._corrupt(f"gives {_shown(token.text)} the ids {ids[token.text]} and {token.token_id}; expected one")
            own = texts[token.token_id]
            if kinds[token.token_id] is not TokenKind.UNUSED and own != token.text:
                raise self._corrupt(
                    f"gives the id {token.token_id} to {_shown(own)} and to {_shown(token.text)}; expected ids of their own"
                )
            texts[token.token_id] = token.text
            kinds[token.token_id] = TokenKind.CONTROL if token.special else TokenKind.USER_DEFINED
        return texts, kinds

    def _model_ids(self) -> dict[str, int]:
        vocab = self._model.get("vocab")
        if self._kind == "Unigram":
            return {text: index for index, (text, _) in enumerate(self._scored())}
        if not isinstance(vocab, dict) or not all(type(token_id) is int and token_id >= 0 for token_id in vocab.values()):
            raise self._corrupt("has a vocabulary that is no object of token ids; expected one")
        return vocab

    def _scored(self) -> list[tuple[str, float]]:
        vocab = self._model.get("vocab")
        if not isinstance(vocab, list) or not all(map(_is_scored, vocab)):
            raise self._corrupt("has a vocabulary that is no list of texts with scores; expected one")
        if len({text for text, _ in vocab}) < len(vocab):
            raise self._corrupt("has a vocabulary in which a text comes twice; expected each once")
        return [(text, float(score)) for text, score in vocab]

    def _check_weight(self, num_tokens: int, num_added: int) -> None:
        merges = self._model.get("merges")
        num_merges = len(merges) if isinstance(merges, list) else 0
        weight = num_tokens * _TOKEN_BYTES + num_added * _ADDED_BYTES + num_merges * _MERGE_BYTES
        if weight > self._most_bytes:
            what = f"{num_tokens} tokens, {num_added} added ones and {num_merges} merges"
            raise self._corrupt(f"has {what} in {self._size_bytes} bytes; expected fewer")

    def _take_merges(self) -> list[tuple[str, str]]:
        """As pairs of the vocabulary's own texts, taken out of what was read, which is large."""
        merges = self._model.pop("merges", [])
        if not isinstance(merges, list):
            raise self._corrupt(f"has {_shown(merges)} as merges; expected a list")
        own = {text: text for text in self._model["vocab"]}
        prefix = len(self._text_of_model("continuing_subword_prefix") or "")
        for index, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise self._corrupt(f"has the merge {_shown(merge)}; expected two parts")
            left, right = pair
            if left not in own or right not in own or left + right[prefix:] not in own:
                raise self._corrupt(f"has the merge {_shown(merge)}, whose parts or result are not tokens")
            merges[index] = (own[left], own[right])
        return merges

    def _text_of_model(self, name: str) -> str | None:
        value = self._model.get(name)
        if value is not None and not isinstance(value, str):
            raise self._corrupt(f"has {_shown(value)} as {name}; expected a text")
        return value

    def _flag(self, name: str) -> bool:
        value = self._model.get(name) or False
        if not isinstance(value, bool):
            raise self._corrupt(f"has {_shown(value)} as {name}; expected true or false")
        return value

    def _make_model(self, vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> BPE | Unigram:
        """Control tokens get names that no text has."""
        control = vocabulary.ids_of_kind(TokenKind.CONTROL).keys()
        hidden = secrets.token_hex(16)

        def name(text: str) -> str:
            return f"{hidden}{text}" if text in control else text

        with _library_at(self._path):
            return self._make_bpe(control, name, merges) if self._kind == "BPE" else self._make_unigram(name)

    def _make_bpe(self, control: Set[str], name: Callable[[str], str], merges: list[tuple[str, str]]) -> BPE:
        texts = {key: text for key in _BPE_TEXTS if (text := self._text_of_model(key))}
        if "unk_token" in texts:
            if texts["unk_token"] not in self._model["vocab"]:
                raise self._corrupt(f"has the unknown token {_shown(texts['unk_token'])}, which is no token")
            texts["unk_token"] = name(texts["unk_token"])
        left_out = control & self._model["vocab"].keys()
        if left_out:
            prefix = len(texts.get("continuing_subword_prefix", ""))
            merges = [(a, b) for a, b in merges if not {a, b, a + b[prefix:]} & left_out]
        vocab = {name(text): token_id for text, token_id in self._model["vocab"].items()} if left_out else self._model["vocab"]
        return BPE(
            vocab=vocab,
            merges=merges,
            **texts,
            fuse_unk=self._flag("fuse_unk"),
            byte_fallback=self._flag("byte_fallback"),
            ignore_merges=self._flag("ignore_merges"),
        )

    def _make_unigram(self, name: Callable[[str], str]) -> Unigram:
        scored, unknown = self._scored(), self._model.get("unk_id")
        if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(scored)):
            raise self._corrupt(f"has the unknown id {_shown(unknown)}; expected one of its {len(scored)} tokens")
        nodes = _tree_nodes([text for text, _ in scored])
        if nodes * _NODE_BYTES > self._most_bytes:
            raise self._corrupt(f"has tokens of {nodes} characters in {self._size_bytes} bytes; expected fewer")
        return Unigram(vocab=[(name(text), score) for text, score in scored], unk_id=unknown, byte_fallback=self._flag("byte_fallback"))

    def _library(self, model: BPE | Unigram, parts: Mapping[str, Sequence[Component]], place: TextPlace) -> tokenizers.Tokenizer:
        components = {name: component_at(name, parts[name], place) for name in ("normalizer", "pre_tokenizer")}
        empty = {"type": "BPE", "vocab": {}, "merges": []}
        with _library_at(self._path):
            library = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], **components, "model": empty}))
            library.model = model
        return library

    def _probe(self, model: LibraryModel) -> None:
        """Patterns that fail, or take longer than any text is worth, are found before the texts of people meet them."""
        for length in PROBE_LENGTHS:
            for text in PROBES:
                with _library_at(self._path):
                    model.encode([TextPiece(text * length, TextPlace.BEGIN)])

    def _token_bytes(self, vocabulary: Vocabulary, added: Sequence[AddedToken], parts: Mapping[str, Sequence[Component]]) -> list[bytes]:
        is_byte_level = any(part["type"] == "ByteLevel" for part in (*parts["normalizer"], *parts["pre_tokenizer"]))
        bytes_of = bytes_of_tokens(self._path, parts["decoder"], is_byte_level)
        found = list(map(bytes_of, vocabulary.texts))
        for token in added:
            found[token.token_id] = token.text.encode()
        return found

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that the post-processor puts before and behind one text."""
        processor = self._root.get("post_processor")
        parts = processor.get("processors") if isinstance(processor, dict) and processor.get("type") == "Sequence" else [processor]
        template = next((part for part in parts or () if isinstance(part, dict) and part.get("type") == "TemplateProcessing"), None)
        if template is None:
            return (), ()
        try:
            return _around(template)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise self._corrupt(
                "has a post_processor whose template is none; expected special tokens with ids around one sequence"
            ) from error

    def _doubts(self, vocabulary: Vocabulary) -> Iterator[str]:
        if vocabulary.retyped:
            texts = ", ".join(sorted(set(vocabulary.retyped)))
            reason = "control tokens in the chat formats of published models, they count as such"
            yield f"{self._path.name} types {texts} as ordinary text; {reason}"


@contextlib.contextmanager
def _library_at(path: Path) -> Iterator[None]:
    """What the library fails with while a file is read is the file's fault."""
    try:
        with library_failures("its parts do not work together"):
            yield
    except UnencodableText as error:
        raise CorruptModelFile(f"{path} cannot be used: {error}") from error


def _around(template: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found: tuple[list[int], list[int]] = ([], [])
    side = 0
    for item in template["single"]:
        if "Sequence" in item:
            side = 1
            continue
        ids = template["special_tokens"][item["SpecialToken"]["id"]]["ids"]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise ValueError(ids)
        found[side].extend(ids)
    return tuple(found[0]), tuple(found[1])


def _is_scored(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    text, score = entry
    return isinstance(text, str) and isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)


def _tree_nodes(texts: Sequence[str]) -> int:
    """Of the tree of all prefixes, in bytes."""
    ordered, nodes, last = sorted(text.encode() for text in texts), 0, b""
    for data in ordered:
        common = 0
        while common < min(len(data), len(last)) and data[common] == last[common]:
            common += 1
        nodes, last = nodes + len(data) - common, data
    return nodes


def _shown(value: object) -> str:
    return repr(value)[:60]
