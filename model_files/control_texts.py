"""Texts that are control tokens wherever they are tokens at all, in the chat formats of published models.

Converted files often type them as ordinary text: then answers would run on behind their end, and markers of turns be cut into letters.
"""

END_OF_GENERATION_TEXTS = frozenset(
    (
        *("</s>", "<eos>", "<EOT>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>"),
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<end_of_utterance>", "<|return|>", "<|call|>"),
    )
)
"""They end a turn; files name only one of them as `eos_token_id`."""

CONTROL_TEXTS = END_OF_GENERATION_TEXTS | {
    *("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"),
    *("<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<｜User｜>", "<｜Assistant｜>", "<|start|>", "<|channel|>", "<|message|>"),
}
