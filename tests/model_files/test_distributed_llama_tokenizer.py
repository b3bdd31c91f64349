"""Tokenizers of distributed-llama: ids as its definition gives them, and one sentence for whatever is wrong."""

import itertools
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dairllm.model_files.containers import Container, Conventions
from dairllm.model_files.containers.distributed_llama import TOKENIZER
from dairllm.model_files.distributed_llama_tokenizer import read_chat_template
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.tokenizer import Tokenizer
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.tokenizer_files import distributed_llama_tokenizer

REGULAR = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the", b"he", b"  ", "\u00e9".encode(), b" t", b"in", b"ing"]
SPECIAL = [b"<s>", b"</s>", b"<|im_end|>"]
BOS = len(REGULAR)
TEMPLATE = "{{ messages[0].content }}\u00e9"


def container_of(folder: Path, data: bytes) -> Container:
    path = folder / "model.t"
    path.write_bytes(data)
    return Container(
        folder / "model.m",
        {},
        kind="distributed-llama file",
        conventions=Conventions.TRANSFORMERS,
        name="model",
        files=(),
        tensors={},
        companions={TOKENIZER: path},
    )


def sound(regular: list[bytes] = REGULAR) -> bytes:
    tokens = [*((data, -float(index)) for index, data in enumerate(regular)), *((data, 0.0) for data in SPECIAL)]
    return distributed_llama_tokenizer(tokens, len(regular), template=TEMPLATE, ends=(len(regular) + 1,))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(container_of(tmp_path_factory.mktemp("t"), sound()))


def by_definition(data: bytes, ids: dict[bytes, int]) -> list[int]:
    """While there is one, join the neighbours that make the token with the highest score, which is the lowest id, leftmost among equals."""
    parts = [bytes([byte]) for byte in data]
    while joined := [(ids[a + b], place) for place, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ids]:
        place = min(joined)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ids[part] for part in parts]


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text(alphabet=" theing\u00e9\n,.", max_size=60))
def test_ids_are_those_of_the_definition(tokenizer: Tokenizer, text: str) -> None:
    expected = by_definition(text.encode(), {data: index for index, data in enumerate(REGULAR)})
    assert tokenizer.encode(text, add_special=True, parse_special=False) == [BOS, *expected]
    assert tokenizer.decode(expected, skip_special=False) == text


@given(text=st.text(alphabet=" theing\u00e9\n,.<s>|im_d/", max_size=60), size=st.integers(1, 9))
def test_cuts_change_no_ids(tokenizer: Tokenizer, text: str, size: int) -> None:
    whole = tokenizer.encode(text, add_special=True, parse_special=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dairllm.model_files.text_cuts.PIECE_CHARACTERS", size)
        assert tokenizer.encode(text, add_special=True, parse_special=True) == whole


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.before) == (BOS, BOS + 1, (BOS,))
    assert tokenizer.end_of_generation_ids == {BOS + 1, BOS + 2}
    assert tokenizer.encode("a<|im_end|>", add_special=True, parse_special=True) == [BOS, ord("a"), BOS + 2]
    assert tokenizer.decode([BOS, ord("a"), BOS + 2], skip_special=True) == "a"
    (doubt,) = tokenizer.doubts
    assert "does not say how text is cut into words" in doubt


def test_chat_template(tmp_path: Path) -> None:
    assert read_chat_template(container_of(tmp_path, sound()).companions[TOKENIZER]) == TEMPLATE


def test_of_equal_tokens_the_last_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(container_of(tmp_path, sound([*REGULAR, b"a"])))
    assert tokenizer.encode("a", add_special=False, parse_special=False) == [len(REGULAR)]


@pytest.mark.parametrize(
    ("data", "error", "expected"),
    [
        (b"", CorruptModelFile, "needs 8 bytes"),
        (b"\0" * 64, CorruptModelFile, "begins with 0x0"),
        (struct.pack("<ii", 0x567123, 0) + b"\0" * 64, UnsupportedModel, "old version"),
        (struct.pack("<ii", 0x567124, 1 << 30), CorruptModelFile, "pairs of numbers"),
        (struct.pack("<iiii", 0x567124, 16, 77, 0), CorruptModelFile, "key 77"),
        (struct.pack("<iiii", 0x567124, 16, 0, 2), UnsupportedModel, "version 2"),
        (struct.pack("<iiiiii", 0x567124, 24, 0, 1, 1, 1 << 30) + b"\0" * 64, CorruptModelFile, "tokens 1073741824"),
        (sound()[:-1], CorruptModelFile, "the file ends at byte"),
        (sound() + b"x", CorruptModelFile, "its tokens end at byte"),
        (sound(REGULAR[1:]), CorruptModelFile, "byte 0 among its texts"),
        (distributed_llama_tokenizer([(b"a", 0.0), (b"<s>", float("nan"))], 1), CorruptModelFile, "the score nan"),
        (distributed_llama_tokenizer([(b"a", 0.0), (b"<s>", 0.0)], 1, ends=(2,)), CorruptModelFile, "an end token has the id 2"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, data: bytes, error: type[Exception], expected: str) -> None:
    with pytest.raises(error, match=expected) as caught:
        load_tokenizer(container_of(tmp_path, data))
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(), changes=st.integers(1, 4), cut=st.none() | st.integers(0, 4000))
def test_changed_bytes_are_read_or_refused(tmp_path: Path, seed: int, changes: int, cut: int | None) -> None:
    random_of = random.Random(seed)
    data = bytearray(sound()[:cut])
    for _ in range(changes if data else 0):
        data[random_of.randrange(min(len(data), random_of.choice((100, 1 << 20))))] = random_of.randrange(256)
    refusal = ""
    try:
        tokenizer = load_tokenizer(container_of(tmp_path, bytes(data)))
        tokenizer.encode("the <s> \u00e9", add_special=True, parse_special=True)
    except ModelFileError as error:
        refusal = str(error)
    assert "\n" not in refusal
