"""Tokenizers: the golden ids of SmolLM2, SentencePiece against its definition, and decoding in pieces."""

import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.pretokenizers import PRETOKENIZERS, ends_of_words, find_word_rules, make_pre_tokenizer
from dairllm.model_files.sentencepiece_model import SentencePieceModel
from dairllm.model_files.template_sources import load_chat_template
from dairllm.model_files.text_cuts import TextCuts, TextTooLong
from dairllm.model_files.text_pieces import TextPiece, TextPlace
from dairllm.model_files.tokenizer import StreamDecoder, Tokenizer
from dairllm.model_files.tokenizer_sources import load_tokenizer
from tests.instruments.templates import PROCESSES
from tests.tiny_gguf import CONTROL_TOKENS, MERGES, byte_characters

GOLDEN = json.loads((Path(__file__).parent.parent / "data" / "smollm2.json").read_text())
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return load_tokenizer(read_gguf(smollm2_path))


@pytest.fixture(scope="module")
def tiny(tiny_path: Path) -> Tokenizer:
    return load_tokenizer(read_gguf(tiny_path))


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(read_gguf(spm_file(tmp_path_factory.mktemp("spm") / "a")))


def write_vocabulary(path: Path, kind: str, tokens: list[tuple[str, int]], **keys: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    for name, value in keys.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def bpe_tokens() -> list[tuple[str, int]]:
    return [(text, CONTROL) for text in CONTROL_TOKENS] + [
        (text, NORMAL) for text in (*byte_characters(), *(merge.replace(" ", "") for merge in MERGES))
    ]


@pytest.mark.parametrize("case", GOLDEN["tokenizer_cases"], ids=lambda case: repr(case["text"][:20]))
def test_golden_ids(smollm2: Tokenizer, case: dict[str, Any]) -> None:
    assert smollm2.encode(case["text"], add_special=True, parse_special=True) == case["ids"]
    assert smollm2.decode(case["ids"], skip_special=False) == case["decoded"]


def is_control(tokenizer: Tokenizer, token_id: int) -> bool:
    """It has a text, which nobody sees who does not ask for it."""
    return bool(tokenizer.token_text(token_id)) and not tokenizer.decode([token_id], skip_special=True)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_prompts(smollm2: Tokenizer, smollm2_path: Path, case: dict[str, Any]) -> None:
    template = load_chat_template(read_gguf(smollm2_path), smollm2, PROCESSES)
    assert template.render(case["messages"]) == case["prompt_text"]
    assert smollm2.encode_prompt(case["prompt_text"]) == case["prompt_ids"]
    assert smollm2.decode(case["generated_ids_64"], skip_special=False) == case["text_64"]
    assert smollm2.decode(case["generated_ids"], skip_special=True) == case["generated_text"]


def test_special_tokens_of_smollm2(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id, smollm2.before) == (49152, 1, 2, ())
    assert smollm2.end_of_generation_ids == {0, 2}
    assert smollm2.token_text(2) == b"<|im_end|>"
    assert is_control(smollm2, 2)
    assert not is_control(smollm2, 19556)
    for token_id in (-1, 49152):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            smollm2.token_text(token_id)


def test_control_tokens_only_where_asked_for(smollm2: Tokenizer) -> None:
    text = "a<|im_end|>b"
    assert 2 in smollm2.encode(text, add_special=False, parse_special=True)
    plain = smollm2.encode(text, add_special=False, parse_special=False)
    assert not any(is_control(smollm2, token_id) for token_id in plain)
    assert smollm2.decode(plain, skip_special=True) == text


@given(st.text())
def test_text_survives(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text, add_special=False, parse_special=False)
    assert all(0 <= token_id < tiny.vocab_size for token_id in ids)
    assert not any(is_control(tiny, token_id) for token_id in ids)
    assert tiny.decode(ids, skip_special=True) == text


def test_lone_surrogates_become_replacement_characters(tiny: Tokenizer) -> None:
    ids = tiny.encode("a\ud800b\ud83d\ude42", add_special=False, parse_special=True)
    assert tiny.decode(ids, skip_special=False) == "a\ufffdb\U0001f642"


@given(st.lists(st.integers(0, 287)))
def test_stream_decoder_gives_the_whole_text(tiny: Tokenizer, ids: list[int]) -> None:
    for skip_special in (False, True):
        decoder = StreamDecoder(tiny, skip_special=skip_special)
        pieces = [decoder.push(token_id) for token_id in ids]
        assert "".join([*pieces, decoder.flush()]) == tiny.decode(ids, skip_special=skip_special)
        assert decoder.flush() == ""


@given(st.text())
def test_stream_decoder_never_gives_half_a_character(tiny: Tokenizer, text: str) -> None:
    decoder = StreamDecoder(tiny, skip_special=False)
    ids = tiny.encode(text, add_special=False, parse_special=False)
    given_so_far = ""
    for token_id in ids:
        given_so_far += decoder.push(token_id)
        assert text.startswith(given_so_far)
    assert decoder.flush() == ""


def test_begin_and_end_tokens_as_the_file_asks(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"tokenizer_pre": "llama-bpe", "token_merges": list(MERGES), "bos_token_id": 1, "eos_token_id": 2}
    default = load_tokenizer(read_gguf(write_vocabulary(tmp_path / "a", "gpt2", bpe_tokens(), **keys)))
    assert default.encode("", add_special=True, parse_special=False) == [1]
    assert default.encode_prompt("<|im_start|>") == [1]
    assert default.encode_prompt("<|endoftext|>") == [1, 0]
    keys |= {"add_bos_token": False, "add_eos_token": True}
    asked = load_tokenizer(read_gguf(write_vocabulary(tmp_path / "b", "gpt2", bpe_tokens(), **keys)))
    assert asked.encode("", add_special=True, parse_special=False) == [2]
    assert asked.encode("", add_special=False, parse_special=False) == []


def test_text_cannot_merge_into_a_control_token(tmp_path: Path) -> None:
    tokens = [(text, CONTROL if text == "the" else kind) for text, kind in bpe_tokens()]
    for pre in ("smollm", "llama-bpe"):
        path = write_vocabulary(tmp_path / pre, "gpt2", tokens, tokenizer_pre=pre, token_merges=list(MERGES))
        tokenizer = load_tokenizer(read_gguf(path))
        ids = tokenizer.encode("the", add_special=False, parse_special=False)
        assert not any(is_control(tokenizer, token_id) for token_id in ids)
        assert tokenizer.decode(ids, skip_special=True) == "the"


def test_user_defined_tokens_are_always_recognised(tmp_path: Path) -> None:
    tokens = [*bpe_tokens(), ("<tool call>", USER_DEFINED)]
    path = write_vocabulary(tmp_path / "a", "gpt2", tokens, tokenizer_pre="smollm", token_merges=list(MERGES))
    tokenizer = load_tokenizer(read_gguf(path))
    ids = tokenizer.encode("a<tool call>", add_special=False, parse_special=False)
    assert ids[-1] == len(tokens) - 1
    assert tokenizer.decode(ids, skip_special=True) == "a<tool call>"


RULES = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "kimi-k2", "jais-2", "laguna", "seed-coder"]
RULES += ["minicpm5", "bailingmoe", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "bloom", "viking"]
"""One name of each set of rules."""


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("qwen35", "ne\u0301e 12", ["ne\u0301e", " ", "1", "2"]),
        ("gpt-4o", "helloWorld's 1234//\n", ["hello", "World's", " ", "123", "4", "//\n"]),
        ("kimi-k2", "hello\u4e2d\u6587World 1234", ["hello", "\u4e2d\u6587", "World", " ", "123", "4"]),
        ("deepseek-v3", "a.b 1234\u4e2d\u6587", ["a", ".b", " ", "123", "4", "\u4e2d\u6587"]),
        ("deepseek-coder", "a1\nb, c", ["a", "1", "\n", "b", ",", " c"]),
        ("falcon", "a`b 12345", ["a", "`", "b", " ", "123", "45"]),
        ("bloom", "well-known, yes", ["well-known", ",", " yes"]),
        ("viking", "a12", ["a", "1", "2"]),
        ("bailingmoe", "it'LL a\n\nb", ["it", "'LL", " a", "\n\n", "b"]),
        ("seed-coder", "a!\n12", ["a", "!", "\n", "1", "2"]),
        ("minicpm5", "ab 12345", ["ab", " ", "123", "45"]),
        ("jais-2", "a       b", ["a", "    ", "  ", " b"]),
        ("laguna", "a!\n\nb", ["a", "!", "\n\n", "b"]),
        ("llama-bpe", "I'LL pay 12345 now\r\n\n x", ["I", "'LL", " pay", " ", "123", "45", " now", "\r\n\n", " x"]),
        ("qwen2", "a 123!\n", ["a", " ", "1", "2", "3", "!\n"]),
        ("gpt-2", "I'LL  pay 123!", ["I", "'", "LL", " ", " pay", " 123", "!"]),
        ("smollm", "pay 12!", ["pay", " ", "1", "2", "!"]),
        ("default", "a=b 1234", ["a", "=", "b", " ", "123", "4"]),
        ("tekken", "helloWorld 12", ["hello", "World", " ", "1", "2"]),
    ],
)
def test_words_of_each_pre_tokenizer(pre: str, text: str, expected: list[str]) -> None:
    pieces = make_pre_tokenizer(find_word_rules(pre)).pre_tokenize_str(text)
    assert [text[first:last] for _, (first, last) in pieces] == expected


