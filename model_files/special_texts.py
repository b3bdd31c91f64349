"""Where the texts of special tokens stand in a text, and marks by which some of them do not count.

What a client writes must not become a control token by being put into a prompt. So it is marked where it becomes a part of what a template
writes (`template_sandbox`): a BROKEN mark right behind the first character of a special text takes its meaning away. Marks also stand at
the ends of what a client wrote where it could make a special text together with its neighbours. `split` takes them out.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping

BROKEN = "\udfff"
"""Half a surrogate pair: no text in Unicode has it."""
_BETWEEN = "\ud800"


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
                yield text[begin:place].replace(BROKEN, "")
                begin = place + length
                yield text[place:begin]
        yield text[begin:].replace(BROKEN, "")

    def broken(self, text: str) -> str:
        """The text with marks, so that no special text is in it, nor comes about when anything is put before or behind it."""
        places = {place + 1 for place, _ in self._places(text)} | self._marks_at_begin(text) | self._marks_at_end(text)
        if not places:
            return text
        cuts = [0, *sorted(places), len(text)]
        return BROKEN.join(text[first:last] for first, last in itertools.pairwise(cuts))

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

    def _marks_at_begin(self, text: str) -> set[int]:
        """Before its last character, if the text begins with the end of a special text; or at its end, if it is the middle of one."""
        if text and len(text) < self._longest and text in self._joined:
            return {len(text)}
        ends = (match.start() for match in self._last.finditer(text, 0, self._longest))
        return {end for end in ends if text[: end + 1] + _BETWEEN in self._joined}

    def _marks_at_end(self, text: str) -> set[int]:
        """Behind its first character, if the text ends with the begin of a special text."""
        begins = (match.start() for match in self._first.finditer(text, max(0, len(text) - self._longest)))
        return {begin + 1 for begin in begins if _BETWEEN + text[begin:] in self._joined}


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
