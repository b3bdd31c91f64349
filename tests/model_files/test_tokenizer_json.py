"""tokenizer.json: the ids that the library itself gives, bytes that make its texts, and one sentence for whatever is wrong."""

import base64
import copy
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dairllm.model_files.containers import Container
from dairllm.model_files.errors import CorruptModelFile, ModelFileError, UnsupportedModel
from dairllm.model_files.library_components import check_character_map
from dairllm.model_files.tokenizer import StreamDecoder
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.tokenizer_files import CORPUS, MAKERS, SPECIAL_TOKENS, folder_of, trained

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.lists(
    st.sampled_from([*CORPUS, *SPECIAL_TOKENS, "<tool_call>", "<|user|>", " ", "  ", "\n", "\t ", "'s", "x", "7", ",", "\u0301", "\u2581"]),
    max_size=8,
).map("".join)
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": "<unk>"}


class Both:
    """Ours and the library's own."""

    def __init__(self, kind: str, folder: Path) -> None:
        content = trained(kind)
        self.library = tokenizers.Tokenizer.from_str(content)
        self.ours = load_tokenizer(folder_of(folder, {"tokenizer.json": content, "tokenizer_config.json": CONFIG}))


@pytest.fixture(scope="module", params=sorted(MAKERS))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(request.param, tmp_path_factory.mktemp("tokenizer"))


@given(text=TEXTS)
def test_ids_are_the_library_s(both: Both, text: str) -> None:
    expected = both.library.encode(text).ids
    found = both.ours.encode(text, add_special=True, parse_special=True)
    begin = list(both.ours.before)
    if text.startswith("<s>") and begin:
        expected = expected[1:]  # not doubled
    assert found == expected
    assert both.ours.encode(text, add_special=False, parse_special=True) == both.library.encode(text, add_special_tokens=False).ids


@given(text=TEXTS, size=st.integers(1, 9))
def test_cuts_change_no_ids(both: Both, text: str, size: int) -> None:
    whole = both.ours.encode(text, add_special=False, parse_special=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dairllm.model_files.text_cuts.PIECE_CHARACTERS", size)
        assert both.ours.encode(text, add_special=False, parse_special=True) == whole


@given(text=TEXTS)
def test_bytes_make_the_library_s_text(both: Both, text: str) -> None:
    ids = both.library.encode(text, add_special_tokens=False).ids
    found = both.ours.decode(ids, skip_special=False)
    expected = both.library.decode(ids, skip_special_tokens=False)
    # The library leaves out the first space.
    assert found in (expected, f" {expected}")
    decoder = StreamDecoder(both.ours, skip_special=False)
    assert "".join([*map(decoder.push, ids), decoder.flush()]) == found


@given(text=TEXTS)
def test_text_never_becomes_a_control_token(both: Both, text: str) -> None:
    control = {both.library.token_to_id(token) for token in (*SPECIAL_TOKENS, "<|user|>")} - {both.library.token_to_id("<unk>")}
    assert not control & set(both.ours.encode(text, add_special=False, parse_special=False))


def test_long_texts_take_a_time_that_grows_with_their_length(both: Both) -> None:
    text, begin = "the theme, of 12 thesis. " * 40_000, time.process_time()
    steps = list(both.ours.encode_in_steps(text, add_special=False, parse_special=True))
    assert len(steps) > 10
    assert time.process_time() - begin < 30


def test_special_tokens_of_a_folder(tmp_path: Path) -> None:
    content = trained("byte level")
    files: dict[str, Any] = {
        "tokenizer.json": content,
        "tokenizer_config.json": CONFIG,
        "generation_config.json": {"eos_token_id": [4, 441, 5000]},
    }
    tokenizer = load_tokenizer(folder_of(tmp_path, files, {"eos_token_id": 5}))
    ids = {text: tokenizers.Tokenizer.from_str(content).token_to_id(text) for text in SPECIAL_TOKENS}
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.before) == (ids["<s>"], ids["</s>"], (ids["<s>"],))
    assert tokenizer.end_of_generation_ids == {4, 5, 441, ids["</s>"], ids["<|im_end|>"]}
    assert tokenizer.template_texts == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.control_texts == {*SPECIAL_TOKENS, "<|user|>"}


