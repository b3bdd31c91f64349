"""Folders as transformers saves them: config.json, weights in one or several safetensors files, a tokenizer beside them.

Layout: https://huggingface.co/docs/transformers/main/models#sharded-checkpoints. The folder may be one of a hub's cache, whose files are
links to blobs that are named by their hash: names count here, never what a link leads to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dairllm.model_files.containers.bounded_json import MAX_JSON_BYTES, parse_json_object
from dairllm.model_files.containers.container import Container, Conventions, StoredTensor, merge_tensors
from dairllm.model_files.containers.metadata import metadata_from_json
from dairllm.model_files.containers.regular_files import names_in, read_whole
from dairllm.model_files.containers.safetensors import read_safetensors
from dairllm.model_files.containers.split_gguf import part_names
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ENDING = ".safetensors"
MAX_CONFIG_BYTES = 4 << 20
MAX_FILES = 4096
COMPANIONS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt"),
)
_UNPACKED_METHODS = ("mxfp4",)
"""Quantisations whose tensors are left to whoever uses them."""


def read_hugging_face(folder: Path) -> Container:
    """Raises CorruptModelFile, naming it, for a file that is missing or contradicts another, UnsupportedModel for quantised checkpoints."""
    present = names_in(folder)
    config = _read_config(folder, present)
    index = _read_index(folder) if INDEX in present else {}
    names = sorted(set(index.values())) or _weight_files(folder, present)
    missing = [name for name in names if name not in present]
    if missing:
        raise CorruptModelFile(f"{folder} lacks {missing[0]!r}, one of the {len(names)} files with its weights; expected all of them")
    read = [read_safetensors(folder / name) for name in names]
    tensors = merge_tensors(folder, (found for _, found in read))
    _require_indexed(folder, index, names, tensors)
    return Container(
        folder,
        metadata_from_json(config),
        kind="Hugging Face folder",
        conventions=Conventions.TRANSFORMERS,
        name=folder_name(folder),
        files=tuple(file for file, _ in read),
        tensors=tensors,
        descriptions=(folder / CONFIG,),
        companions={name: folder / name for name in COMPANIONS if name in present},
    )


def folder_name(folder: Path) -> str:
    """What to call the model in a folder: in a hub's cache, …/models--OWNER--NAME/snapshots/HASH, by its name there."""
    whole = folder.absolute()
    cached = whole.parent.parent.name if whole.parent.name == "snapshots" else ""
    return cached.removeprefix("models--").replace("--", "/", 1) if cached.startswith("models--") else whole.name


def has_weights(names: Sequence[str]) -> bool:
    """Whether a folder with files of these names is one."""
    return INDEX in names or any(name.endswith(ENDING) for name in names)


def _read_config(folder: Path, present: Sequence[str]) -> dict[str, Any]:
    if CONFIG not in present:
        raise CorruptModelFile(
            f"{folder} has weights in safetensors files but lacks {CONFIG}; expected the whole folder as it was published"
        )
    config = parse_json_object(read_whole(folder / CONFIG, MAX_CONFIG_BYTES), str(folder / CONFIG))
    method = config.get("quantization_config")
    if isinstance(method, Mapping) and method.get("quant_method") not in _UNPACKED_METHODS:
        named = str(method.get("quant_method"))[:40]
        raise UnsupportedModel(
            f"{folder} is quantised by {named!r}, which is not supported; expected weights in F32, F16 or BF16, or a GGUF file"
        )
    return config


def _read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor. Only names without a folder: an index leads nowhere else."""
    path = folder / INDEX
    files = parse_json_object(read_whole(path, MAX_JSON_BYTES), str(path)).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise CorruptModelFile(f"{path} has no weight_map; expected the file of each tensor")
    names = set(map(repr, files.values())) and {name if isinstance(name, str) else "" for name in files.values()}
    wrong = [name for name in names if not _is_plain(name)]
    if wrong or len(names) > MAX_FILES:
        raise CorruptModelFile(
            f"{path} names the file {min(wrong, default='')[:80]!r} among {len(names)}; expected up to {MAX_FILES} in the same folder"
        )
    return files


def _is_plain(name: str) -> bool:
    return 0 < len(name) <= 255 and name.isprintable() and "/" not in name and name.endswith(ENDING)


def _weight_files(folder: Path, present: Sequence[str]) -> list[str]:
    """Without an index: the one file, or all parts of one."""
    found = [name for name in present if name.endswith(ENDING)]
    if f"model{ENDING}" in found:
        return [f"model{ENDING}"]
    sets = {tuple(part_names(name)) or (name,) for name in found if not name.startswith(("adapter_", "consolidated"))}
    if len(sets) > 1:
        raise CorruptModelFile(f"{folder} has the weights {', '.join(found)[:200]} and no {INDEX}; expected one model in a folder")
    if not sets:
        raise UnsupportedModel(
            f"{folder} has only {', '.join(found)[:200]}; expected weights of a whole model in the layout of transformers"
        )
    return list(sets.pop())


def _require_indexed(folder: Path, index: Mapping[str, str], names: Sequence[str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, file in index.items():
        tensor = tensors.get(name)
        if tensor is not None and names[tensor.file_index] != file:
            raise CorruptModelFile(f"{folder / INDEX} says that tensor {name[:80]!r} is in {file!r}; it is in {names[tensor.file_index]!r}")
        if tensor is None:
            raise CorruptModelFile(f"{folder / INDEX} says that tensor {name[:80]!r} is in {file!r}, which has none of that name")
