"""Which files of a repository are one model: those of a type, all parts of a split file, what a folder of safetensors needs. Pure."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dairllm.model_files.containers.split_gguf import PART_NAME, part_names
from dairllm.model_files.errors import UnknownModelName

DEFAULT_TYPES = ("Q4_K_M", "Q4_0", "Q4_K_S", "IQ4_XS", "IQ4_NL", "Q4_1", "MXFP4", "Q5_K_M", "Q5_K_S", "Q5_0", "Q6_K", "Q8_0", "BF16", "F16")
"""What is taken where nothing is said, best first: about half a byte per weight is where most people want to be."""
SAFETENSORS = "safetensors"
_CONFIG = "config.json"
_INDEX_ENDING = ".safetensors.index.json"
_BESIDE_SAFETENSORS = frozenset(
    {
        *(_CONFIG, "generation_config.json", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    }
)
_TYPE = re.compile(r"(?:UD-)?(?:I?Q\d|TQ\d|MXFP\d|NVFP\d|BF16|FP?16|FP?32)\w*", re.IGNORECASE)
_TYPE_AT_END = re.compile(rf"(?:^|[-._/])({_TYPE.pattern})$", re.IGNORECASE)
_NO_MODEL = ("mmproj", "imatrix")
"""Beginnings of GGUF files that stand beside models: of pictures, of how a quantiser weighed."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class HubFile:
    """size_bytes: None if the hub does not tell. sha256, git_sha1: of its content, hexadecimal; the latter as git has it, of files that lie
    in git itself."""

    name: str
    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """files: in order. entry: which of them is opened, '' for their folder. label: how this one is asked for behind the last ':'. note:
    what was chosen without having been said, '' if nothing was."""

    files: tuple[HubFile, ...]
    entry: str
    label: str
    note: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes or 0 for file in self.files)


def type_of(name: str) -> str | None:
    """The element type that a GGUF file's name, or its folder's, ends with, in capitals: 'x/y-Q4_K_M-00001-of-00003.gguf' is Q4_K_M."""
    stem = _stem(name)
    found = _TYPE_AT_END.search(stem) or _TYPE_AT_END.search(str(PurePosixPath(stem).parent))
    return _written_as_type(found[1]) if found else None


def ggufs_of(files: Iterable[HubFile]) -> dict[str, tuple[HubFile, ...]]:
    """Models in GGUF by their name without ending and part; the parts of each in order. Files that are no models are left out."""
    found: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        path = PurePosixPath(file.name)
        if path.suffix.lower() == ".gguf" and not path.name.lower().startswith(_NO_MODEL):
            found.setdefault(_stem(file.name), []).append(file)
    return {stem: tuple(parts) for stem, parts in found.items()}


def choose(repository: str, files: Sequence[HubFile], wanted: str | None) -> ChosenFiles:
    """What is meant by `wanted`, a file, a type or 'safetensors', or by nothing. Raises UnknownModelName, with what there is."""
    ggufs = ggufs_of(files)
    if wanted is None:
        return _default(repository, files, ggufs)
    if wanted.lower() == SAFETENSORS:
        return _folder(repository, files)
    named = [file for file in files if file.name == wanted]
    if named:
        return _named(repository, files, ggufs, named[0])
    stems = [stem for stem in ggufs if _is_meant(stem, wanted)]
    if len(stems) == 1:
        return _gguf(repository, ggufs[stems[0]], wanted)
    problem = f"has {len(stems)} models of the type {wanted[:80]!r}" if stems else f"has no file and no type {wanted[:80]!r}"
    raise UnknownModelName(f"{repository} {problem}; it has {describe(files, stems)}")