@pytest.mark.parametrize(("flag", "begins"), [(None, True), (True, True), (False, False)])
def test_a_flag_decides_about_the_begin_token(tmp_path: Path, flag: bool | None, begins: bool) -> None:
    config = CONFIG if flag is None else {**CONFIG, "add_bos_token": flag}
    tokenizer = load_tokenizer(folder_of(tmp_path, {"tokenizer.json": trained("byte level"), "tokenizer_config.json": config}))
    assert bool(tokenizer.before) is begins


def test_as_many_tokens_as_the_model_has_rows(tmp_path: Path) -> None:
    content = trained("byte level")
    size = tokenizers.Tokenizer.from_str(content).get_vocab_size()
    padded = load_tokenizer(folder_of(tmp_path / "a", {"tokenizer.json": content}, {"vocab_size": size + 3}))
    assert padded.vocab_size == size + 3
    assert padded.decode([size + 2], skip_special=False) == ""
    fewer = load_tokenizer(folder_of(tmp_path / "b", {"tokenizer.json": content}, {"vocab_size": size - 1}))
    assert fewer.vocab_size == size - 1
    assert "<|user|>" not in fewer.control_texts
    with pytest.raises(CorruptModelFile, match=f"only {size - 50} rows"):
        load_tokenizer(folder_of(tmp_path / "c", {"tokenizer.json": content}, {"vocab_size": size - 50}))


