"""Text to token ids and back, whatever file the vocabulary comes from.

Text is first cut at the special tokens that may be recognised, then each stretch goes through the vocabulary's model. Control tokens are
kept out of that model, so that text can never become a control token by merging: only `parse_special` makes one.
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dairllm.model_files.special_texts import SpecialTexts
from dairllm.model_files.text_cuts import TextCuts
from dairllm.model_files.text_pieces import TextModel, TextPiece, TextPlace
from dairllm.model_files.vocabulary import CONTROL_KINDS, TokenKind, Vocabulary

STEP_CHARACTERS = 64 << 10


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`bos_id` and `eos_id` are None where the file names none; `ends` are all tokens that end an answer.

    `before` and `behind`: what the file wants around a text. `eats_left` and `eats_right`: texts of tokens that take the white space on
    that side with them. `shown`: control tokens that people see. `texts`: of those that a chat template may ask for, by its name for
    them, such as `unk_token`.
    """

    bos_id: int | None
    eos_id: int | None
    ends: frozenset[int]
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    eats_left: frozenset[str] = frozenset()
    eats_right: frozenset[str] = frozenset()
    shown: frozenset[str] = frozenset()
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a tokenizer is made of. token_bytes: by id. doubts: what is odd about the file, as sentences."""

    vocabulary: Vocabulary
    token_bytes: Sequence[bytes]
    text_model: TextModel
    cuts: TextCuts
    special: SpecialTokens
    doubts: tuple[str, ...] = ()


class _Recognised:
    """The special tokens that text is cut at."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        self.texts = SpecialTexts(ids)


