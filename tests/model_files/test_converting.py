"""One GGUF file of any container: what is read back computes what the source does."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.containers import open_container
from dairllm.model_files.converting.writing import convert_model
from dairllm.model_files.errors import ModelFileError, UnsupportedModel
from dairllm.model_files.manifest_builder import build_manifest
from tests.instruments.golden import LARGEST_F32_ERROR, TINY
from tests.instruments.stored_models import write_distributed_llama, write_sharded_folder, write_split
from tests.reference_forward import logits
from tests.role_tensors import read_model

FOLDERS = sorted(folder.name for folder in TINY.iterdir() if (folder / "golden.npz").exists())


def require_golden(path: Path, name: str) -> None:
    spec, units = read_model(path)
    golden = np.load(TINY / name / "golden.npz")
    assert np.abs(logits(spec, units, golden["input_ids"].tolist()) - golden["logits"]).max() < LARGEST_F32_ERROR


UNSAYABLE = {
    "deepseek-v3-plain-queries": r"where it would have another layers\[0\]\.attention\.rope\.magnitude",
}
"""What GGUF has no key for, or what its reader refuses."""


@pytest.mark.parametrize("name", sorted(set(FOLDERS) - UNSAYABLE.keys()))
def test_a_folder_as_gguf_gives_the_golden_logits(tmp_path: Path, name: str) -> None:
    convert_model(TINY / name, tmp_path / "m.gguf")
    require_golden(tmp_path / "m.gguf", name)
    assert open_container(tmp_path / "m.gguf").conventions == "gguf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1 + i / 10 for i in range(8)],
    "long_factor": [1.0 + i for i in range(8)],
}
FULL, SLIDING = "full_attention", "sliding_attention"
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": LINEAR}),
    ("qwen3", {"rope_parameters": YARN}),
    ("mixtral", {"sliding_window": 9}),
    ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    ("phi3", {"sliding_window": 12}),
    ("gemma2", {"query_pre_attn_scalar": 24}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"layer_types": [FULL, SLIDING, FULL]}),
    ("gemma3", {"query_pre_attn_scalar": 24}),
    ("gemma3", {"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL, FULL]}),
    ("qwen3-moe", {"norm_topk_prob": False}),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0, 1]}),
    ("glm4-moe", {"routed_scaling_factor": 2.5, "norm_topk_prob": False}),
    ("deepseek-v3", {"rope_interleave": False}),
    ("deepseek-v3", {"rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
    ("gpt-oss", {"layer_types": [FULL, FULL, FULL]}),
]


def changed(name: str, folder: Path, change: dict[str, Any]) -> Path:
    """The same weights under another config.json."""
    shutil.copytree(TINY / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    return folder


@pytest.mark.parametrize(("name", "change"), [pytest.param(*one, id=f"{one[0]}-{min(one[1])}") for one in CHANGES if one[0] in FOLDERS])
def test_what_a_config_says_is_said_in_gguf(tmp_path: Path, name: str, change: dict[str, Any]) -> None:
    folder = changed(name, tmp_path / "changed", change)
    convert_model(folder, tmp_path / "m.gguf")
    ids = list(range(5, 45))
    expected, found = (logits(*read_model(path), ids) for path in (folder, tmp_path / "m.gguf"))
    assert np.abs(expected - found).max() < 1e-5


@pytest.mark.parametrize("name", sorted(UNSAYABLE))
def test_what_gguf_cannot_say_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel, match=UNSAYABLE[name]):
        convert_model(TINY / name, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["llama", "llama3-rope"])
def test_a_distributed_llama_file_as_gguf(tmp_path: Path, name: str) -> None:
    convert_model(write_distributed_llama(tmp_path / "m.m", TINY / name), tmp_path / "m.gguf")
    require_golden(tmp_path / "m.gguf", name)


def test_parts_become_one_file_with_the_same_digest(tiny_path: Path, tmp_path: Path) -> None:
    parts = write_split(tiny_path, tmp_path / "parts")
    convert_model(parts[1], tmp_path / "m.gguf")
    assert build_manifest(tmp_path / "m.gguf").model_digest == build_manifest(tiny_path).model_digest
    ours, source = gguf.GGUFReader(tmp_path / "m.gguf"), gguf.GGUFReader(tiny_path)
    kept = {name: field.contents() for name, field in source.fields.items() if not name.startswith("GGUF.")}
    assert {name: field.contents() for name, field in ours.fields.items() if not name.startswith("GGUF.")} == kept


def formats_in(path: Path) -> set[str]:
    """Of the matrices inside the layers."""
    return {tensor.block_format.name for name, tensor in open_container(path).tensors.items() if len(tensor.shape) > 1 and "blk" in name}


@pytest.mark.parametrize("block_format", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_matrices_are_written_as_asked(tmp_path: Path, tiny_path: Path, block_format: str, source: str) -> None:
    path = tiny_path if source == "gguf" else write_sharded_folder(TINY / "llama", tmp_path / "folder", dtype="BF16")
    convert_model(path, tmp_path / "m.gguf", block_format)
    assert formats_in(tmp_path / "m.gguf") == {block_format}
    container = open_container(tmp_path / "m.gguf")
    assert container.tensors["output_norm.weight"].block_format.name == "F32"
    assert container.tensors["token_embd.weight"].block_format.name == {"Q4_0": "Q8_0"}.get(block_format, block_format)
    _, found = read_model(tmp_path / "m.gguf")
    _, expected = read_model(path)
    for role in ("gate", "down", "attention_output"):
        assert np.abs(found[1][role] - expected[1][role]).max() <= np.abs(expected[1][role]).max() / 7


def test_what_is_quantised_becomes_numbers_and_is_not_quantised_again(tmp_path: Path, tiny_path: Path) -> None:
    for source in (tiny_path, TINY / "llama"):
        first, numbers, again = (tmp_path / f"{source.stem}-{name}.gguf" for name in ("first", "numbers", "again"))
        convert_model(source, first, "Q8_0")
        assert convert_model(first, numbers, "F16") == []
        assert formats_in(numbers) == {"F16"}
        _, expected = read_model(first)
        _, found = read_model(numbers)
        assert np.abs(found[1]["gate"] - expected[1]["gate"]).max() <= np.abs(expected[1]["gate"]).max() / 1000
        (sentence,) = convert_model(first, again, "Q4_0")
        assert sentence.endswith(" in Q8_0 stay as they are: what is quantised is not quantised again")
        assert formats_in(again) == {"Q8_0"}


def test_values_in_bf16_are_the_nearest_ones(tmp_path: Path, tiny_path: Path) -> None:
    convert_model(tiny_path, tmp_path / "m.gguf", "BF16")
    theirs = gguf.quants.quantize(read_model(tiny_path)[1][1]["gate"], gguf.GGMLQuantizationType.BF16)
    data = next(tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors if tensor.name == "blk.0.ffn_gate.weight")
    assert (np.asarray(data).reshape(-1).view(np.uint8) == theirs.reshape(-1).view(np.uint8)).all()


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, tiny_path: Path) -> None:
    (tmp_path / "there.gguf").touch()
    for output, block_format, expected in (
        (tmp_path / "there.gguf", None, "exists already"),
        (tmp_path / "m.gguf", "Q3_K", "cannot be written as 'Q3_K'; expected one of F32, F16, BF16, Q8_0"),
        (tmp_path / "none" / "m.gguf", None, "cannot be written: No such file"),
    ):
        with pytest.raises(UnsupportedModel, match=expected):
            convert_model(tiny_path, output, block_format)
    with pytest.raises(ModelFileError, match="No such file"):
        convert_model(tmp_path / "gone", tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    convert_model(TINY / "llama", tmp_path / "m.gguf", progress=lambda *one: calls.append(one))
    total = sum(tensor.size_bytes for tensor in open_container(tmp_path / "m.gguf").tensors.values())
    assert calls[-1][1:] == (total, total)
    assert architecture_of(open_container(tmp_path / "m.gguf")).name == "llama"