def test_unknown_kinds_are_refused_by_name(tmp_path: Path) -> None:
    merges = list(MERGES)
    with pytest.raises(UnsupportedModel, match=r"pre-tokenizer 'invented'.*--assume-pretokenizer"):
        load_tokenizer(read_gguf(write_vocabulary(tmp_path / "a", "gpt2", bpe_tokens(), tokenizer_pre="invented", token_merges=merges)))
    with pytest.raises(UnsupportedModel, match="'rwkv'"):
        load_tokenizer(read_gguf(write_vocabulary(tmp_path / "b", "rwkv", bpe_tokens())))
    with pytest.raises(CorruptModelFile, match="'x y'"):
        load_tokenizer(read_gguf(write_vocabulary(tmp_path / "c", "gpt2", bpe_tokens(), token_merges=["x y"])))
    with pytest.raises(CorruptModelFile, match="bos_token_id 9999"):
        load_tokenizer(read_gguf(write_vocabulary(tmp_path / "d", "gpt2", bpe_tokens(), token_merges=merges, bos_token_id=9999)))
    with pytest.raises(CorruptModelFile, match="one score per token"):
        load_tokenizer(read_gguf(write_vocabulary(tmp_path / "e", "llama", bpe_tokens())))


def test_rules_can_be_assumed_where_none_are_known(tmp_path: Path) -> None:
    texts = {"smollm": ["a", "1", "2"], "gpt-2": ["a", "12"]}
    tokens = [*bpe_tokens(), ("12", NORMAL)]
    keys: dict[str, Any] = {"token_merges": [*MERGES, "1 2"]}
    for name, more in {"a": {"tokenizer_pre": "invented"}, "b": {}, "c": {"tokenizer_pre": "smollm"}}.items():
        container = read_gguf(write_vocabulary(tmp_path / name, "gpt2", tokens, **keys, **more))
        for assumed, words in texts.items():
            tokenizer = load_tokenizer(container, assumed)
            ids = tokenizer.encode("a12", add_special=False, parse_special=False)
            used = "smollm" if name == "c" else assumed
            assert [tokenizer.decode([token_id], skip_special=False) for token_id in ids] == texts[used], words
            assert len(tokenizer.doubts) == (name != "c")
            assert all(f"by the rules of {assumed!r}" in doubt for doubt in tokenizer.doubts)


