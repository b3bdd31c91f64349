"""Where the texts of special tokens stand in a text, and marks by which some of them do not count.

What a client writes must not become a control token by being put into a prompt. So it is marked where it becomes a part of what a template
writes (`template_sandbox`): BROKEN right behind the first character of a special text takes its meaning away, and SEAM stands near the ends
of what a client wrote where it could make a special text together with its neighbours. `split` takes both out.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

BROKEN, SEAM = "\udfff", "\udffe"
"""Halves of surrogate pairs: no text in Unicode has them."""
_BETWEEN = "\ud800"


def without_marks(text: str) -> str:
    return text.replace(BROKEN, "").replace(SEAM, "")


class SpecialTexts:
    """A set of texts, of which the longest counts where several begin at one place. Costs no more for many than for few."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = frozenset(text for text in texts if text)
        self._lengths = _lengths_by_beginning(self.texts)
        self._first = _any_character({text[0] for text in self.texts})
        self._last = _any_character({text[-1] for text in self.texts})
        self._joined = _BETWEEN + _BETWEEN.join(sorted(self.texts)) + _BETWEEN
        self._longest = max(map(len, self.texts), default=0)

    def split(self, text: str) -> Iterator[str]:
        """Plain pieces, without marks and maybe empty, and special texts by turns; the first and the last are plain."""
        begin = 0
        for place, length in self._places(text):
            if place >= begin:
                yield without_marks(text[begin:place])
                begin = place + length
                yield text[place:begin]
        yield without_marks(text[begin:])

    def broken(self, text: str) -> str:
        """The text with marks, so that no special text is in it, nor comes about when anything is put before or behind it."""
        marks = dict.fromkeys(self._seams(text), SEAM) | {place + 1: BROKEN for place, _ in self._places(text)}
        places = sorted(marks)
        parts = [text[first:last] for first, last in itertools.pairwise((0, *places, len(text)))]
        return parts[0] + "".join(marks[place] + part for place, part in zip(places, parts[1:], strict=True))

    def _places(self, text: str) -> Iterator[tuple[int, int]]:
        """Where a special text begins, and the length of the longest; they may overlap."""
        for match in self._first.finditer(text):
            place = match.start()
            if text[place + 1 : place + 2] == BROKEN:
                continue
            for length in self._lengths.get(text[place : place + 2], self._lengths.get(text[place], ())):
                if text[place : place + length] in self.texts:
                    yield place, length
                    break

    def _seams(self, text: str) -> Iterator[int]:
        if not text:
            return
        if len(text) < self._longest and text in self._joined:
            yield from (0, len(text))
        for match in self._last.finditer(text, 0, self._longest):
            if text[: match.end()] + _BETWEEN in self._joined:
                yield match.start()
        for match in self._first.finditer(text, max(0, len(text) - self._longest)):
            if _BETWEEN + text[match.start() :] in self._joined:
                yield match.end()


def _lengths_by_beginning(texts: Iterable[str]) -> Mapping[str, tuple[int, ...]]:
    """Lengths, longest first, by the first two characters; of a text of one character also under each that begins with it."""
    found: dict[str, set[int]] = {}
    for text in texts:
        found.setdefault(text[:2], set()).add(len(text))
    for beginning, lengths in found.items():
        if len(beginning) == 2 and beginning[0] in found:
            lengths.add(1)
    return {beginning: tuple(sorted(lengths, reverse=True)) for beginning, lengths in found.items()}


def _any_character(characters: set[str]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(map(re.escape, sorted(characters)))}]" if characters else r"(?!)")
