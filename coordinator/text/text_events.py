"""What is given out of an answer while it grows."""

from typing import NamedTuple


class TopToken(NamedTuple):
    token_id: int
    text: str
    data: bytes | None
    logprob: float


class TextToken(NamedTuple):
    """A token of the prompt or the answer.

    text: its bytes as text, 'bytes:\\xe2\\x80' if they are not whole characters, 'token_id:7' without a tokenizer (then data is None).
    logprob: None where it was not asked for, and for the first token of a prompt. offset: where its text begins, in characters of what is
    given out. ends_answer: it is the model's end token, which has no text in the answer.
    """

    token_id: int
    text: str
    data: bytes | None
    logprob: float | None
    top: tuple[TopToken, ...]
    offset: int
    ends_answer: bool


class TextDelta(NamedTuple):
    """Text since the delta before, and the tokens whose text is out by now. Either may be empty; it is false if both are."""

    text: str
    tokens: tuple[TextToken, ...]

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class TextFinished(NamedTuple):
    """The last event. reason: 'stop' (end token or stop string) or 'length'. Times in seconds, 0 without a token.

    cached_tokens: of the prompt, which an earlier one began with, so that they were not computed.
    first_token_s: from the call to the first token; decode_s: from the first token to the last.
    """

    reason: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float
    decode_s: float


TextEvent = TextDelta | TextFinished
