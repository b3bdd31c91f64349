"""Tokens as clients see them."""

from dairllm.coordinator.text.text_events import TextToken, TopToken
from dairllm.mesh.ring.frames import TokenScore
from dairllm.model_files.tokenizer import Tokenizer


class TokenTexts:
    """Writes tokens, with or without a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def describe(self, score: TokenScore, offset: int, ends_answer: bool = False) -> TextToken:
        data = self._data(score.token_id)
        logprob = None if score.logprob != score.logprob else score.logprob
        top = tuple(TopToken(i, self._text(i, data_i), data_i, p) for i, p in score.top for data_i in (self._data(i),))
        return TextToken(score.token_id, self._text(score.token_id, data), data, logprob, top, offset, ends_answer)

    def _data(self, token_id: int) -> bytes | None:
        if self._tokenizer is None or not 0 <= token_id < self._tokenizer.vocab_size:
            return None
        return self._tokenizer.token_text(token_id)

    def _text(self, token_id: int, data: bytes | None) -> str:
        if data is None:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
