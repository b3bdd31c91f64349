"""Texts that are control tokens wherever they are tokens at all, in the chat formats of published models.

Converted files often type them as ordinary text: then answers would run on behind their end, and markers of turns be cut into letters.
"""

from collections.abc import Mapping

END_OF_GENERATION_TEXTS = frozenset(
    (
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"),
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>", "<|return|>", "<|call|>"),
        *("<|calls|>", "<|flush|>", "<|tool_response>", "[e~["),
    )
)
"""They end a turn; files name only one of them as `eos_token_id`."""

NO_END_BESIDE: Mapping[str, frozenset[str]] = {
    "<|end|>": frozenset(("<|return|>", "<|call|>")),
    "</s>": frozenset(("<|tool_response>",)),
}
"""Texts that end no turn in a vocabulary that has all of these, too: of gpt-oss it ends a message, and the answer goes on."""

MESSAGE_TEXTS = frozenset(("<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|constrain|>"))
"""They cut an answer of gpt-oss into messages, its thoughts from what it says (https://cookbook.openai.com/articles/openai-harmony)."""

CONTROL_TEXTS = (
    END_OF_GENERATION_TEXTS
    | MESSAGE_TEXTS
    | {
        *("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"),
        *("<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|turn>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<｜User｜>", "<｜Assistant｜>"),
    }
)
