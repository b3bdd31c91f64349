"""What hostile tokenizer files may take.

No more than four times their size and 64 MiB where that is all that is looked at; of vocabularies twice that, since sound ones need it.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.instruments.tokenizer_files import distributed_llama_tokenizer, trained

SPARE_BYTES = 64 << 20
PROGRAM = """
import resource, sys
from pathlib import Path
from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.errors import ModelFileError
from dairllm.model_files.tokenizer_sources import load_tokenizer
import numpy, sentencepiece, tokenizers, pydantic_core
path = Path(sys.argv[1])
container = Container(
    path.parent, {}, kind="", conventions=Conventions.TRANSFORMERS, name="", files=(), tensors={}, companions={sys.argv[2]: path}
)
def high_water_kib():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
# Of this program only: what getrusage tells includes its parent.
Path("/proc/self/clear_refs").write_text("5")
before, begin = high_water_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
try:
    load_tokenizer(container)
    outcome = "read"
except ModelFileError as error:
    outcome = str(error)
print((high_water_kib() - before) * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_utime - begin, outcome[:200])
"""


def model(**parts: object) -> bytes:
    return json.dumps({**json.loads(trained("byte level")), **parts}, ensure_ascii=False, separators=(",", ":")).encode()


def bpe(vocab: dict[str, int], merges: list[str] | None = None) -> bytes:
    return model(model={"type": "BPE", "vocab": vocab, "merges": merges or []}, added_tokens=[], post_processor=None)


def unigram(vocab: list[tuple[str, float]]) -> bytes:
    return model(model={"type": "Unigram", "vocab": vocab, "unk_id": 0}, added_tokens=[], post_processor=None)


def added(count: int) -> bytes:
    tokens = [{"id": 1000 + index, "content": f"<{index:x}>", "special": True} for index in range(count)]
    return model(added_tokens=tokens)


def large_merges() -> list[tuple[str, str]]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pairs = [(a, b) for a in letters for b in letters]
    return [*pairs, *((a + b, c + d) for a, b in pairs[:500] for c, d in pairs[:500])]


def large_vocabulary() -> dict[str, int]:
    """A quarter of a million tokens with as many merges."""
    letters = sorted({letter for pair in large_merges() for letter in pair if len(letter) == 1})
    return {text: index for index, text in enumerate(dict.fromkeys([*letters, *(a + b for a, b in large_merges())]))}


STRUCTURES: dict[str, Callable[[], bytes]] = {
    "brackets": lambda: b'{"a":' + b"[" * (8 << 20),
    "empty objects": lambda: b'{"a":[' + b"{}," * (2 << 20) + b"{}]}",
    "numbers": lambda: b'{"a":[' + b"1000," * (1 << 20) + b"1]}",
    "a long text": lambda: bpe({"a" * (16 << 20): 0}),
    "many merges": lambda: bpe({"a": 0, "aa": 1}, ["a a"] * 1_500_000),
}
VOCABULARIES: dict[str, Callable[[], bytes]] = {
    "many short tokens": lambda: bpe({f"{index:x}": index for index in range(600_000)}),
    "as many short tokens as may be": lambda: bpe({f"{index:x}": index for index in range(440_000)}),
    "as many merges as may be": lambda: bpe({"a": 0, "aa": 1}, ["a a"] * 500_000),
    "many added tokens": lambda: added(300_000),
    "as many added tokens as may be": lambda: added(150_000),
    "a large vocabulary": lambda: bpe(large_vocabulary(), [f"{left} {right}" for left, right in large_merges()]),
    "long pieces": lambda: unigram([(f"{index:05}" + "x" * 8000, -1.0) for index in range(400)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures_of_json(tmp_path: Path, kind: str) -> None:
    require_bounded(tmp_path / "tokenizer.json", STRUCTURES[kind](), "tokenizer.json", 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_vocabularies_of_tokenizer_json(tmp_path: Path, kind: str) -> None:
    require_bounded(tmp_path / "tokenizer.json", VOCABULARIES[kind](), "tokenizer.json", 2)


@pytest.mark.slow
@pytest.mark.parametrize("count", [230_000, 1_000_000])
def test_hostile_distributed_llama_tokenizer(tmp_path: Path, count: int) -> None:
    regular = [*((bytes([byte]), 0.0) for byte in range(256)), *((struct.pack(">I", index)[1:] + b"x", 0.0) for index in range(count))]
    require_bounded(tmp_path / "a.t", distributed_llama_tokenizer([*regular, (b"<s>", 0.0)], len(regular)), "tokenizer.t", 2)


def require_bounded(path: Path, data: bytes, companion: str, times: int) -> None:
    path.write_bytes(data)
    found = subprocess.run([sys.executable, "-c", PROGRAM, str(path), companion], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr[-2000:]
    taken_bytes, seconds, outcome = found.stdout.split(maxsplit=2)
    print(f"{len(data)} bytes: {int(taken_bytes) >> 20} MiB, {seconds} s, {outcome.strip()}")
    assert int(taken_bytes) <= times * (4 * len(data) + SPARE_BYTES), outcome
