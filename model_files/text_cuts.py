"""Where a text can be cut without changing its tokens.

Long texts are encoded piece by piece, so that the time and memory of a step are bounded and what is too long is noticed early. A cut lies
between a letter or digit and white space or punctuation. That is right where a new word begins there, which is found by trying
(`word_ends`), or where no token of the vocabulary holds both characters.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

PIECE_CHARACTERS = 16 << 10
MAX_PIECE_CHARACTERS = 1 << 18

FOLLOWERS = " \n\r\t\u00a0\u2028\u3000" + '!"#$%&()*+,-./:;<=>?@[\\]^`{|}~' + "\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f"
"""Characters before which a cut may lie. The apostrophe is none of them: words go on behind it in some vocabularies and not in others."""
_CUT = re.compile(f"[^\\W_](?=([{re.escape(FOLLOWERS)}]))")
_ASCII_LEFT = ("ab", "aB", "12", "1234", "a b", ", a", "\n1")
_OTHER_LEFT = ("\u00e9", "\u4e2d", "\u05d0", "\u0e01", "\u0915", "\u0661", "\u2460", "\U0001d54a", "a\u4e2d", "\u0430\u0411")
_RIGHT = ("", "a", "B c", "1", "123", "s x", "-", ",,", " ", "  d", "\n", "\n\n e", " \n", "\u4e2d")


class TextTooLong(ValueError):
    """It has a stretch without a place to cut it that would take too much memory to encode."""


class WordEnds(NamedTuple):
    """Characters that always begin a new word: behind letters and digits of ASCII, and behind others."""

    behind_ascii: str = ""
    behind_others: str = ""


class TextCuts:
    """Where texts are cut, as (pieces of) `encode_in_steps` need it."""

    def __init__(
        self,
        ends: WordEnds | None = None,
        whole: Iterable[str] | None = None,
        *,
        ascii_only: bool = False,
        most_characters: int = MAX_PIECE_CHARACTERS,
    ) -> None:
        """whole: texts of all tokens; two characters that are in none of them may be cut apart. ascii_only: if both are ASCII, for tokens
        that may hold parts of characters. most_characters: without a cut.
        """
        self._behind_ascii, self._behind_others = map(frozenset, ends or WordEnds())
        self._ascii_only = ascii_only
        self._most_characters = most_characters
        self._inside = None if whole is None else {match[0] + match[1] for match in _CUT.finditer("\0".join(whole))}

    def pieces(self, text: str) -> Iterator[str]:
        """The text in pieces of a little over PIECE_CHARACTERS; TextTooLong if one would have over `most_characters`."""
        begin = 0
        while begin < len(text):
            end = self._next_cut(text, begin + min(PIECE_CHARACTERS, self._most_characters // 2))
            if end - begin > self._most_characters:
                raise TextTooLong(
                    f"the text has {end - begin} characters without a word's end between them; expected at most {self._most_characters}"
                )
            yield text[begin:end]
            begin = end

    def _next_cut(self, text: str, begin: int) -> int:
        return next((match.end() for match in _CUT.finditer(text, begin) if self._is_cut(match)), len(text))

    def _is_cut(self, match: re.Match[str]) -> bool:
        pair = match[0] + match[1]
        return match[1] in (self._behind_ascii if match[0].isascii() else self._behind_others) or (
            self._inside is not None and pair not in self._inside and (pair.isascii() or not self._ascii_only)
        )


def word_ends(words: Callable[[str], Sequence[str]], rest_words: Callable[[str], Sequence[str]]) -> WordEnds:
    """Those of FOLLOWERS that always begin a new word.

    words: of a text. rest_words: of what follows a cut.
    """

    words, rest_words = cache(words), cache(rest_words)

    def ends_behind(lefts: Sequence[str]) -> str:
        return "".join(follower for follower in FOLLOWERS if all(is_end(follower, pair) for pair in itertools.product(lefts, _RIGHT)))

    def is_end(follower: str, around: tuple[str, str]) -> bool:
        left, right = around
        return [*words(left), *rest_words(follower + right)] == [*words(left + follower + right)]

    return WordEnds(ends_behind(_ASCII_LEFT), ends_behind(_OTHER_LEFT))
