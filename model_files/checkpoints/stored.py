"""Where the tensor of a role lies: a whole stored tensor, rows of a fused one, a stack of several; and what is done with it when it is
loaded.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.containers import Container, StoredTensor
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.manifest import TensorInfo, TensorPiece
from dairllm.model_files.roles import Shape, is_numbers
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.transforms import stored_shape

EXPERT = "{expert}"
_MXFP4_BLOCK = 32


class Rows(NamedTuple):
    """Of a tensor whose rows are blocks of `of` rows: those from first to before last of each block."""

    of: int
    first: int
    last: int


class Stored(NamedTuple):
    """name: with `{layer}` for the layer's number and, for a stack of separate tensors, `{expert}`. rows: by the part of the description
    (a layer, or the model) that the tensor belongs to; all rows unless given. exponents: a tensor with the exponents of MXFP4 blocks, of
    which the first one has the bytes; of both, what is one matrix's comes together."""

    name: str
    transforms: tuple[str, ...] = ()
    rows: Callable[[Any], Rows] | None = None
    exponents: str = ""

    def name_in(self, layer: int, expert: int = 0) -> str:
        return self.name.replace("{layer}", str(layer)).replace(EXPERT, str(expert))


Names = Mapping[str, Sequence[Stored]]
"""By role, places where its tensor may lie: the first one that is there counts."""


class StoredPlace(NamedTuple):
    """What of a container makes up one role's tensor. layer: of the number."""

    stored: Stored
    layer: int

    def is_in(self, container: Container) -> bool:
        return self.stored.name_in(self.layer) in container.tensors


def find_place(container: Container, candidates: Sequence[Stored], layer: int) -> StoredPlace | None:
    """The first one that is there."""
    places = (StoredPlace(stored, layer) for stored in candidates)
    return next((place for place in places if place.is_in(container)), None)


def tensor_of(container: Container, place: StoredPlace, part: Any, role: str, shape: Shape) -> TensorInfo:
    """part: of the description, which the tensor belongs to. CorruptModelFile if what is stored has another shape than the role needs."""
    expected = stored_shape(shape, place.stored.transforms, numbers=is_numbers(role, shape))
    tensors = list(_tensors(container, place, shape))
    if place.stored.exponents:
        block_format, pieces = "MXFP4", tuple(_mxfp4_pieces(container, tensors[0], tensors[1], expected))
    else:
        block_format = _format_of(tensors)
        of_each = expected[1:] if len(tensors) > 1 else expected
        pieces = tuple(piece for tensor in tensors for piece in _pieces(container, tensor, place, part, of_each))
    transforms = place.stored.transforms
    return TensorInfo(name=tensors[0].name, role=role, block_format=block_format, shape=shape, pieces=pieces, transforms=transforms)


def names_of(container: Container, place: StoredPlace, shape: Shape) -> Iterator[str]:
    """Of the stored tensors."""
    return (tensor.name for tensor in _tensors(container, place, shape))


def _format_of(tensors: Sequence[StoredTensor]) -> str:
    formats = sorted({tensor.block_format.name for tensor in tensors})
    if len(formats) > 1 or formats[0] not in BLOCK_FORMATS:
        found, known = " and ".join(formats), ", ".join(BLOCK_FORMATS)
        raise UnsupportedModel(f"tensor {tensors[0].name!r} is stored as {found}, which is not supported; expected one of {known}")
    return formats[0]


def _tensors(container: Container, place: StoredPlace, shape: Shape) -> Iterator[StoredTensor]:
    names = [place.stored.name_in(place.layer, expert) for expert in range(shape[0] if EXPERT in place.stored.name else 1)]
    if place.stored.exponents:
        names.append(place.stored._replace(name=place.stored.exponents).name_in(place.layer))
    for name in names:
        tensor = container.tensors.get(name)
        if tensor is None:
            raise CorruptModelFile(f"{container.path} lacks the tensor {name!r}, one of {len(names)} that belong together")
        yield tensor


def _mxfp4_pieces(container: Container, blocks: StoredTensor, exponents: StoredTensor, expected: Shape) -> Iterator[TensorPiece]:
    """Of each matrix its blocks, then its exponents."""
    count, rows, columns = expected
    sizes = rows * columns // 2, rows * columns // _MXFP4_BLOCK
    for tensor, size_bytes in zip((blocks, exponents), sizes, strict=True):
        if tensor.size_bytes != count * size_bytes:
            found = f"the tensor {tensor.name!r} of {tensor.size_bytes} bytes"
            raise CorruptModelFile(f"{container.path} has {found}; expected {count * size_bytes}")
    for index in range(count):
        for tensor, size_bytes in zip((blocks, exponents), sizes, strict=True):
            offset = tensor.offset_bytes + index * size_bytes
            yield TensorPiece(file_index=tensor.file_index, offset_bytes=offset, size_bytes=size_bytes)


def _pieces(container: Container, tensor: StoredTensor, place: StoredPlace, part: Any, expected: Shape) -> Iterator[TensorPiece]:
    """The ranges of one stored tensor, whose rows times columns must be `expected` ones, and the rows of others if it is a fused one."""
    rows, columns = math.prod(tensor.shape[:-1]), (tensor.shape or (1,))[-1]
    wanted = math.prod(expected[:-1])
    blocks = Rows(rows, 0, rows) if place.stored.rows is None else place.stored.rows(part)
    count = wanted // max(1, blocks.last - blocks.first)
    if (rows, columns) != (count * blocks.of, expected[-1]) or count * (blocks.last - blocks.first) != wanted:
        shape = (count * blocks.of, expected[-1]) if place.stored.rows is not None else expected
        raise CorruptModelFile(f"{container.path} has the tensor {tensor.name!r} of shape {tensor.shape}; expected {shape}")
    row_bytes = tensor.size_bytes // rows
    if blocks == Rows(rows, 0, rows):
        yield TensorPiece(file_index=tensor.file_index, offset_bytes=tensor.offset_bytes, size_bytes=tensor.size_bytes)
        return
    for block in range(count):
        first = tensor.offset_bytes + (block * blocks.of + blocks.first) * row_bytes
        yield TensorPiece(file_index=tensor.file_index, offset_bytes=first, size_bytes=(blocks.last - blocks.first) * row_bytes)


def part_of(spec: ModelSpec, unit: int) -> Any:
    """The layer that a unit is, or the model."""
    return spec.layer_of(unit) or spec
