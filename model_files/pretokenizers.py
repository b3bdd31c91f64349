"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

The patterns are those that the models were trained with, as published in their tokenizer.json files; the names and which of them
share a pattern are llama.cpp's (src/llama-vocab.cpp). A name that is not listed is refused: a near miss would change
token ids without anybody noticing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from dairllm.model_files.errors import UnsupportedModel

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class WordRules:
    """`patterns` cut one after the other, each what the one before left. `whole_words`: a word that is a token is not merged.

    `add_bos` is what holds when the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_RULES: Mapping[tuple[str, ...], WordRules] = {
    ("default",): WordRules((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"): WordRules((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): WordRules((r"\p{N}", _GPT2)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"): WordRules((_LLAMA3,), whole_words=True, add_bos=True),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"): WordRules((_QWEN2,)),
    ("tekken",): WordRules((_TEKKEN,), whole_words=True, add_bos=True),
}
_RULES_BY_NAME = {name: rules for names, rules in _RULES.items() for name in names}


def find_word_rules(name: str) -> WordRules:
    """Rules of a pre-tokenizer; UnsupportedModel, by name, if they are not known exactly."""
    rules = _RULES_BY_NAME.get(name)
    if rules is None:
        raise UnsupportedModel(f"pre-tokenizer {name[:60]!r} is not supported; expected one of {', '.join(sorted(_RULES_BY_NAME))}")
    return rules


def make_pre_tokenizer(rules: WordRules) -> PreTokenizer:
    """The rules as a pre-tokenizer of the `tokenizers` library, bytes mapped to characters at the end."""
    cuts = [Split(Regex(pattern), behavior="isolated") for pattern in rules.patterns]
    sequence: PreTokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    return sequence
