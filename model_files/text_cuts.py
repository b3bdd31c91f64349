"""Where a text can be cut without changing its tokens.

Long texts are encoded piece by piece, so that the time and memory of a step are bounded and what is too long is noticed early. A cut lies
between a letter or digit and white space or punctuation. The patterns of all pre-tokenizers begin a new word there. SentencePiece has no
words, but does not merge across a pair of characters that is in none of its tokens.
"""

import re
from collections.abc import Iterable, Iterator

PIECE_CHARACTERS = 16 << 10
MAX_PIECE_CHARACTERS = 1 << 18

_CUT = re.compile(r"[^\W_](?=([\s!-/:-@\[-`{-~\u3001\u3002\uff01-\uff0f\uff1a-\uff20]))")


class TextTooLong(ValueError):
    """It has a stretch without a place to cut it that would take too much memory to encode."""


class TextCuts:
    """whole: texts of tokens that a cut must not go through."""

    def __init__(self, whole: Iterable[str]) -> None:
        self._inside = {match[0] + match[1] for match in _CUT.finditer("\0".join(whole))}

    def pieces(self, text: str) -> Iterator[str]:
        """The text in pieces of a little over PIECE_CHARACTERS; TextTooLong if one would have over MAX_PIECE_CHARACTERS."""
        begin = 0
        while begin < len(text):
            end = self._next_cut(text, begin + PIECE_CHARACTERS)
            if end - begin > MAX_PIECE_CHARACTERS:
                raise TextTooLong(
                    f"the text has {end - begin} characters without a word's end between them; expected at most {MAX_PIECE_CHARACTERS}"
                )
            yield text[begin:end]
            begin = end

    def _next_cut(self, text: str, begin: int) -> int:
        matches = (match for match in _CUT.finditer(text, begin) if match[0] + match[1] not in self._inside)
        return next((match.end() for match in matches), len(text))