def test_each_set_of_rules_has_a_name_that_is_tried() -> None:
    assert {find_word_rules(name) for name in RULES} >= {
        find_word_rules(name) for name in PRETOKENIZERS if name not in ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")
    }


def test_spaced_bpe(tmp_path: Path) -> None:
    """As Gemma 4 has it: merges across words, bytes for what is no token, lines too."""
    words = ["\u2581", "t", "h", "e", "\n", "th", "the", "\u2581the", "\n\n", "<0x41>"]
    tokens = [("<unk>", UNKNOWN), ("<bos>", CONTROL), ("<turn|>", CONTROL), *((f"<0x{byte:02X}>", BYTE) for byte in range(256))]
    tokens += [(word, NORMAL) for word in words[:-1]]
    merges = ["t h", "th e", "\u2581 the", "\n \n"]
    path = write_vocabulary(tmp_path / "a", "gemma4", tokens, token_merges=merges, bos_token_id=1)
    tokenizer = load_tokenizer(read_gguf(path))
    ids = tokenizer.encode("the the\n\n\u20acA", add_special=True, parse_special=False)
    assert [tokenizer.token_text(token_id) for token_id in ids] == [b"<bos>", b"the", b" the", b"\n\n", b"\xe2", b"\x82", b"\xac", b"A"]
    assert tokenizer.decode(ids, skip_special=True) == "the the\n\n\u20acA"
    assert tokenizer.end_of_generation_ids == {2}