def content_of(kind: str = "byte level", **changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(trained(kind))
    for path, value in changes.items():
        *above, last = path.split("__")
        inner = content
        for name in above:
            inner = inner[name]
        inner[last] = value
    return content


@pytest.mark.parametrize(
    ("content", "error", "expected"),
    [
        ({}, CorruptModelFile, "has no model"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, UnsupportedModel, "'WordPiece'"),
        (content_of(normalizer={"type": "Invented"}), UnsupportedModel, "normalizer of type 'Invented'"),
        (content_of(pre_tokenizer={"type": "Sequence"}), CorruptModelFile, "no list of parts"),
        (
            content_of(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}),
            CorruptModelFile,
            "fails with",
        ),
        (content_of(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}), None, ""),
        (content_of(decoder={"type": "CTC"}), UnsupportedModel, "decoder of type 'CTC'"),
        (content_of(model__vocab=[]), CorruptModelFile, "no object of token ids"),
        (content_of(model__vocab={"a": -1}), CorruptModelFile, "no object of token ids"),
        (content_of(model__vocab={"a": 1 << 31}, model__merges=[]), CorruptModelFile, "large gaps"),
        (content_of(model__vocab={"a": 1, "b": 1}, model__merges=[]), CorruptModelFile, "ids of their own"),
        (content_of(model__merges=[["t", "\u2603"]]), CorruptModelFile, "merge"),
        (content_of(model__merges=["t h e"]), CorruptModelFile, "two parts"),
        (content_of(model__merges=7), CorruptModelFile, "expected a list"),
        (content_of(model__unk_token="\u2603"), CorruptModelFile, "unknown token"),
        (content_of(added_tokens=[{"id": 1}]), CorruptModelFile, "added token"),
        (content_of(added_tokens={"id": 1}), CorruptModelFile, "a list of objects"),
        (
            content_of(post_processor={"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}),
            CorruptModelFile,
            "post_processor",
        ),
        (content_of("unigram", model__unk_id=10_000), CorruptModelFile, "unknown id"),
        (content_of("unigram", model__vocab=[["a", "b"]]), CorruptModelFile, "texts with scores"),
        (content_of("unigram", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), CorruptModelFile, "character map"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path: Path, content: dict[str, Any], error: type[Exception] | None, expected: str) -> None:
    folder = folder_of(tmp_path, {"tokenizer.json": content})
    if error is None:
        load_tokenizer(folder)
        return
    with pytest.raises(error, match=expected) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"model":' * 1000, "\ufeff{}", '{"a": NaN}', "{" + '"a":1,' * 2 + '"a":1}', "1e999"]
)
def test_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(CorruptModelFile) as caught:
        load_tokenizer(folder_of(tmp_path, {"tokenizer.json": text}))
    assert len(str(caught.value)) < 400


def test_a_file_of_nothing_but_values_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(CorruptModelFile, match="so many values"):
        load_tokenizer(folder_of(tmp_path, {"tokenizer.json": '{"a":[' + "{}," * 3_000_000 + "{}]}"}))


def test_a_pattern_without_end_is_refused(tmp_path: Path) -> None:
    begin = time.process_time()
    split = {"type": "Split", "pattern": {"Regex": r"(a+)+\d"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(CorruptModelFile, match="cannot be used"):
        load_tokenizer(folder_of(tmp_path, {"tokenizer.json": content_of(pre_tokenizer=split)}))
    assert time.process_time() - begin < 10


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_changed_files_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = content_of(data.draw(st.sampled_from(sorted(MAKERS))))
    random_of = random.Random(data.draw(st.integers()))
    for _ in range(data.draw(st.integers(1, 3))):
        change(content, random_of)
    require_read_or_refused(folder_of(tmp_path, {"tokenizer.json": content, "tokenizer_config.json": CONFIG}))


def require_read_or_refused(container: Container) -> None:
    """It encodes and decodes, or is refused in one line."""
    refusal = ""
    try:
        tokenizer = load_tokenizer(container)
        tokenizer.decode(tokenizer.encode("the <s> and \u20ac", add_special=True, parse_special=True), skip_special=False)
    except ModelFileError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 600


STRANGE: tuple[object, ...] = (
    None,
    True,
    -1,
    1 << 40,
    0.5,
    "",
    "x",
    "\u2581",
    "\ud7ff",
    [],
    {},
    [[]],
    {"type": "Sequence"},
    ["a", "b"],
    "Replace",
    3,
)


def change(content: Any, random_of: random.Random) -> None:
    """One value somewhere becomes another, or is gone."""
    while isinstance(content, (dict, list)) and content:
        key = random_of.choice(list(content) if isinstance(content, dict) else range(len(content)))
        inner = content[key]
        if not isinstance(inner, (dict, list)) or not inner or random_of.random() < 0.2:
            if random_of.random() < 0.3:
                del content[key]
            else:
                content[key] = copy.deepcopy(random_of.choice(STRANGE))  # or the next change is made to all of them
            return
        content = inner


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(0, 3000), byte=st.integers(0, 255))
def test_truncated_and_changed_bytes(tmp_path: Path, cut: int, byte: int) -> None:
    data = bytearray(trained("byte level").encode())
    container = folder_of(tmp_path, {"tokenizer.json": ""})
    for changed in (bytes(data[:cut]), bytes(data[:cut]) + bytes([byte]) + bytes(data[cut + 1 :])):
        container.companions["tokenizer.json"].write_bytes(changed)
        require_read_or_refused(container)


@settings(max_examples=200)
@given(units=st.lists(st.integers(0, 0xFFFFFFFF), max_size=8), texts=st.binary(max_size=40), size=st.none() | st.integers(0, 0xFFFFFFFF))
@example(units=[], texts=b"\0", size=None)
def test_character_maps_stay_inside_themselves(units: list[int], texts: bytes, size: int | None) -> None:
    tree = struct.pack("<512I", *units, *[0] * (512 - len(units)))
    data = base64.b64encode(struct.pack("<I", len(tree) if size is None else size) + tree + texts).decode()
    try:
        check_character_map("a file", data)
    except CorruptModelFile:
        return
    normalizer = tokenizers.normalizers.Precompiled(base64.b64decode(data))
    for text in ("", "a", "\0", *map(chr, range(1, 600)), "abc \u20ac" * 10):
        normalizer.normalize_str(text)
