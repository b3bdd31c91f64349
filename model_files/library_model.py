"""Text models of the `tokenizers` library."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence

import tokenizers

from dairllm.model_files.errors import ModelFileError, UnencodableText
from dairllm.model_files.text_pieces import TextPiece, TextPlace

# The other cores compute layers.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class LibraryModel:
    """by_place: what encodes the pieces of each place."""

    def __init__(self, by_place: Mapping[TextPlace, tokenizers.Tokenizer]) -> None:
        self._by_place = by_place

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        ids: list[int] = []
        for place, run in itertools.groupby(pieces, lambda piece: piece.place):
            with library_failures("the text cannot be encoded"):
                # Not `encode` of each: that holds the GIL.
                encodings = self._by_place[place].encode_batch_fast([piece.text for piece in run], add_special_tokens=False)
            for encoding in encodings:
                ids += encoding.ids
        return ids


def everywhere(tokenizer: tokenizers.Tokenizer) -> LibraryModel:
    """For vocabularies that treat text alike wherever it stands."""
    return LibraryModel(dict.fromkeys(TextPlace, tokenizer))


@contextlib.contextmanager
def library_failures(what: str) -> Iterator[None]:
    """UnencodableText, in one sentence, for whatever the library raises: panics too, which are no `Exception`."""
    try:
        yield
    except ModelFileError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnencodableText(f"{what}: the model's tokenizer fails with {reason!r}") from error
