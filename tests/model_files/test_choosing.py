"""Which files of a repository are one model."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dairllm.model_files.errors import UnknownModelName
from dairllm.model_files.getting.choosing import ChosenFiles, HubFile, choose, describe_size, ggufs_of, labels_of, type_of

REPOSITORY = "o/n"


def files(*names: str) -> list[HubFile]:
    return [HubFile(name, 1_000_000 * (number + 1)) for number, name in enumerate(names)]


def chosen(names: tuple[str, ...], wanted: str | None = None) -> ChosenFiles:
    return choose(REPOSITORY, files(*names), wanted)


def names_of(choice: ChosenFiles) -> list[str]:
    return [file.name for file in choice.files]


@pytest.mark.parametrize(
    ("name", "element_type"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Q8_0/x-00001-of-00003.gguf", "Q8_0"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("chat-Q4_K_M.gguf", "Q4_K_M"),
        ("x-IQ4_XS.gguf", "IQ4_XS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x-fp16.gguf", "F16"),
        ("x-bf16.gguf", "BF16"),
        ("model.gguf", None),
        ("q4-notes.gguf", None),
    ],
)
def test_the_type_is_what_the_name_ends_with(name: str, element_type: str | None) -> None:
    assert type_of(name) == element_type


def test_a_type_or_a_file_is_taken_whatever_its_case() -> None:
    names = ("x-Q4_K_M.gguf", "x-Q8_0.gguf", "mmproj-x-Q8_0.gguf", "README.md")
    assert names_of(chosen(names, "q8_0")) == ["x-Q8_0.gguf"]
    assert names_of(chosen(names, "x-Q4_K_M.gguf")) == ["x-Q4_K_M.gguf"]
    assert chosen(names, "Q4_K_M").entry == "x-Q4_K_M.gguf"


def test_all_parts_of_a_split_model_are_taken_in_order() -> None:
    names = ("Q8_0/x-Q8_0-00002-of-00002.gguf", "Q8_0/x-Q8_0-00001-of-00002.gguf", "x-Q4_0.gguf")
    expected = ["Q8_0/x-Q8_0-00001-of-00002.gguf", "Q8_0/x-Q8_0-00002-of-00002.gguf"]
    for wanted in ("Q8_0", "Q8_0/x-Q8_0-00002-of-00002.gguf"):
        assert names_of(chosen(names, wanted)) == expected
    with pytest.raises(UnknownModelName, match=r"lacks x-00002-of-00003.gguf and 1 more; a split model needs all"):
        chosen(("x-00001-of-00003.gguf",))


def test_without_a_word_about_half_a_byte_per_weight_is_taken_and_said() -> None:
    choice = chosen(("x-Q2_K.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf"))
    assert names_of(choice) == ["x-Q4_K_M.gguf"]
    assert "of 3 in o/n, Q4_K_M is taken (2 MB)" in choice.note
    assert "Q8_0 (3 MB)" in choice.note
    alone = chosen(("anything.gguf", "README.md"))
    assert (names_of(alone), alone.note) == (["anything.gguf"], "")


def test_what_cannot_be_chosen_for_somebody_is_listed() -> None:
    with pytest.raises(UnknownModelName, match=r"holds several models.*a-Q4_K_M.gguf \(1 MB\), b-Q4_K_M.gguf"):
        chosen(("a-Q4_K_M.gguf", "b-Q4_K_M.gguf"))
    with pytest.raises(UnknownModelName, match=r"has 2 models of the type 'Q4_K_M'"):
        chosen(("a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "c-Q8_0.gguf"), "Q4_K_M")
    with pytest.raises(UnknownModelName, match=r"no file and no type 'Q5_K'; it has Q4_K_M \(1 MB\)"):
        chosen(("a-Q4_K_M.gguf",), "Q5_K")


def test_a_folder_of_safetensors_is_what_is_needed_of_it_and_nothing_else() -> None:
    names = (
        *("README.md", "config.json", "consolidated.safetensors", "generation_config.json", "model-00001-of-00002.safetensors"),
        *("model-00002-of-00002.safetensors", "model.safetensors.index.json", "original/params.json", "pytorch_model.bin"),
        *("tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"),
    )
    choice = chosen(names)
    assert choice.entry == ""
    assert set(names_of(choice)) == {
        *("config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert names_of(chosen((*names, "x-Q8_0.gguf"))) == ["x-Q8_0.gguf"]
    assert names_of(chosen((*names, "x-Q8_0.gguf"), "safetensors")) == names_of(choice)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("pytorch_model.bin", "config.json"), "is a PyTorch file, which can run code"),
        (("config.json",), "no GGUF file"),
        (("x.safetensors",), "no config.json"),
        ((), "there is no file"),
        (("x-00001-of-00002.gguf",), "lacks x-00002-of-00002.gguf"),
    ],
)
def test_a_repository_without_a_model_is_told(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(UnknownModelName, match=told):
        chosen(names)


def test_a_file_that_is_no_model_is_told() -> None:
    with pytest.raises(UnknownModelName, match=r"pytorch_model.bin of o/n is a PyTorch file.*there is Q8_0"):
        chosen(("pytorch_model.bin", "x-Q8_0.gguf"), "pytorch_model.bin")
    with pytest.raises(UnknownModelName, match="is no model file"):
        chosen(("README.md", "x-Q8_0.gguf"), "README.md")


@given(
    st.lists(
        st.sampled_from(["a", "b-Q4_0", "c-Q4_K_M", "d/e-Q8_0", "f-00001-of-00002", "f-00002-of-00002"]).map(lambda name: f"{name}.gguf")
    )
)
def test_every_model_can_be_asked_for_by_its_label(names: list[str]) -> None:
    found = files(*dict.fromkeys(names))
    for label, choice in labels_of(found).items():
        assert choose(REPOSITORY, found, label).files == choice.files
    assert sum(map(len, ggufs_of(found).values())) == len(found)


@given(st.lists(st.text(max_size=30), max_size=8), st.none() | st.text(min_size=1, max_size=20))
def test_any_names_give_a_choice_or_one_sentence(names: list[str], wanted: str | None) -> None:
    with contextlib.suppress(UnknownModelName):
        assert choose(REPOSITORY, files(*names), wanted).files


def test_sizes_are_told_as_hubs_tell_them() -> None:
    assert [describe_size(size) for size in (0, 999, 1500, 491_400_032, 4_920_000_000)] == ["0 B", "999 B", "1.5 kB", "491 MB", "4.92 GB"]