class Tokenizer:
    """Encodes and decodes. Immutable, safe to use from several threads.

    `end_of_generation_ids` are all tokens that end an answer; `longest_token_bytes` bounds what one token can stand for.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._vocabulary = vocabulary = parts.vocabulary
        self._text_model, self._cuts, self._special_tokens = parts.text_model, parts.cuts, parts.special
        self._token_bytes = parts.token_bytes
        self.vocab_size = len(vocabulary.texts)
        self.longest_token_bytes = max(map(len, self._token_bytes))
        self.bos_id, self.eos_id = parts.special.bos_id, parts.special.eos_id
        self.before, self.behind = parts.special.before, parts.special.behind
        self.end_of_generation_ids = parts.special.ends
        self._always = _Recognised(vocabulary.ids_of_kind(TokenKind.USER_DEFINED))
        self._special = _Recognised(vocabulary.ids_of_kind(TokenKind.USER_DEFINED, TokenKind.CONTROL, TokenKind.UNKNOWN))
        self._hidden = frozenset(
            token_id
            for token_id, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.kinds, strict=True))
            if kind in CONTROL_KINDS and text not in parts.special.shown
        )
        self.doubts = parts.doubts

    @property
    def template_texts(self) -> Mapping[str, str]:
        """Texts of special tokens by the names that chat templates have for them, such as `bos_token`."""
        ids = {"bos_token": self.bos_id, "eos_token": self.eos_id}
        return {**{name: self._special_text(token_id) for name, token_id in ids.items()}, **self._special_tokens.texts}

    @property
    def control_texts(self) -> frozenset[str]:
        """Texts that must not become tokens when a client writes them into a message."""
        return self._special.texts.texts - self._always.texts.texts

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. Lone surrogates, which are not characters, count as U+FFFD. TextTooLong: see `text_cuts`; UnencodableText.

        `add_special` adds the begin and end tokens that the file asks for, the former unless the text begins with them. `parse_special`
        turns the texts of control tokens into these tokens; without it they are ordinary text.
        """
        return [token_id for ids in self.encode_in_steps(text, add_special=add_special, parse_special=parse_special) for token_id in ids]

    def encode_in_steps(self, text: str, *, add_special: bool, parse_special: bool) -> Iterator[list[int]]:
        """`encode`, of about STEP_CHARACTERS at a time: memory grows with the ids only, and who has had enough of them stops."""
        recognised = self._special if parse_special else self._always
        around = (self.before, self.behind) if add_special else ((), ())
        return self._encode(_without_surrogates(text), recognised, *around)

    def encode_prompt(self, rendered: str) -> list[int]:
        """Ids of what a chat template rendered with marks: special tokens parsed, begin tokens added unless the template wrote them."""
        return [token_id for ids in self.encode_prompt_in_steps(rendered) for token_id in ids]

    def encode_prompt_in_steps(self, rendered: str) -> Iterator[list[int]]:
        """`encode_prompt`, as `encode_in_steps`."""
        return self._encode(rendered, self._special, self.before, ())

    def _encode(self, text: str, recognised: _Recognised, before: tuple[int, ...], behind: tuple[int, ...]) -> Iterator[list[int]]:
        steps = self._encode_pieces(recognised.texts.split(text), recognised.ids)
        first = next(steps, [])
        yield first if first[: len(before)] == list(before) else [*before, *first]
        yield from steps
        if behind:
            yield list(behind)

    def _encode_pieces(self, pieces: Iterable[str], special_ids: dict[str, int]) -> Iterator[list[int]]:
        """pieces: plain ones and special texts by turns."""
        step = _Step(self._text_model)
        for index, piece in enumerate(self._without_eaten_space(pieces)):
            if index % 2:
                step.add_special(special_ids[piece])
            else:
                place = TextPlace.BEHIND_SPECIAL if index else TextPlace.BEGIN
                for part in self._cuts.pieces(_without_surrogates(piece)):
                    step.add_text(TextPiece(part, place))
                    place = TextPlace.WITHIN
                    if step.is_full:
                        yield step.take()
            if step.is_full:
                yield step.take()
        yield step.take()

    def _without_eaten_space(self, pieces: Iterable[str]) -> Iterator[str]:
        """Without the white space that special tokens take with them."""
        turns = iter(pieces)
        plain = next(turns)
        for special in turns:
            yield plain.rstrip() if special in self._special_tokens.eats_left else plain
            yield special
            plain = next(turns)
            if special in self._special_tokens.eats_right:
                plain = plain.lstrip()
        yield plain

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Text of the ids, nothing stripped; bytes that are not UTF-8 become U+FFFD. ValueError for an id outside the vocabulary."""
        return b"".join(self.shown_bytes(token_id, skip_special) for token_id in ids).decode(errors="replace")

    def token_text(self, token_id: int) -> bytes:
        """The bytes that a token stands for, maybe part of a character; of a control token its name. ValueError as `decode`."""
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"token id {token_id} is outside the vocabulary; expected 0 to {self.vocab_size - 1}")
        return self._token_bytes[token_id]

    def shown_bytes(self, token_id: int, skip_special: bool) -> bytes:
        """`token_text`, or nothing for a control token that is to be skipped."""
        data = self.token_text(token_id)
        return b"" if skip_special and token_id in self._hidden else data

    def _special_text(self, token_id: int | None) -> str:
        return "" if token_id is None else self._vocabulary.texts[token_id]


class StreamDecoder:
    """Decodes token by token and never gives out half a character.

    What `push` and `flush` return, put together, is `decode` of all the ids. Bytes that cannot become a character any more come
    out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, maybe none."""
        return self._decoder.decode(self._tokenizer.shown_bytes(token_id, self._skip_special))

    def flush(self) -> str:
        """What is left of an unfinished character; the decoder can be used again afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _Step:
    """Collects what is encoded together."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._ids: list[int] = []
        self._pieces: list[TextPiece] = []
        self._size = 0

    def add_text(self, piece: TextPiece) -> None:
        self._pieces.append(piece)
        self._size += len(piece.text)

    def add_special(self, token_id: int) -> None:
        self._encode()
        self._ids.append(token_id)
        self._size += 1

    @property
    def is_full(self) -> bool:
        return self._size >= STEP_CHARACTERS

    def take(self) -> list[int]:
        self._encode()
        ids, self._ids, self._size = self._ids, [], 0
        return ids

    def _encode(self) -> None:
        if self._pieces:
            self._ids += self._model.encode(self._pieces)
            self._pieces = []


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
