"""The model as its clients know it."""

import time
from dataclasses import dataclass, field

from dairllm.mesh.errors import Unsupported
from dairllm.mesh.fingerprint import system_fingerprint
from dairllm.model_files.chat_template import ChatTemplate
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model of a coordinator.

    model_digest: of its manifest, in hex. arithmetic: whatever else decides the bits of an answer, as one word for people.
    created_s: seconds since 1970, for lists of models. aliases: other names by which clients may ask for it.
    """

    name: str
    model_digest: str
    arithmetic: str
    spec: ModelSpec
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None
    created_s: int = field(default_factory=lambda: int(time.time()))
    aliases: frozenset[str] = frozenset()

    @property
    def fingerprint(self) -> str:
        """Equal where the same request with the same seed has the same answer."""
        return system_fingerprint(self.model_digest, self.arithmetic)

    def text_tokenizer(self) -> Tokenizer:
        """The tokenizer, or Unsupported."""
        if self.tokenizer is None:
            raise Unsupported(f"model {self.name!r} has no tokenizer; expected a prompt of token ids", "prompt")
        return self.tokenizer