def test_an_answer_of_several_messages_ends_with_the_last(tmp_path: Path) -> None:
    control = ["<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>"]
    tokens = [*((text, CONTROL) for text in control), *bpe_tokens()]
    path = write_vocabulary(tmp_path / "a", "gpt2", tokens, tokenizer_pre="gpt-4o", token_merges=list(MERGES), eos_token_id=4)
    tokenizer = load_tokenizer(read_gguf(path))
    assert {0, 1, 4, 5} & tokenizer.end_of_generation_ids == {4, 5}
    assert tokenizer.decode([2, 3, 1, 4], skip_special=True) == "<|channel|><|message|><|end|>"
    assert set(control) <= tokenizer.control_texts


def naive_sentencepiece(text: str, pieces: dict[str, int], scores: list[float]) -> list[str]:
    """The definition: while there is one, join the best adjacent pair, the leftmost among equals."""
    parts = list(text)
    while True:
        joined = [(-scores[pieces[a + b]], place) for place, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in pieces]
        if not joined:
            return parts
        _, place = min(joined)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@given(st.text(alphabet="abc", max_size=40), st.integers(0, 50))
def test_sentencepiece_equals_its_definition(text: str, seed: int) -> None:
    draw = random.Random(seed)
    texts = {"a", "b"} | {"".join(draw.choices("abc", k=draw.randint(2, 5))) for _ in range(25)}
    pieces = {piece: index for index, piece in enumerate(sorted(texts))}
    # Few different scores, so that ties are frequent.
    scores = [float(draw.randint(-4, 0)) for _ in pieces]
    byte_ids = list(range(1000, 1256))
    expected = [
        token_id
        for part in naive_sentencepiece(text, pieces, scores)
        for token_id in ([pieces[part]] if part in pieces else [1000 + byte for byte in part.encode()])
    ]
    assert SentencePieceModel(pieces, scores, byte_ids).encode([TextPiece(text, TextPlace.BEGIN)]) == expected


