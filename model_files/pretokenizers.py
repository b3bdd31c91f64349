"""How byte-level BPE vocabularies cut text into words before merging, by the name in `tokenizer.ggml.pre`.

The patterns are those that the models were trained with, as published in their tokenizer.json files; the names and which of them
share a pattern are llama.cpp's (src/llama-vocab.cpp). A name that is not listed is refused: a near miss would change
token ids without anybody noticing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from dairllm.model_files.errors import UnsupportedModel
from dairllm.model_files.text_cuts import WordEnds, word_ends

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS}|{_LINES_AND_SPACES}"
_QWEN35 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
_SEED_CODER = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES_AND_SPACES}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_SIGNS}|{_LINES_AND_SPACES}"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
    + "|".join(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)


def _cased_words(excluded: str = "", suffix: str = "") -> str:
    """A word ends where a capital letter follows a small one."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{excluded}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{excluded}]"
    return rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{suffix}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{suffix}"


_TEKKEN = rf"{_cased_words()}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"
_O200K = rf"{_cased_words(suffix=_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_LINES_AND_SPACES}"
_NO_HAN = r"&&[^\p{Han}]"
_KIMI_K2 = rf"[\p{{Han}}]+|{_cased_words(excluded=_NO_HAN, suffix=_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES_AND_SPACES}"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    rf"|{_LINES_AND_SPACES}",
)
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Letters that have a capital or a small form, as DeepSeek LLM's file lists them."""
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED_LETTERS}]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"


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
    (
        *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "a.x-4.0", "mellum", "granite-docling"),
        *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "modern-bert"),
    ): WordRules((_GPT2,)),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"): WordRules((r"\p{N}", _GPT2)),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): WordRules(
        (_LLAMA3,), whole_words=True, add_bos=True
    ),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): WordRules((_LLAMA3,)),
    ("jais-2",): WordRules((_JAIS2,)),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "kormo", "f2llmv2", "megrez", "solar-open", "grok-2"): WordRules((_QWEN2,)),
    ("qwen35",): WordRules((_QWEN35,)),
    ("laguna",): WordRules((r"[^\n]+|[\n]+", _QWEN2)),
    ("seed-coder",): WordRules((_SEED_CODER,)),
    ("minicpm5",): WordRules((r"\p{N}{1,3}", _MINICPM5), whole_words=True),
    ("bailingmoe", "bailingmoe2", "llada-moe"): WordRules((_BAILING,)),
    ("tekken",): WordRules((_TEKKEN,), whole_words=True, add_bos=True),
    ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"): WordRules((_O200K,)),
    ("kimi-k2",): WordRules((_KIMI_K2,)),
    ("deepseek-llm",): WordRules(_DEEPSEEK_LLM),
    ("deepseek-coder",): WordRules(_DEEPSEEK_CODER),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"): WordRules(_DEEPSEEK_V3),
    ("falcon",): WordRules(_FALCON),
    ("bloom", "poro-chat", "gpt3-finnish"): WordRules((_BLOOM,)),
    ("viking",): WordRules((_BLOOM, r"\p{N}")),
}
_RULES_BY_NAME = {name: rules for names, rules in _RULES.items() for name in names}
PRETOKENIZERS = tuple(sorted(_RULES_BY_NAME))


def find_word_rules(name: str) -> WordRules:
    """Rules of a pre-tokenizer; UnsupportedModel, by name, if they are not known exactly."""
    rules = _RULES_BY_NAME.get(name)
    if rules is None:
        raise UnsupportedModel(f"pre-tokenizer {name[:60]!r} is not known; expected one of {', '.join(PRETOKENIZERS)}")
    return rules


def make_pre_tokenizer(rules: WordRules) -> PreTokenizer:
    """The rules as a pre-tokenizer of the `tokenizers` library, bytes mapped to characters at the end."""
    cuts = [Split(Regex(pattern), behavior="isolated") for pattern in rules.patterns]
    sequence: PreTokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    return sequence


@cache
def ends_of_words(rules: WordRules) -> WordEnds:
    """See `word_ends`."""
    pre_tokenizer = make_pre_tokenizer(rules)

    def words(text: str) -> list[str]:
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]

    return word_ends(words, words)
