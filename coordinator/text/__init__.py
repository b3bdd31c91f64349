"""Text over the engine's tokens: prompts in, answers out. What the HTTP and the gRPC interface have in common."""

from dairllm.coordinator.text.answer_text import AnswerText
from dairllm.coordinator.text.askers import address_of_peer, client_name
from dairllm.coordinator.text.choices import ChoiceEvent, Choices
from dairllm.coordinator.text.served_model import ServedModel
from dairllm.coordinator.text.stop_filter import StopFilter
from dairllm.coordinator.text.stopwatch import LatencyObserver
from dairllm.coordinator.text.text_events import TextDelta, TextEvent, TextFinished, TextToken, TopToken
from dairllm.coordinator.text.text_request import (
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    ROLES,
    ChatContext,
    ChatMessage,
    TextRequest,
    random_seed,
)
from dairllm.coordinator.text.text_service import TextService

__all__ = [
    "MAX_STOP_LENGTH",
    "MAX_STOP_STRINGS",
    "ROLES",
    "AnswerText",
    "ChatContext",
    "ChatMessage",
    "ChoiceEvent",
    "Choices",
    "LatencyObserver",
    "ServedModel",
    "StopFilter",
    "TextDelta",
    "TextEvent",
    "TextFinished",
    "TextRequest",
    "TextService",
    "TextToken",
    "TopToken",
    "address_of_peer",
    "client_name",
    "random_seed",
]