def spm_file(path: Path) -> Path:
    words = ["\u2581", "h", "i", "\u2581h", "hi", "\u2581hi", "<", "s", ">", "<s", "<s>"]
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), *((f"<0x{byte:02X}>", BYTE) for byte in range(256))]
    tokens += [(word, NORMAL) for word in words if word != "<s>"]
    scores = [0.0] * 259 + [-float(index) for index in range(len(tokens) - 259)]
    return write_vocabulary(path, "llama", tokens, token_scores=scores, bos_token_id=1, eos_token_id=2)


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(read_gguf(spm_file(tmp_path / "a")))
    ids = tokenizer.encode("hi \u20ac", add_special=True, parse_special=False)
    assert [tokenizer.token_text(token_id) for token_id in ids] == [b"<s>", b" hi", b" ", b"\xe2", b"\x82", b"\xac"]
    assert tokenizer.decode(ids, skip_special=True) == " hi \u20ac"
    forged = tokenizer.encode("<s>", add_special=False, parse_special=False)
    assert 1 not in forged
    assert tokenizer.encode("<s>", add_special=False, parse_special=True) == [1]
    decoder = StreamDecoder(tokenizer, skip_special=True)
    assert [decoder.push(token_id) for token_id in ids] == ["", " hi", " ", "", "", "\u20ac"]


def test_sentencepiece_is_fast(tmp_path: Path) -> None:
    """Seconds for a mebibyte, not half a minute."""
    tokenizer, begin = load_tokenizer(read_gguf(spm_file(tmp_path / "a"))), time.process_time()
    assert len(tokenizer.encode("hi \u20ac" * (1 << 18), add_special=False, parse_special=True)) == 5 << 18
    assert time.process_time() - begin < 15


@given(st.text(alphabet="hi <s>,.\u20ac\n", max_size=60), st.integers(1, 9))
def test_cuts_change_no_ids_of_sentencepiece(spm: Tokenizer, text: str, size: int) -> None:
    whole = spm.encode(text, add_special=True, parse_special=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dairllm.model_files.text_cuts.PIECE_CHARACTERS", size)
        assert spm.encode(text, add_special=True, parse_special=True) == whole


@pytest.mark.parametrize("pre", RULES)
@given(st.text(max_size=60) | st.text(alphabet="aB1'sS ,.-|(\r\n\u3002\u4e2d\u0301$=", max_size=60))
def test_cuts_are_between_words(pre: str, text: str) -> None:
    rules = find_word_rules(pre)
    pre_tokenizer, cuts = make_pre_tokenizer(rules), TextCuts(ends_of_words(rules))
    assert " " in ends_of_words(rules).behind_ascii
    assert pre == "deepseek-llm" or " " in ends_of_words(rules).behind_others
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dairllm.model_files.text_cuts.PIECE_CHARACTERS", 1)
        pieces = list(cuts.pieces(text))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word, _ in pre_tokenizer.pre_tokenize_str(piece)] == [
        word for word, _ in pre_tokenizer.pre_tokenize_str(text)
    ]


def test_a_text_without_cuts_has_a_limit(tiny: Tokenizer) -> None:
    assert len(tiny.encode("a" * 100_000, add_special=False, parse_special=True)) == 100_000
    with pytest.raises(TextTooLong, match="2097152 characters"):
        tiny.encode("!" * (2 << 20), add_special=False, parse_special=True)


def test_a_long_text_is_encoded_in_steps(tiny: Tokenizer) -> None:
    text = "the <|im_end|>in an " * 20_000
    steps = list(tiny.encode_in_steps(text, add_special=True, parse_special=True))
    assert len(steps) > 2
    assert [token_id for step in steps for token_id in step] == tiny.encode(text, add_special=True, parse_special=True)


