"""Small tokenizers of each kind, trained here by the `tokenizers` library, and tokenizer files of distributed-llama."""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.token_bytes import SPACE_MARK

CORPUS = (
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, isn't it? We'll see: 3.14 times 2!",
    "def main(argument: int) -> None:\n    print(argument, end='\\n')\n\n\treturn\r\n",
    "Größe, naïve, café; 中文字符，日本語。 Привет, мир! \U0001f642\U0001f680 e\u0301 n\u0303",
    "the theme of the thesis: then, there, these, those - the-the; 'the' \"the\" (the) [the] {the}",
)
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_end|>")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def trained(kind: str) -> str:
    """tokenizer.json. kind: of MAKERS."""
    content: str = MAKERS[kind]().to_str()
    return content


def _byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    _train(made, trainers.BpeTrainer(vocab_size=450, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    made.post_processor = _with_bos(made)
    return made


def _gpt2() -> tokenizers.Tokenizer:
    """With a space before the first word."""
    made = tokenizers.Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    _train(made, trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made


def _spaced(scheme: str) -> tokenizers.Tokenizer:
    """As of Mistral: Metaspace and bytes for what is no token."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme == "always")
    made.decoder = _spaced_decoder()
    _train(made, trainers.BpeTrainer(vocab_size=520, show_progress=False, special_tokens=[*SPECIAL_TOKENS, *BYTE_TOKENS]))
    made.post_processor = _with_bos(made)
    return _without_special_bytes(made)


def _legacy() -> tokenizers.Tokenizer:
    """As of Llama 2: the normaliser marks spaces, also before each stretch of text."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    made.decoder = _spaced_decoder()
    _train(made, trainers.BpeTrainer(vocab_size=520, show_progress=False, special_tokens=[*SPECIAL_TOKENS, *BYTE_TOKENS]))
    return _without_special_bytes(made)


def _unigram() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=200, show_progress=False, special_tokens=list(SPECIAL_TOKENS), unk_token="<unk>")
    _train(made, trainer)
    return made


MAKERS: Mapping[str, Any] = {
    "byte level": _byte_level,
    "gpt2": _gpt2,
    "spaced words": lambda: _spaced("always"),
    "spaced text": lambda: _spaced("first"),
    "legacy": _legacy,
    "unigram": _unigram,
}


def _train(made: tokenizers.Tokenizer, trainer: Any) -> None:
    made.train_from_iterator(CORPUS * 4, trainer)
    made.add_special_tokens(list(SPECIAL_TOKENS))
    made.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    made.add_special_tokens([AddedToken("<|user|>", lstrip=False, rstrip=True)])


def _spaced_decoder() -> Any:
    return decoders.Sequence([decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def _with_bos(made: tokenizers.Tokenizer) -> Any:
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))])


def _without_special_bytes(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Byte tokens are none that text is cut at."""
    content = json.loads(made.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in BYTE_TOKENS]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def folder_of(folder: Path, files: Mapping[str, str | Mapping[str, Any]], metadata: Mapping[str, Any] | None = None) -> Container:
    """A folder without weights, with these texts and JSON objects as files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return Container(
        folder,
        metadata or {},
        kind="Hugging Face folder",
        conventions=Conventions.TRANSFORMERS,
        name=folder.name,
        files=(),
        tensors={},
        companions={name: folder / name for name in files},
    )


def distributed_llama_tokenizer(
    tokens: Sequence[tuple[bytes, float]], bos: int, *, template: str = "", ends: Sequence[int] = (), add_bos: bool = True
) -> bytes:
    """A `.t` file."""
    pairs = {3: bos, 0: 1, 1: len(tokens), 2: max(len(data) for data, _ in tokens), 7: len(template.encode()), 9: len(ends), 10: add_bos}
    header = b"".join(struct.pack("<ii", key, value) for key, value in pairs.items())
    rest = b"".join(struct.pack("<fI", score, len(data)) + data for data, score in tokens)
    return struct.pack("<ii", 0x567124, 8 + len(header)) + header + template.encode() + struct.pack(f"<{len(ends)}i", *ends) + rest
