"""The tokenizer in the metadata of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import Replace

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.library_model import everywhere
from dairllm.model_files.pretokenizers import PRETOKENIZERS, WordRules, ends_of_words, find_word_rules, make_pre_tokenizer
from dairllm.model_files.sentencepiece_model import SentencePieceModel
from dairllm.model_files.text_cuts import TextCuts
from dairllm.model_files.text_pieces import TextModel
from dairllm.model_files.token_bytes import NUM_BYTES, SPACE_MARK, byte_level_bytes, byte_of_token, byte_token
from dairllm.model_files.tokenizer import SpecialTokens, TokenizerParts
from dairllm.model_files.vocabulary import TokenKind, Vocabulary, checked_vocabulary

DEFAULT_PRETOKENIZER = "default"
_TEXT_KINDS = (TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)


class _Kind(NamedTuple):
    """What `tokenizer.ggml.model` says. add_bos: what holds when the file does not say."""

    text_model: TextModel
    cuts: TextCuts
    bytes_of: Callable[[str], bytes]
    add_bos: bool
    doubts: tuple[str, ...] = ()


def read_gguf_tokenizer(gguf: Container, assumed_pretokenizer: str | None) -> TokenizerParts:
    """assumed_pretokenizer: name of the rules by which words are cut if the file names none, or none that are known."""
    vocabulary = read_vocabulary(gguf)
    kind = _read_kind(gguf, vocabulary, assumed_pretokenizer)
    token_bytes = [_bytes_of(text, token_kind, kind.bytes_of) for text, token_kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)]
    doubts = (*_doubts_about_types(gguf, vocabulary), *kind.doubts)
    return TokenizerParts(vocabulary, token_bytes, kind.text_model, kind.cuts, _special_tokens(gguf, vocabulary, kind), doubts)


def read_vocabulary(gguf: Container) -> Vocabulary:
    """CorruptModelFile if the table is damaged."""
    texts = gguf.texts("tokenizer.ggml.tokens")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(texts) > embedding.shape[0]:
        raise CorruptModelFile(f"{gguf.path} has {len(texts)} tokens, but token_embd.weight has only {embedding.shape[0]} rows")
    numbers = gguf.array("tokenizer.ggml.token_type")
    kinds = [TokenKind.NORMAL] * len(texts) if numbers is None else _token_kinds(gguf, numbers.tolist())
    merged = {merge.replace(" ", "", 1) for merge in gguf.texts("tokenizer.ggml.merges", [])}
    return checked_vocabulary(gguf.path, texts, kinds, merged)


def _token_kinds(gguf: Container, numbers: Sequence[int]) -> list[TokenKind]:
    by_number = {int(kind): kind for kind in TokenKind}
    unknown = set(numbers) - by_number.keys()
    if unknown:
        raise CorruptModelFile(f"{gguf.path} has the token type {min(unknown)}; expected 1 to 6")
    return [by_number[number] for number in numbers]


def _bytes_of(text: str, kind: TokenKind, bytes_of: Callable[[str], bytes]) -> bytes:
    if kind is TokenKind.BYTE:
        return byte_of_token(text) or text.encode()
    return bytes_of(text) if kind in (TokenKind.NORMAL, TokenKind.UNUSED) else text.encode()


def _special_tokens(gguf: Container, vocabulary: Vocabulary, kind: _Kind) -> SpecialTokens:
    named = {name: _special_id(gguf, vocabulary, name) for name in ("bos", "eos", "eot", "eom")}
    add_bos = gguf.boolean("tokenizer.ggml.add_bos_token", kind.add_bos)
    add_eos = gguf.boolean("tokenizer.ggml.add_eos_token", False)
    return SpecialTokens(
        bos_id=named["bos"],
        eos_id=named["eos"],
        ends=vocabulary.ends_of_generation((named["eos"], named["eot"], named["eom"])),
        before=(named["bos"],) if add_bos and named["bos"] is not None else (),
        behind=(named["eos"],) if add_eos and named["eos"] is not None else (),
        eats_right=_texts_that_eat_space(gguf, vocabulary),
        shown=vocabulary.shown_texts(),
    )


def _texts_that_eat_space(gguf: Container, vocabulary: Vocabulary) -> frozenset[str]:
    """Of Phi-3 and 3.5 (tokenizer.json: `rstrip`): their files have no place to say so."""
    if gguf.text("general.architecture", "") != "phi3" or gguf.text("tokenizer.ggml.model") != "llama":
        return frozenset()
    return frozenset(vocabulary.ids_of_kind(TokenKind.CONTROL)) - {"<s>", "<|endoftext|>"}


def _special_id(gguf: Container, vocabulary: Vocabulary, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in gguf.metadata:
        return None
    token_id = gguf.integer(key)
    if not 0 <= token_id < len(vocabulary.texts):
        raise CorruptModelFile(f"{gguf.path} has {key} {token_id}; expected an id from 0 to {len(vocabulary.texts) - 1}")
    return token_id


def _read_kind(gguf: Container, vocabulary: Vocabulary, assumed_pretokenizer: str | None) -> _Kind:
    kind = gguf.text("tokenizer.ggml.model")
    reader = _KINDS.get(kind)
    if reader is None:
        raise UnsupportedModel(f"tokenizer model {kind[:60]!r} is not supported; expected one of {', '.join(map(repr, sorted(_KINDS)))}")
    return reader(gguf, vocabulary, assumed_pretokenizer)


def _byte_level_bpe(gguf: Container, vocabulary: Vocabulary, assumed: str | None) -> _Kind:
    rules, doubts = _word_rules(gguf, assumed)
    ids = vocabulary.ids_of_kind(*_TEXT_KINDS, TokenKind.BYTE)
    library = tokenizers.Tokenizer(BPE(vocab=ids, merges=_merges_within(ids, gguf), ignore_merges=rules.whole_words))
    library.pre_tokenizer = make_pre_tokenizer(rules)
    return _Kind(everywhere(library), TextCuts(ends_of_words(rules)), byte_level_bytes, rules.add_bos, doubts=doubts)


def _spaced_bpe(gguf: Container, vocabulary: Vocabulary, assumed: str | None) -> _Kind:
    """Gemma 4's: merges as of BPE, over a whole text whose spaces are marked, and byte tokens for what is no token."""
    ids = vocabulary.ids_of_kind(*_TEXT_KINDS, TokenKind.BYTE)
    library = tokenizers.Tokenizer(BPE(vocab=ids, merges=_merges_within(ids, gguf), byte_fallback=True))
    library.normalizer = Replace(" ", SPACE_MARK)
    return _Kind(everywhere(library), _cuts_between(vocabulary), _spaced_bytes, add_bos=True)


