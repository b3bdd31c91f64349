"""A tokenizer.json as the keys that GGUF has for tokenizers.

GGUF says by name only how text is cut into words, and has scores in place of merges for vocabularies whose spaces are marked. Which name
fits is found out as llama.cpp's converter does it, by what comes out: each candidate must give the tokens of the source for texts of all
kinds. A tokenizer that none fits is not written, since a near miss would change token ids without anybody noticing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import tokenizers

from dairllm.model_files.chat_template import DEFAULT
from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.containers.metadata import metadata_from_json
from dairllm.model_files.converting.gguf_metadata import Keys
from dairllm.model_files.errors import ModelFileError, UnsupportedModel
from dairllm.model_files.hugging_face_tokenizer import TOKENIZER_JSON
from dairllm.model_files.large_json import read_large_json
from dairllm.model_files.pretokenizers import PRETOKENIZERS, WordRules, find_word_rules, make_pre_tokenizer
from dairllm.model_files.template_sources import read_templates
from dairllm.model_files.token_bytes import byte_of_token
from dairllm.model_files.tokenizer import Tokenizer
from dairllm.model_files.tokenizer_json import read_tokenizer_json
from dairllm.model_files.tokenizer_sources import load_tokenizer
from dairllm.model_files.vocabulary import TokenKind, Vocabulary

_PREFERRED = ("llama-bpe", "qwen2", "gpt-2", "smollm", "tekken", "gpt-4o", "qwen35", "deepseek-v3", "deepseek-llm", "glm4", "default")
PROBES = (
    *("Hello, world!", "I'll say it's they've DON'T we'Re", "a  b   c\n\n d\t\te \r\n", " leading", "trailing  ", "\n\n\n", "   "),
    *("1 12 123 1234 12345 1234567 3.14159 1,000,000", "x1y22z333 v4444", "½ ² Ⅷ ٣٤٥ १२३"),
    *("foo_bar(baz)[0] = {'k': \"v\"}; // comment != ok && <tag/>", "https://example.com/a?b=c#d", "$100 €5 100% #1 @me *** --- ...!!"),
    *(
        "Ünïcödé naïve café Ångström ßẞ",
        "camelCase HTTPServer iPhone XMLHttp",
        "Привет мир",
        "日本語のテキスト 漢字とカナ",
        "中文字符測試，標點。",
    ),
    *("한국어 문장", "สวัสดี", "العربية", "हिन्दी में", "😀 👨‍👩‍👧 🇩🇪", "e\u0301 a\u0300", "\u00a0nbsp\u2003em\u200bzw", "a\u2028b", "ﬁ ﬂ Å"),
)


def tokenizer_keys(container: Container, num_rows: int) -> Keys:
    """Those of a folder's tokenizer and chat template. num_rows: of its embedding. UnsupportedModel if GGUF cannot say them."""
    if TOKENIZER_JSON not in container.companions:
        raise UnsupportedModel(f"{container.path.name} has no {TOKENIZER_JSON}")
    path = container.companions[TOKENIZER_JSON]
    source, vocabulary = load_tokenizer(container), read_tokenizer_json(path).vocabulary
    root, _ = read_large_json(path)
    plain = _plain_keys(source, vocabulary, num_rows)
    for candidate in _candidates(root, vocabulary, num_rows):
        keys = {**plain, **candidate}
        if _gives_the_same(container, keys, source):
            template = read_templates(container).get(DEFAULT)
            return keys if template is None else {**keys, "tokenizer.chat_template": template}
    raise UnsupportedModel(f"{path} cuts or merges text in a way that GGUF has no name for")


def _plain_keys(source: Tokenizer, vocabulary: Vocabulary, num_rows: int) -> Keys:
    """All but what text is made tokens by. Rows without a token get one of the kind that is never used."""
    missing = range(len(vocabulary.texts), num_rows)
    texts = [text or f"[PAD{token_id}]" for token_id, text in enumerate(vocabulary.texts)]
    kinds = [int(_kind_of(text, kind)) for text, kind in zip(vocabulary.texts, vocabulary.kinds, strict=True)]
    keys: Keys = {
        "tokenizer.ggml.tokens": [*texts, *(f"[PAD{token_id}]" for token_id in missing)],
        "tokenizer.ggml.token_type": [*kinds, *([int(TokenKind.UNUSED)] * len(missing))],
        "tokenizer.ggml.add_bos_token": source.bos_id is not None and source.before == (source.bos_id,),
        "tokenizer.ggml.add_eos_token": source.eos_id is not None and source.behind == (source.eos_id,),
    }
    named = {"bos": source.bos_id, "eos": source.eos_id, **dict(zip(("eot", "eom"), _other_ends(source), strict=False))}
    return keys | {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in named.items() if token_id is not None}


def _other_ends(source: Tokenizer) -> list[int]:
    """Tokens that end an answer beside `eos`: GGUF has two more names for such."""
    return sorted(source.end_of_generation_ids - {source.eos_id})


def _kind_of(text: str, kind: TokenKind) -> TokenKind:
    return TokenKind.BYTE if kind is TokenKind.NORMAL and byte_of_token(text) is not None else kind


def _candidates(root: Mapping[str, Any], vocabulary: Vocabulary, num_rows: int) -> Iterator[Keys]:
    model = root["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    if not merges:
        return
    if not model.get("byte_fallback"):
        for name in _names_of(root):
            yield {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}
        return
    scores = _scores(merges, vocabulary.texts, num_rows)
    for prefix in (True, False):
        yield {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": scores, "tokenizer.ggml.add_space_prefix": prefix}


def _names_of(root: Mapping[str, Any]) -> Iterator[str]:
    """Pre-tokenizers that cut texts as the file's own one does; of equal ones the one that more models have."""
    by_rules: dict[WordRules, str] = {}
    for name in (*_PREFERRED, *PRETOKENIZERS):
        by_rules.setdefault(find_word_rules(name), name)
    model = {"type": "BPE", "vocab": {}, "merges": []}
    empty: dict[str, Any] = {"version": "1.0", "added_tokens": [], "pre_tokenizer": root.get("pre_tokenizer"), "model": model}
    own = tokenizers.Tokenizer.from_str(json.dumps(empty)).pre_tokenizer
    for rules, name in by_rules.items():
        other = make_pre_tokenizer(rules)
        if own is not None and all(own.pre_tokenize_str(text) == other.pre_tokenize_str(text) for text in PROBES):
            yield name


def _scores(merges: Sequence[str], texts: Sequence[str], num_rows: int) -> list[float]:
    """The earlier a token is merged, the higher its score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    last = len(merges)
    return [-float(ranks.get(text, last)) for text in texts] + [-float(last)] * (num_rows - len(texts))


def _gives_the_same(container: Container, keys: Keys, source: Tokenizer) -> bool:
    written = replace(container, metadata=metadata_from_json(keys), conventions=Conventions.GGUF, tensors={}, companions={})
    try:
        tokenizer = load_tokenizer(written)
        return all(_ids(tokenizer, text) == _ids(source, text) for text in PROBES)
    except ModelFileError:
        return False


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special=True, parse_special=True)