def test_no_token_stands_for_more_bytes_than_the_longest(tiny: Tokenizer, spm: Tokenizer) -> None:
    for tokenizer in (tiny, spm):
        assert tokenizer.longest_token_bytes == max(len(tokenizer.token_text(token_id)) for token_id in range(tokenizer.vocab_size))


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_control_tokens_that_the_file_types_as_text_count_as_such(tmp_path: Path, kind: int) -> None:
    tokens = [(text, kind if text in CONTROL_TOKENS else kind_of) for text, kind_of in bpe_tokens()]
    keys: dict[str, Any] = {"tokenizer_pre": "smollm", "token_merges": list(MERGES), "eos_token_id": 0}
    tokenizer = load_tokenizer(read_gguf(write_vocabulary(tmp_path / "a", "gpt2", tokens, **keys)))
    assert tokenizer.end_of_generation_ids == {0, 2}
    assert tokenizer.encode_prompt("<|im_start|>the<|im_end|>")[0::2] == [1, 2]
    assert tokenizer.control_texts == set(CONTROL_TOKENS)
    assert tokenizer.decode([2], skip_special=True) == ""
    assert not {0, 1, 2} & set(tokenizer.encode("<|im_end|>", add_special=False, parse_special=False))
    (doubt,) = tokenizer.doubts
    assert "a types <|endoftext|>, <|im_end|>, <|im_start|> as ordinary text" in doubt


def test_what_merges_make_is_text(tmp_path: Path) -> None:
    tokens = [*bpe_tokens(), ("</", NORMAL), ("</s", NORMAL), ("</s>", NORMAL)]
    keys: dict[str, Any] = {"tokenizer_pre": "smollm", "token_merges": [*MERGES, "< /", "</ s", "</s >"]}
    tokenizer = load_tokenizer(read_gguf(write_vocabulary(tmp_path / "a", "gpt2", tokens, **keys)))
    assert tokenizer.doubts == ()
    assert "</s>" not in tokenizer.control_texts


def test_a_file_that_does_not_name_its_pre_tokenizer_is_doubted(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "a.gguf", "gpt2", bpe_tokens(), token_merges=list(MERGES))
    (doubt,) = load_tokenizer(read_gguf(path)).doubts
    assert doubt.startswith("a.gguf does not name its pre-tokenizer")


def test_the_begin_token_is_not_doubled(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"tokenizer_pre": "llama-bpe", "token_merges": list(MERGES), "bos_token_id": 1}
    tokenizer = load_tokenizer(read_gguf(write_vocabulary(tmp_path / "a", "gpt2", bpe_tokens(), **keys)))
    for text in ("the", "<|im_start|>the"):
        assert tokenizer.encode(text, add_special=True, parse_special=True) == tokenizer.encode_prompt(text)
        assert tokenizer.encode_prompt(text).count(1) == 1
    assert tokenizer.encode("<|im_start|>", add_special=True, parse_special=False)[0] == 1


def test_many_control_tokens_load_and_are_found(tmp_path: Path) -> None:
    """In a time that grows with their number, not faster."""
    tokens = [*bpe_tokens(), *((f"<|special_{index}|>", CONTROL) for index in range(200_000))]
    path = write_vocabulary(tmp_path / "a", "gpt2", tokens, tokenizer_pre="smollm", token_merges=list(MERGES))
    begin = time.process_time()
    tokenizer = load_tokenizer(read_gguf(path))
    ids = tokenizer.encode("<|special_7|><|special_77|>" * 10_000 + "<|" * 50_000, add_special=False, parse_special=True)
    assert time.process_time() - begin < 25
    first = len(bpe_tokens())
    assert ids[:20_000] == [first + 7, first + 77] * 10_000


def test_markers_of_phi_3_take_the_white_space_behind_them(tmp_path: Path) -> None:
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("<|user|>", CONTROL), *((f"<0x{byte:02X}>", BYTE) for byte in range(256))]
    writer = gguf.GGUFWriter(tmp_path / "a", "phi3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_add_space_prefix(False)
    writer.add_bos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = load_tokenizer(read_gguf(tmp_path / "a"))
    assert tokenizer.encode("<|user|>\n a<s>\nb", add_special=False, parse_special=True) == [2, 3 + ord("a"), 1, 3 + 10, 3 + ord("b")]