def _sentencepiece_bpe(gguf: Container, vocabulary: Vocabulary, assumed: str | None) -> _Kind:
    scores = gguf.array("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocabulary.texts):
        raise CorruptModelFile(f"{gguf.path} needs one score per token in tokenizer.ggml.scores, {len(vocabulary.texts)} of them")
    bytes_by_text = vocabulary.ids_of_kind(TokenKind.BYTE)
    byte_ids = [bytes_by_text[text] for text in map(byte_token, range(NUM_BYTES)) if text in bytes_by_text]
    if len(byte_ids) < NUM_BYTES:
        raise UnsupportedModel(f"{gguf.path} has a SentencePiece vocabulary without all 256 byte tokens, which is not supported")
    prefix = " " if gguf.boolean("tokenizer.ggml.add_space_prefix", True) else ""
    model = SentencePieceModel(vocabulary.ids_of_kind(*_TEXT_KINDS), scores.astype(float).tolist(), byte_ids, prefix)
    return _Kind(model, _cuts_between(vocabulary), _spaced_bytes, add_bos=True)


_KINDS: Mapping[str, Callable[[Container, Vocabulary, str | None], _Kind]] = {
    "gpt2": _byte_level_bpe,
    "gemma4": _spaced_bpe,
    "llama": _sentencepiece_bpe,
}


def _spaced_bytes(text: str) -> bytes:
    return text.replace(SPACE_MARK, " ").encode()


def _cuts_between(vocabulary: Vocabulary) -> TextCuts:
    return TextCuts(whole=(text.replace(SPACE_MARK, " ") for text in vocabulary.texts))


def _word_rules(gguf: Container, assumed: str | None) -> tuple[WordRules, tuple[str, ...]]:
    """The rules by which words are cut, and what is doubtful about them."""
    name = gguf.text("tokenizer.ggml.pre", "")
    if name in PRETOKENIZERS:
        return find_word_rules(name), ()
    if name and assumed is None:
        raise UnsupportedModel(
            f"{gguf.path.name} names the pre-tokenizer {name[:60]!r}, which is not known; expected one of {', '.join(PRETOKENIZERS)}, "
            "or one of them to be assumed (--assume-pretokenizer)"
        )
    used = assumed or DEFAULT_PRETOKENIZER
    named = f"names the pre-tokenizer {name[:60]!r}, which is not known" if name else "does not name its pre-tokenizer"
    return find_word_rules(used), (f"{gguf.path.name} {named}; words are cut by the rules of {used!r}, and answers may be worse for it",)


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


def _doubts_about_types(gguf: Container, vocabulary: Vocabulary) -> Iterator[str]:
    if vocabulary.retyped:
        texts = ", ".join(sorted(set(vocabulary.retyped)))
        yield f"{gguf.path.name} types {texts} as ordinary text; control tokens in the chat formats of published models, they count as such"
