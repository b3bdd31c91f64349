"""Models that llama-gguf-split has cut into several GGUF files, of which any one may be named.

Their names end in -00001-of-00003.gguf, and the keys `split.no` (from 0), `split.count` and `split.tensors.count` of each say what it is
(https://github.com/ggml-org/llama.cpp/blob/master/tools/gguf-split/gguf-split.cpp). Everything else that is said of the model stands in the
first one.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from dairllm.model_files.containers.container import Container, merge_tensors
from dairllm.model_files.containers.gguf import read_gguf
from dairllm.model_files.errors import CorruptModelFile

MAX_PARTS = 1024
PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<ending>\.[a-z]+)", re.DOTALL)


def part_names(name: str) -> list[str]:
    """Names of all parts of the model that a file with this name is part of; none if it is called otherwise."""
    match = PART_NAME.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]) <= MAX_PARTS:
        return []
    return [f"{match['stem']}-{number:05d}-of-{match['count']}{match['ending']}" for number in range(1, int(match["count"]) + 1)]


def read_all_parts(path: Path) -> Container:
    """The model that this GGUF file is, or is part of. Raises CorruptModelFile, naming it, for a part that is missing or of
    another model."""
    given = read_gguf(path)
    count = given.integer("split.count", 1)
    if count <= 1:
        return given
    paths = _paths_of_parts(path, count)
    parts = [given if part == path else read_gguf(part) for part in paths]
    for number, part in enumerate(parts):
        _require_part(part, number, count)
    first = parts[0]
    tensors = merge_tensors(path, (part.tensors for part in parts))
    promised = first.integer("split.tensors.count", len(tensors))
    if promised != len(tensors):
        raise CorruptModelFile(f"{first.path} promises {promised} tensors in {count} parts; they have {len(tensors)}")
    match = PART_NAME.fullmatch(first.path.name)
    name = match["stem"] if match else first.name
    return replace(first, kind="split GGUF file", name=name, files=tuple(part.files[0] for part in parts), tensors=tensors)


def _paths_of_parts(path: Path, count: int) -> list[Path]:
    """All of them beside this one, or beside the file that a link leads to."""
    for folder, name in ((path.parent, path.name), os.path.split(os.path.realpath(path))):
        names = part_names(name)
        if len(names) == count:
            paths = [path if part == path.name else Path(folder, part) for part in names]
            missing = [part.name for part in paths if not os.path.exists(part)]
            if missing:
                raise CorruptModelFile(
                    f"{path} is one of {count} parts, of which {', '.join(missing[:3])} is not there; expected all in {folder}"
                )
            return paths
    raise CorruptModelFile(
        f"{path} is one of {count} parts of a model; expected a name that ends in -00001-of-{count:05d}.gguf, to find the others"
    )


def _require_part(part: Container, number: int, count: int) -> None:
    found = part.integer("split.no", -1), part.integer("split.count", 1)
    if found != (number, count):
        raise CorruptModelFile(
            f"{part.path} has split.no {found[0]} and split.count {found[1]}; expected {number} and {count}, as its name says"
        )
