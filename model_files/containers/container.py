"""What every container offers, whatever it is: files, the tensors stored in them, and what is said of the model."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from dairllm.model_files.block_formats import BlockFormat
from dairllm.model_files.containers.metadata import Metadata
from dairllm.model_files.errors import CorruptModelFile, ModelFileError


class Conventions(StrEnum):
    """Whose names metadata and tensors have, and whose layouts.

    GGUF: keys such as `llama.block_count`, tensors such as `blk.0.attn_q.weight`. TRANSFORMERS: those of config.json and of the
    checkpoints of Hugging Face's transformers; `rope_interleave` of the metadata says that rows of q and k are permuted so that rotary
    pairs lie side by side.
    """

    GGUF = "gguf"
    TRANSFORMERS = "transformers"


class ContainerFile(NamedTuple):
    """A file with weights. path: as it was found, links not followed, since the files beside it count."""

    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """shape: row-major, outermost first, as in numpy. offset_bytes: from the start of the file that `file_index` counts.

    block_format: also of kinds that nothing computes with, such as I64; whoever uses the tensor refuses them.
    """

    name: str
    block_format: BlockFormat
    shape: tuple[int, ...]
    file_index: int
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container(Metadata):
    """One model as it lies on the disk. Nothing is held open; only headers have been read.

    kind: for messages. name: what to call the model where nothing in it does. files: in the order in which tensors count them.
    descriptions: other files that the metadata came from. companions: by name, files that say how people talk to the model, such as
    tokenizer.json.
    """

    kind: str
    conventions: Conventions
    name: str
    files: tuple[ContainerFile, ...]
    tensors: Mapping[str, StoredTensor]
    descriptions: tuple[Path, ...] = ()
    companions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of its files with weights."""
        return tuple(file.path for file in self.files)


def check_no_overlap(tensors: Iterable[StoredTensor], complain: Callable[[str], ModelFileError]) -> None:
    """Raise what `complain` makes of a sentence if two tensors of one file have bytes in common."""
    for first, second in itertools.pairwise(sorted(tensors, key=lambda tensor: (tensor.file_index, tensor.offset_bytes))):
        if first.file_index == second.file_index and first.offset_bytes + first.size_bytes > second.offset_bytes:
            raise complain(f"tensors {first.name!r} and {second.name!r} overlap")


def merge_tensors(path: Path, files: Iterable[Mapping[str, StoredTensor]]) -> dict[str, StoredTensor]:
    """Those of several files, in this order, together; CorruptModelFile if a name occurs twice."""
    merged: dict[str, StoredTensor] = {}
    for file_index, tensors in enumerate(files):
        twice = merged.keys() & tensors.keys()
        if twice:
            raise CorruptModelFile(f"{path} has the tensor {min(twice)!r} in two of its files")
        merged.update((name, replace(tensor, file_index=file_index)) for name, tensor in tensors.items())
    return merged
