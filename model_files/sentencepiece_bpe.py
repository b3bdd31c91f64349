"""SentencePiece's BPE, the tokenizer of Llama 1 and 2, Mistral 7B and TinyLlama.

Why not through the `tokenizers` library: its BPE orders merges by pair, SentencePiece by the score of the result and then by
position, and no list of pairs gives the latter when a token can be made from two different pairs. The algorithm
(Kudo and Richardson 2018, `bpe_model.cc`): begin with characters, repeatedly join the adjacent pair whose concatenation is the token of
the highest score, the leftmost among equals, until none is left; characters without a token become byte tokens.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SPACE_MARK = "\u2581"
_NONE = -1


class _Candidate(NamedTuple):
    """Ordered as the heap needs it: best score first, then leftmost."""

    negated_score: float
    left: int
    right: int
    text: str


class SentencePieceBpe:
    """Merges characters into the pieces of a scored vocabulary."""

    def __init__(self, piece_ids: Mapping[str, int], scores: Sequence[float], byte_ids: Sequence[int]) -> None:
        """`scores` by token id; `byte_ids` the 256 byte tokens in order."""
        self._piece_ids, self._scores, self._byte_ids = piece_ids, scores, byte_ids

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of `text`, in which spaces are already SPACE_MARK. O(n log n) in its length."""
        merging = _Merging(text, self._piece_ids, self._scores)
        return [token_id for piece in merging.run() for token_id in self._ids_of(piece)]

    def _ids_of(self, piece: str) -> list[int]:
        token_id = self._piece_ids.get(piece)
        return [token_id] if token_id is not None else [self._byte_ids[byte] for byte in piece.encode()]


class _Merging:
    """The pieces of one text as a doubly linked list; a joined piece stays at its left half's place."""

    def __init__(self, text: str, piece_ids: Mapping[str, int], scores: Sequence[float]) -> None:
        self._pieces: list[str] = list(text)
        self._before = list(range(-1, len(text) - 1))
        self._after = [*range(1, len(text)), _NONE]
        self._piece_ids, self._scores = piece_ids, scores
        self._heap: list[_Candidate] = []

    def run(self) -> list[str]:
        for left in range(len(self._pieces) - 1):
            self._propose(left, left + 1)
        while self._heap:
            candidate = heapq.heappop(self._heap)
            if self._is_current(candidate):
                self._join(candidate)
        return [piece for piece in self._pieces if piece]

    def _propose(self, left: int, right: int) -> None:
        if left == _NONE or right == _NONE:
            return
        text = self._pieces[left] + self._pieces[right]
        token_id = self._piece_ids.get(text)
        if token_id is not None:
            heapq.heappush(self._heap, _Candidate(-self._scores[token_id], left, right, text))

    def _is_current(self, candidate: _Candidate) -> bool:
        """Whether both halves are still what they were when they were proposed."""
        left, right = candidate.left, candidate.right
        halves = self._pieces[left], self._pieces[right]
        return bool(halves[0] and halves[1]) and halves[0] + halves[1] == candidate.text and self._after[left] == right

    def _join(self, candidate: _Candidate) -> None:
        left, right = candidate.left, candidate.right
        self._pieces[left], self._pieces[right] = candidate.text, ""
        after = self._after[right]
        self._after[left] = after
        if after != _NONE:
            self._before[after] = left
        self._propose(self._before[left], left)
        self._propose(left, after)
