"""What a file is, by its first bytes: names lie, and what people have is often not what they think.

Signatures: https://en.wikipedia.org/wiki/List_of_file_signatures; a pointer of Git LFS:
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; torch's zip archives hold …/data.pkl
(https://docs.pytorch.org/docs/stable/notes/serialization.html).
"""

import re
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from dairllm.model_files.containers.regular_files import read_start
from dairllm.model_files.errors import UnknownModelName

START_BYTES = 4096
_LFS_SIZE = re.compile(rb"^size ([0-9]{1,20})$", re.MULTILINE)
_WAITING_NAMES = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".tmp", ".aria2")


class FileKind(Enum):
    """Kinds that a model can be opened from."""

    GGUF = auto()
    SAFETENSORS = auto()
    DISTRIBUTED_LLAMA = auto()
    JSON = auto()


class Start(NamedTuple):
    """Of a file."""

    path: Path
    data: bytes
    size_bytes: int


class _Sign(NamedTuple):
    """matches: by the start. advice: what it is, and what to do."""

    matches: Callable[[Start], bool]
    advice: str


def _begins(*starts: bytes) -> Callable[[Start], bool]:
    return lambda start: start.data.startswith(starts)


def _is_page(start: Start) -> bool:
    text = start.data.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"))


def _is_torch_archive(start: Start) -> bool:
    """By the name of the first file in it."""
    name_bytes = int.from_bytes(start.data[26:28], "little")
    name = start.data[30 : 30 + name_bytes]
    return start.data.startswith(b"PK\x03\x04") and (name.endswith((b"data.pkl", b".format_version")) or b"/data/" in name)


def _is_onnx(start: Start) -> bool:
    """Its first field is the version, its second the producer's name (onnx.proto)."""
    data = start.data
    return start.path.suffix == ".onnx" or (
        data[:1] == b"\x08" and b"\0" < data[1:2] < b"\x14" and data[2:3] == b"\x12" and data[4:9].isalpha()
    )


_GET_GGUF = "look for a GGUF file or a folder with safetensors files of the same model"
_FETCH = "the download is not complete: fetch it again"

_REFUSED = (
    _Sign(_begins(b"version https://git-lfs"), "a pointer of Git LFS in place of the file itself: fetch it with 'git lfs pull'"),
    _Sign(_is_page, "a web page, not a model: what was downloaded is not the file itself but a page about it, or an error"),
    _Sign(lambda start: not any(start.data), f"nothing but zeros at its beginning: {_FETCH}"),
    _Sign(
        _is_torch_archive, f"a PyTorch checkpoint (a pickle, which may run any program when it is loaded), which is not read: {_GET_GGUF}"
    ),
    _Sign(
        _begins(b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        f"a pickle (as PyTorch saves checkpoints), which is not read: {_GET_GGUF}",
    ),
    _Sign(_begins(b"PK\x03\x04", b"PK\x05\x06"), "a zip archive: unpack it and name what is inside"),
    _Sign(_begins(b"\x1f\x8b", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"7z\xbc\xaf\x27\x1c", b"BZh", b"Rar!"), "a compressed file: unpack it first"),
    _Sign(lambda start: start.data[257:262] == b"ustar", "a tar archive: unpack it and name what is inside"),
    _Sign(
        _begins(b"lmgg", b"tjgg", b"fmgg", b"algg", b"GGML", b"ggml", b"ggjt", b"ggmf"), f"an old GGML file from before GGUF: {_GET_GGUF}"
    ),
    _Sign(_begins(b"FUGG"), "a GGUF file of the other byte order; expected a little-endian one"),
    _Sign(_begins(b"\x89HDF\r\n\x1a\n"), f"an HDF5 file (as Keras saves models), which is not read: {_GET_GGUF}"),
    _Sign(lambda start: start.data[4:8] == b"TFL3", f"a TensorFlow Lite model, which is not read: {_GET_GGUF}"),
    _Sign(_begins(b"\x24\x71\x56\x00", b"\x23\x71\x56\x00"), "a tokenizer of distributed-llama: name the model's .m file"),
    _Sign(
        _begins(b"\x00\xcd\xab\x00", b"\x01\xcd\xab\x00"),
        "a distributed-llama model in the format from before version 0.7: convert it again",
    ),
)
_LAST = (_Sign(_is_onnx, f"an ONNX model, which is not read: {_GET_GGUF}"),)


def recognise(path: Path) -> FileKind:
    """UnknownModelName, with what it is and what to do, for a file that no model can be opened from; CorruptModelFile if
    it cannot be read."""
    return kind_of(Start(path, *read_start(path, START_BYTES)))


def kind_of(start: Start) -> FileKind:
    """As `recognise`, of a file that begins so."""
    if not start.size_bytes:
        raise UnknownModelName(f"{start.path} is empty; expected a model file")
    if start.data.startswith(b"GGUF"):
        return FileKind.GGUF
    if start.data.startswith(b"\xcd\xab\x00\x0a"):
        return FileKind.DISTRIBUTED_LLAMA
    if _is_safetensors(start):
        return FileKind.SAFETENSORS
    if start.data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return FileKind.JSON
    raise UnknownModelName(_refusal(start))


def _is_safetensors(start: Start) -> bool:
    size = int.from_bytes(start.data[:8], "little")
    return start.data[8:9] == b"{" and (size < start.size_bytes or start.path.suffix == ".safetensors")


def _refusal(start: Start) -> str:
    size = _LFS_SIZE.search(start.data)
    for sign in (*_REFUSED, *_LAST):
        if sign.matches(start):
            of = f" of {int(size[1])} bytes" if size and start.data.startswith(b"version ") else ""
            return f"{start.path} is {sign.advice}{of}"
    if start.path.suffix in _WAITING_NAMES:
        return f"{start.path} is part of a file: {_FETCH}"
    return f"{start.path} is not a model file: it begins with {start.data[:8]!r}; expected a GGUF, safetensors or distributed-llama file"