def describe(files: Sequence[HubFile], stems: Collection[str] = ()) -> str:
    """What can be asked for, in words; stems: only these models."""
    ggufs = {stem: parts for stem, parts in ggufs_of(files).items() if not stems or stem in stems}
    labels = _labels(ggufs)
    found = [f"{labels[stem]} ({_size_of(parts)})" for stem, parts in ggufs.items()]
    if not stems and _has_folder(files):
        found.append(f"{SAFETENSORS} ({_size_of(_folder('', files).files)})")
    if not found:
        found = [file.name for file in files] or ["no files"]
    more = len(found) - _MOST_SHOWN
    return ", ".join(found[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def labels_of(files: Sequence[HubFile]) -> dict[str, ChosenFiles]:
    """Every model of a repository by how it is asked for behind the last ':'. Of split ones all parts must be there."""
    ggufs = ggufs_of(files)
    labels = _labels(ggufs)
    found = {labels[stem]: ChosenFiles(parts, parts[0].name, labels[stem]) for stem, parts in ggufs.items() if not _missing_parts(parts)}
    if _has_folder(files):
        found[SAFETENSORS] = _folder("", files)
    return found


def _default(repository: str, files: Sequence[HubFile], ggufs: Mapping[str, tuple[HubFile, ...]]) -> ChosenFiles:
    if len(ggufs) == 1:
        (parts,) = ggufs.values()
        return _gguf(repository, parts, _labels(ggufs)[next(iter(ggufs))])
    for element_type in DEFAULT_TYPES:
        stems = [stem for stem in ggufs if type_of(f"{stem}.gguf") == element_type]
        if len(stems) == 1:
            chosen = _gguf(repository, ggufs[stems[0]], element_type)
            note = f"of {len(ggufs)} in {repository}, {element_type} is taken ({_size_of(chosen.files)}); there are {describe(files)}"
            return ChosenFiles(chosen.files, chosen.entry, chosen.label, note)
        if stems:
            break
    if ggufs:
        raise UnknownModelName(f"{repository} holds several models; expected hf:{repository}: and one of {describe(files)}")
    return _folder(repository, files)


def _named(repository: str, files: Sequence[HubFile], ggufs: Mapping[str, tuple[HubFile, ...]], named: HubFile) -> ChosenFiles:
    parts = ggufs.get(_stem(named.name), (named,))
    if named in parts and named.name.lower().endswith(".gguf"):
        return _gguf(repository, parts, named.name)
    if named.name.lower().endswith((".safetensors", _INDEX_ENDING)) or named.name == _CONFIG:
        return _folder(repository, files)
    if named.name.lower().endswith(_PICKLES):
        raise UnknownModelName(f"{named.name} of {repository} {_PICKLE_PROBLEM}; there is {describe(files)}")
    raise UnknownModelName(f"{named.name} of {repository} is no model file; there is {describe(files)}")


_PICKLE_PROBLEM = "is a PyTorch file, which can run code when it is opened; expected GGUF or safetensors"


def _gguf(repository: str, parts: tuple[HubFile, ...], label: str) -> ChosenFiles:
    missing = _missing_parts(parts)
    if missing:
        raise UnknownModelName(f"{repository} lacks {missing}; a split model needs all of its parts")
    return ChosenFiles(parts, parts[0].name, label)


def _missing_parts(parts: Sequence[HubFile]) -> str:
    """What of a split model is not there, in words."""
    present = {part.name for part in parts}
    lacking = [name for name in part_names(parts[0].name) if name not in present]
    return f"{lacking[0]}{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}" if lacking else ""


def _folder(repository: str, files: Sequence[HubFile]) -> ChosenFiles:
    weights = _weights(files)
    if not weights or _CONFIG not in {file.name for file in files}:
        pickles = [file.name for file in files if file.name.lower().endswith(_PICKLES)]
        if pickles and not weights:
            raise UnknownModelName(f"{pickles[0]} of {repository} {_PICKLE_PROBLEM}, which {repository} does not have")
        raise UnknownModelName(f"{repository} has no GGUF file, and no config.json with safetensors; there is {describe_names(files)}")
    beside = [file for file in files if file.name in _BESIDE_SAFETENSORS]
    return ChosenFiles((*beside, *weights), "", SAFETENSORS)


def describe_names(files: Sequence[HubFile]) -> str:
    names = [file.name for file in files[:_MOST_SHOWN]]
    return ", ".join(names) + (" …" if len(files) > _MOST_SHOWN else "") if names else "no file"


def _has_folder(files: Sequence[HubFile]) -> bool:
    return bool(_weights(files)) and any(file.name == _CONFIG for file in files)


def _weights(files: Sequence[HubFile]) -> list[HubFile]:
    """Safetensors of the folder itself: those called model*.safetensors, if there are any, since others hold the same once more."""
    found = [file for file in files if "/" not in file.name and file.name.lower().endswith(".safetensors")]
    models = [file for file in found if file.name.startswith("model")]
    return models or [file for file in found if not file.name.startswith(("consolidated", "adapter"))]


def _labels(ggufs: Mapping[str, tuple[HubFile, ...]]) -> dict[str, str]:
    """The type where it says which one is meant, else the file."""
    types = {stem: type_of(f"{stem}.gguf") for stem in ggufs}
    known = list(types.values())
    return {stem: kind if kind and known.count(kind) == 1 else ggufs[stem][0].name for stem, kind in types.items()}


def _written_as_type(name: str) -> str:
    return name.upper().replace("FP16", "F16").replace("FP32", "F32")


def _is_meant(stem: str, wanted: str) -> bool:
    if _TYPE.fullmatch(wanted):
        return type_of(f"{stem}.gguf") == _written_as_type(wanted)
    return PurePosixPath(stem).name.lower() == wanted.lower().removesuffix(".gguf")


def _stem(name: str) -> str:
    part = PART_NAME.fullmatch(name)
    return part["stem"] if part else name[: -len(".gguf")] if name.lower().endswith(".gguf") else name


def _size_of(files: Iterable[HubFile]) -> str:
    return describe_size(sum(file.size_bytes or 0 for file in files))


def describe_size(size_bytes: int) -> str:
    """As hubs and shops write it, in thousands."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if size_bytes >= 10**power:
            return f"{size_bytes / 10**power:.3g} {unit}"
    return f"{size_bytes} B"
