"""The manifest: which bytes of a model's files make up each unit, and what those bytes must hash to.

It is built once per model by reading all of it, kept in the cache folder, and sent to every shard. A shard trusts no file
whose units do not have the manifest's digests.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dairllm.kernels_pyx import QUANTIZED_FORMATS
from dairllm.model_files.attention import MAX_LAYERS
from dairllm.model_files.block_formats import BLOCK_FORMATS, VALUE_FORMATS, VECTOR_FORMATS
from dairllm.model_files.bounds import check_fields, one_of, text, within
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.roles import is_numbers, unit_shapes
from dairllm.model_files.spec import ModelSpec
from dairllm.model_files.transforms import TRANSFORMS, Kind, stored_shape

MAX_FILE_BYTES = 1 << 46
MAX_FILES = 4096
MAX_PIECES = 1 << 16
MAX_TRANSFORMS = 4
DIGEST_BYTES = 32
_MATRIX_DIMENSIONS = 2
_NAMES_ONLY = frozenset({"architecture", "name", "context_length"})
"""Fields of a spec that no result depends on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One of the files that a model lies in. name: in the folder that they share."""

    name: str = text(highest=1024)
    size_bytes: int = within(1, MAX_FILE_BYTES)

    def __post_init__(self) -> None:
        check_fields(self)
        if "/" in self.name or "\0" in self.name or self.name in (".", ".."):
            raise CorruptModelFile(f"a file of the model is called {self.name[:60]!r}; expected a name without a folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPiece:
    """A range of the model's files. file_index: which one; offset_bytes: from its start."""

    file_index: int = within(0, MAX_FILES - 1, default=0)
    offset_bytes: int = within(0, MAX_FILE_BYTES)
    size_bytes: int = within(1, MAX_FILE_BYTES)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor. role, shape: as in `roles`, row-major.

    pieces: where its bytes lie, in order; several if it is made of several stored tensors or of some rows of one. transforms: what is done
    with them when they are loaded (`transforms`). quantized_to: what rows are rounded to then; None if they stay as they are stored.
    name: of the first stored tensor, for messages.
    """

    name: str = text(highest=65_535)
    role: str = text()
    block_format: str = text()
    shape: tuple[int, ...]
    pieces: tuple[TensorPiece, ...]
    transforms: tuple[str, ...] = ()
    quantized_to: str | None = one_of(*QUANTIZED_FORMATS, default=None)

    def __post_init__(self) -> None:
        check_fields(self)
        if not 1 <= len(self.pieces) <= MAX_PIECES:
            raise CorruptModelFile(f"tensor {self.name[:80]!r} has {len(self.pieces)} pieces; expected 1 to {MAX_PIECES}")
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if unknown or len(self.transforms) > MAX_TRANSFORMS:
            found = f"{len(self.transforms)} transforms, {str(unknown)[:80]} unknown ones"
            raise CorruptModelFile(f"tensor {self.name[:80]!r} has {found}; expected up to {MAX_TRANSFORMS} of {', '.join(TRANSFORMS)}")

    @property
    def size_bytes(self) -> int:
        """As it is stored."""
        return sum(piece.size_bytes for piece in self.pieces)

    @property
    def is_numbers(self) -> bool:
        """It is kept as float32 of its shape, not as a matrix or a stack of them."""
        return is_numbers(self.role, self.shape)

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == _MATRIX_DIMENSIONS and not self.is_numbers

    @property
    def is_expert_stack(self) -> bool:
        return self.role.startswith("expert_") and not self.is_numbers

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Before the transforms."""
        return stored_shape(self.shape, self.transforms, numbers=self.is_numbers)

    @property
    def row_bytes(self) -> int:
        """Of one row of a matrix, or of a whole vector, in its block format."""
        return _bytes_of(self.shape[-1], self.block_format)

    @property
    def packed_format(self) -> str:
        """What matrices are computed from."""
        return self.quantized_to or self.block_format

    @property
    def packed_row_bytes(self) -> int:
        """As `row_bytes`, in the packed format."""
        return _bytes_of(self.shape[-1], self.packed_format)

    @property
    def packed_bytes(self) -> int:
        """Of all rows in the packed format."""
        return math.prod(self.shape[:-1]) * self.packed_row_bytes

    @property
    def place(self) -> tuple[str, str, tuple[int, ...], tuple[str, ...], tuple[TensorPiece, ...]]:
        """Equal for two roles that one tensor of the files has, as in a tied model."""
        return self.block_format, self.packed_format, self.shape, self.transforms, self.pieces


