"""The prompt, given out before its answer where `echo` was asked for."""

from collections.abc import Iterator, Sequence

from dairllm.coordinator.text.text_events import TextDelta
from dairllm.coordinator.text.text_request import TextRequest
from dairllm.coordinator.text.token_texts import TokenTexts
from dairllm.mesh.ring.frames import TokenScore
from dairllm.model_files.tokenizer import StreamDecoder, Tokenizer

TOKENS_IN_DELTA = 256
"""With the most alternatives each, their texts hold the event loop for about 10 ms."""


class EchoedPrompt:
    """text: what is given out of the prompt of `request`."""

    def __init__(self, tokenizer: Tokenizer | None, request: TextRequest) -> None:
        self._tokenizer = tokenizer
        self._ids = request.prompt_ids
        self.text = _text_of(tokenizer, request)

    def deltas(self, scores: Sequence[TokenScore] | None) -> Iterator[TextDelta]:
        """The text, and the tokens a few at a time. scores: of all tokens but the first; None where none were asked for."""
        first, *others = self._ids
        unknown = float("nan")
        scored = scores if scores is not None else [TokenScore(token_id, unknown) for token_id in others]
        all_scores = [TokenScore(first, unknown), *scored]
        texts, offsets = TokenTexts(self._tokenizer), self._offsets()
        text = self.text
        for begin in range(0, len(all_scores), TOKENS_IN_DELTA):
            part = slice(begin, begin + TOKENS_IN_DELTA)
            described = (texts.describe(score, offset) for score, offset in zip(all_scores[part], offsets[part], strict=True))
            yield TextDelta(text, tuple(described))
            text = ""

    def _offsets(self) -> list[int]:
        """Where each token's text begins in the echoed text. Tokens that the tokenizer added before it begin at 0."""
        if self._tokenizer is None:
            return [0] * len(self._ids)
        decoder = StreamDecoder(self._tokenizer, skip_special=False)
        offsets, length = [], 0
        for token_id in self._ids:
            offsets.append(length)
            length += len(decoder.push(token_id))
        added = max(length + len(decoder.flush()) - len(self.text), 0)
        return [max(offset - added, 0) for offset in offsets]


def _text_of(tokenizer: Tokenizer | None, request: TextRequest) -> str:
    if not request.echo:
        return ""
    if request.prompt_text is not None:
        return request.prompt_text
    return "" if tokenizer is None else tokenizer.decode(request.prompt_ids, skip_special=False)