def _bytes_of(elements: int, block_format: str) -> int:
    _, block_size, block_bytes = BLOCK_FORMATS[block_format]
    return elements // block_size * block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit of assignment. `digest` is the SHA-256 of its tensors' bytes in the listed order, `size_bytes` their sum."""

    index: int = within(0, MAX_LAYERS + 1)
    tensors: tuple[TensorInfo, ...]
    size_bytes: int = within(0, MAX_FILE_BYTES)
    digest: bytes

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Of its tensors' pieces: (index of the file, offset in it, size), in bytes."""
        return [(piece.file_index, piece.offset_bytes, piece.size_bytes) for tensor in self.tensors for piece in tensor.pieces]

    @property
    def file_indexes(self) -> frozenset[int]:
        """The files that its tensors lie in."""
        return frozenset(file_index for file_index, _, _ in self.places)

    @property
    def expert_bytes(self) -> int:
        """Of the matrices of all its experts, as they are packed."""
        return sum(tensor.packed_bytes for tensor in self.tensors if tensor.is_expert_stack)

    def bytes_read_per_step(self, spec: ModelSpec, rows: int = 1) -> int:
        """Bytes of weights that a step of so many rows reads: of the embedding next to nothing, of expert stacks those that are chosen."""
        if self.index == 0:
            return 0
        layer = spec.layer_of(self.index)
        if layer is None or not isinstance(layer.feed_forward, ExpertFeedForward):
            return sum(tensor.packed_bytes for tensor in self.tensors)
        share = layer.feed_forward.experts_read(rows) / layer.feed_forward.num_experts
        return sum(round(tensor.packed_bytes * share) if tensor.is_expert_stack else tensor.packed_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A model's files as the cluster knows them; CorruptModelFile if they contradict themselves.

    Units are numbered 0 = embedding, 1 to L = layers 0 to L-1, L+1 = head. Of a tied model the head's `output` is the
    embedding's tensor, at the same place. `model_digest` identifies what is computed, not how the files are laid out: see
    `compute_model_digest`.
    """

    spec: ModelSpec
    units: tuple[Unit, ...]
    files: tuple[ModelFile, ...]
    model_digest: bytes

    def __post_init__(self) -> None:
        if len(self.units) != self.spec.num_units:
            layers = f"{self.spec.num_units} for {self.spec.num_layers} layers"
            raise CorruptModelFile(f"the manifest has {len(self.units)} units; expected {layers}")
        validate_units(self.spec, self.units, self.files)
        expected = compute_model_digest(self.spec, self.units)
        if self.model_digest != expected:
            raise CorruptModelFile(
                f"model_digest is {self.model_digest[:DIGEST_BYTES].hex()}; the manifest's content gives {expected.hex()}"
            )

    @property
    def tied_bytes(self) -> int:
        """Bytes that embedding and head have in common; the sizes of both contain them."""
        places = {tensor.place for tensor in self.units[0].tensors}
        return sum(tensor.size_bytes for tensor in self.units[-1].tensors if tensor.place in places)


def compute_model_digest(spec: ModelSpec, units: Sequence[Unit]) -> bytes:
    """SHA-256 of canonical JSON of everything that the result depends on.

    That is the spec without its names, and of each unit the digest and the role, formats, shape and transforms of its tensors; not pieces,
    files and names, so that the same weights have the same digest wherever they lie. Fields at their defaults are left out, so that a field
    which a later version adds changes no digest of a model that does without.
    """
    described = {name: value for name, value in _canonical(spec).items() if name not in _NAMES_ONLY}
    contents = [[unit.digest.hex(), [_content_of(tensor) for tensor in unit.tensors]] for unit in units]
    canonical = json.dumps([described, contents], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).digest()


def _content_of(tensor: TensorInfo) -> list[object]:
    plain: list[object] = [tensor.role, tensor.block_format, list(tensor.shape)]
    moved = [*plain, list(tensor.transforms)] if tensor.transforms else plain
    return [*moved, tensor.quantized_to] if tensor.quantized_to else moved


def _canonical(value: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(value)
    held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if getattr(value, field.name) != field.default}
    return {"": type(value).__name__} | {name: _canonical_value(one) for name, one in held.items()}


def _canonical_value(value: object) -> object:
    if isinstance(value, tuple):
        return [_canonical_value(one) for one in value]
    return _canonical(value) if dataclasses.is_dataclass(value) else value


def validate_units(spec: ModelSpec, units: Sequence[Unit], files: Sequence[ModelFile]) -> None:
    """Raise CorruptModelFile, in one sentence, unless units are consecutive ones of the model, and tensors, shapes, sizes and digests agree
    with it and its files."""
    indexes = [unit.index for unit in units]
    if not indexes or indexes != list(range(indexes[0], indexes[0] + len(indexes))) or indexes[-1] > spec.head_index:
        raise CorruptModelFile(f"there are the units {str(indexes)[:100]}; expected a contiguous run within 0 to {spec.head_index}")
    if not 1 <= len(files) <= MAX_FILES:
        raise CorruptModelFile(f"the model lies in {len(files)} files; expected 1 to {MAX_FILES}")
    for unit in units:
        _validate_unit(spec, unit, files)


def _validate_unit(spec: ModelSpec, unit: Unit, files: Sequence[ModelFile]) -> None:
    name, shapes = spec.unit_name(unit.index), unit_shapes(spec, unit.index)
    if len(unit.digest) != DIGEST_BYTES:
        raise CorruptModelFile(f"the digest of {name} has {len(unit.digest)} bytes; expected the {DIGEST_BYTES} of SHA-256")
    roles = [tensor.role for tensor in unit.tensors]
    if roles != list(shapes):
        raise CorruptModelFile(f"{name} has the tensors {', '.join(roles)[:200]}; expected {', '.join(shapes)}")
    for tensor in unit.tensors:
        _validate_tensor(f"tensor {tensor.name[:80]!r} ({tensor.role} of {name})", tensor, shapes[tensor.role], files)
    total = sum(tensor.size_bytes for tensor in unit.tensors)
    if unit.size_bytes != total:
        raise CorruptModelFile(f"{name} has size_bytes {unit.size_bytes}; its tensors have {total}")


def _validate_tensor(where: str, tensor: TensorInfo, shape: tuple[int, ...], files: Sequence[ModelFile]) -> None:
    if tensor.shape != shape:
        raise CorruptModelFile(f"{where} has shape {str(tensor.shape)[:80]}; expected {shape}")
    stored, formats = tensor.stored_shape, _possible_formats(where, tensor)
    if tensor.block_format not in formats:
        raise CorruptModelFile(f"{where} is stored as {tensor.block_format[:40]!r}; expected one of {', '.join(formats)}")
    if stored[-1] % BLOCK_FORMATS[tensor.block_format].block_size:
        raise CorruptModelFile(f"{where} has rows of {stored[-1]} elements; expected whole blocks of {tensor.block_format}")
    size_bytes = math.prod(stored[:-1]) * _bytes_of(stored[-1], tensor.block_format)
    if tensor.size_bytes != size_bytes:
        raise CorruptModelFile(f"{where} has {tensor.size_bytes} bytes; expected {size_bytes}")
    if tensor.quantized_to is not None:
        _validate_quantized(where, tensor)
    for piece in tensor.pieces:
        _validate_piece(where, piece, files)


def _possible_formats(where: str, tensor: TensorInfo) -> Sequence[str]:
    """Of values that the transforms can be done with."""
    transforms = [TRANSFORMS[name] for name in tensor.transforms]
    kinds = {transform.kind for transform in transforms}
    only = {transform.block_format for transform in transforms} - {None}
    if not tensor.is_numbers and Kind.CHANGES_VALUES in kinds:
        names = ", ".join(tensor.transforms)
        raise CorruptModelFile(f"{where} is a matrix with the transforms {names}; expected some that only move values")
    found = VECTOR_FORMATS if tensor.is_numbers else VALUE_FORMATS if Kind.MOVES_VALUES in kinds else tuple(BLOCK_FORMATS)
    return [name for name in found if not only or name in only] or ["none"]


def _validate_quantized(where: str, tensor: TensorInfo) -> None:
    block_size = BLOCK_FORMATS[tensor.packed_format].block_size
    if tensor.is_numbers or tensor.block_format not in VALUE_FORMATS or tensor.shape[-1] % block_size:
        stored = f"{where} has rows of {tensor.shape[-1]} {tensor.block_format} and is quantised to {tensor.quantized_to}"
        raise CorruptModelFile(f"{stored}; expected a matrix in one of {', '.join(VALUE_FORMATS)} with whole blocks of {block_size}")


def _validate_piece(where: str, piece: TensorPiece, files: Sequence[ModelFile]) -> None:
    if piece.file_index >= len(files):
        raise CorruptModelFile(f"{where} has file_index {piece.file_index}; the model lies in {len(files)} files")
    file_bytes = files[piece.file_index].size_bytes
    if piece.offset_bytes + piece.size_bytes > file_bytes:
        raise CorruptModelFile(f"{where} has offset {piece.offset_bytes}; expected it to end within {file_bytes} bytes")
