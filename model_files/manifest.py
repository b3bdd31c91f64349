"""The manifest: which bytes of a model file make up each unit, and what those bytes must hash to.

It is built once per file by reading all of it, kept in the cache folder, and sent to every shard. A shard trusts no file
whose units do not have the manifest's digests.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dairllm.model_files.block_formats import BLOCK_FORMATS, VECTOR_FORMATS
from dairllm.model_files.errors import CorruptModelFile
from dairllm.model_files.spec import ModelSpec

MAX_MANIFEST_CHARACTERS = 64 << 20
MAX_FILE_BYTES = 1 << 46
OPTIONAL_LAYER_ROLES = ("q_bias", "k_bias", "v_bias", "attention_output_bias")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor in the file. `shape` is (outputs, inputs), row-major, or (n,); `offset` counts from the start of the file."""

    name: str
    role: str
    block_format: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of assignment. `digest` is the SHA-256 of its tensors' bytes in the listed order, `size_bytes` their sum."""

    index: int
    name: str
    tensors: tuple[TensorInfo, ...]
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model file as the cluster knows it; CorruptModelFile if it contradicts itself.

    Units are numbered 0 = embedding, 1 to L = layers 0 to L-1, L+1 = head. Of a tied model the head's `output` is the
    embedding's tensor, at the same offset. `model_digest` identifies what is computed, not how the file is laid out: see
    `compute_model_digest`.
    """

    spec: ModelSpec
    units: tuple[Unit, ...]
    model_digest: str
    file_size_bytes: int

    def __post_init__(self) -> None:
        validate_manifest(self)

    def to_json(self) -> str:
        """JSON that `from_json` turns into an equal manifest."""
        units = [_unit_fields(unit) for unit in self.units]
        fields = {
            "spec": _spec_fields(self.spec),
            "units": units,
            "model_digest": self.model_digest,
            "file_size_bytes": self.file_size_bytes,
        }
        return json.dumps(fields, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Manifest":
        """The manifest of a JSON text that may come from anywhere; CorruptModelFile unless everything in it holds together."""
        fields = _fields(_load_json(text), "the manifest", ("spec", "units", "model_digest", "file_size_bytes"))
        units = tuple(_parse_unit(unit) for unit in _list(fields["units"], "units"))
        return cls(
            _parse_spec(fields["spec"]), units, _text(fields["model_digest"]), _integer(fields["file_size_bytes"], "file_size_bytes")
        )


def unit_name(spec: ModelSpec, index: int) -> str:
    """'embedding', 'layer 3' or 'head'."""
    if index == 0:
        return "embedding"
    return "head" if index == spec.num_layers + 1 else f"layer {index - 1}"


def unit_shapes(spec: ModelSpec, index: int) -> dict[str, tuple[int, ...]]:
    """Shape of the tensor of each role of a unit, optional ones included, in the order of the unit's digest."""
    hidden, vocab = spec.hidden_size, spec.vocab_size
    if index == 0:
        return {"token_embedding": (vocab, hidden)}
    if index == spec.num_layers + 1:
        return {"output_norm": (hidden,), "output": (vocab, hidden)}
    return _layer_shapes(spec)


def _layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, intermediate = spec.hidden_size, spec.intermediate_size
    q_width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        "attention_norm": (hidden,),
        "q": (q_width, hidden),
        "k": (kv_width, hidden),
        "v": (kv_width, hidden),
        "attention_output": (hidden, q_width),
        "ffn_norm": (hidden,),
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
        "q_bias": (q_width,),
        "k_bias": (kv_width,),
        "v_bias": (kv_width,),
        "attention_output_bias": (hidden,),
    }


def compute_model_digest(spec: ModelSpec, units: tuple[Unit, ...]) -> str:
    """SHA-256 of canonical JSON of everything that the result depends on.

    That is the spec without its name, and of each unit the digest and the role, format and shape of its tensors; not offsets
    and not names, so that the same weights have the same digest whatever file they lie in.
    """
    spec_fields = {key: value for key, value in _spec_fields(spec).items() if key != "name"}
    unit_fields = [[unit.digest, [[tensor.role, tensor.block_format, list(tensor.shape)] for tensor in unit.tensors]] for unit in units]
    canonical = json.dumps([spec_fields, unit_fields], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def validate_manifest(manifest: Manifest) -> None:
    """Raise CorruptModelFile, in one sentence, unless units, tensors, shapes, sizes and digests agree with the spec."""
    spec = manifest.spec
    if not 1 <= manifest.file_size_bytes <= MAX_FILE_BYTES:
        raise CorruptModelFile(f"file_size_bytes is {manifest.file_size_bytes}; expected 1 to {MAX_FILE_BYTES}")
    if len(manifest.units) != spec.num_units:
        raise CorruptModelFile(f"the manifest has {len(manifest.units)} units; expected {spec.num_units} for {spec.num_layers} layers")
    for index, unit in enumerate(manifest.units):
        _validate_unit(manifest, index, unit)
    expected = compute_model_digest(spec, manifest.units)
    if manifest.model_digest != expected:
        raise CorruptModelFile(f"model_digest is {manifest.model_digest[:64]!r}; the manifest's content gives {expected!r}")


def _validate_unit(manifest: Manifest, index: int, unit: Unit) -> None:
    if (unit.index, unit.name) != (index, unit_name(manifest.spec, index)):
        raise CorruptModelFile(f"unit {index} of the manifest is {unit.name[:40]!r}; expected {unit_name(manifest.spec, index)!r}")
    if not _DIGEST.fullmatch(unit.digest):
        raise CorruptModelFile(f"the digest of {unit.name} is {unit.digest[:80]!r}; expected 64 hexadecimal digits")
    shapes = unit_shapes(manifest.spec, index)
    roles = [tensor.role for tensor in unit.tensors]
    if roles != [role for role in shapes if role in roles or role not in OPTIONAL_LAYER_ROLES]:
        raise CorruptModelFile(f"{unit.name} has the tensors {', '.join(roles)[:200]}; expected {', '.join(shapes)}, biases optional")
    for tensor in unit.tensors:
        _validate_tensor(manifest, unit, tensor, shapes[tensor.role])
    total = sum(tensor.size_bytes for tensor in unit.tensors)
    if unit.size_bytes != total:
        raise CorruptModelFile(f"{unit.name} has size_bytes {unit.size_bytes}; its tensors have {total}")


def _validate_tensor(manifest: Manifest, unit: Unit, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    where = f"tensor {tensor.name[:80]!r} ({tensor.role} of {unit.name})"
    if tensor.shape != shape:
        raise CorruptModelFile(f"{where} has shape {tensor.shape}; expected {shape}")
    formats = tuple(BLOCK_FORMATS) if len(shape) == 2 else VECTOR_FORMATS
    if tensor.block_format not in formats:
        raise CorruptModelFile(f"{where} is stored as {tensor.block_format[:40]!r}; expected one of {', '.join(formats)}")
    size_bytes = tensor_size_bytes(tensor.block_format, shape)
    if tensor.size_bytes != size_bytes:
        raise CorruptModelFile(f"{where} has {tensor.size_bytes} bytes; expected {size_bytes}")
    if not 0 <= tensor.offset <= manifest.file_size_bytes - size_bytes:
        raise CorruptModelFile(f"{where} has offset {tensor.offset}; expected it to end within {manifest.file_size_bytes} bytes")


def tensor_size_bytes(block_format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; CorruptModelFile if its rows are not whole blocks."""
    _, block_size, block_bytes = BLOCK_FORMATS[block_format]
    if shape[-1] % block_size:
        raise CorruptModelFile(f"a {block_format} tensor has rows of {shape[-1]} elements; expected a multiple of {block_size}")
    rows = shape[0] if len(shape) == 2 else 1
    return rows * (shape[-1] // block_size) * block_bytes


def _spec_fields(spec: ModelSpec) -> dict[str, object]:
    return {field: getattr(spec, field) for field in ModelSpec.__slots__}


def _unit_fields(unit: Unit) -> dict[str, object]:
    tensors = [{field: getattr(tensor, field) for field in TensorInfo.__slots__} for tensor in unit.tensors]
    return {"index": unit.index, "name": unit.name, "tensors": tensors, "size_bytes": unit.size_bytes, "digest": unit.digest}


def _load_json(text: str | bytes) -> object:
    if len(text) > MAX_MANIFEST_CHARACTERS:
        raise CorruptModelFile(f"the manifest has {len(text)} characters; expected at most {MAX_MANIFEST_CHARACTERS}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptModelFile(f"the manifest is not JSON: {str(error)[:120]}") from error


def _fields(value: object, thing: str, names: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.keys() != set(names):
        found = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
        raise CorruptModelFile(f"{thing} has the fields {found[:200]}; expected {', '.join(names)}")
    return value


def _list(value: object, thing: str) -> list[Any]:
    if not isinstance(value, list):
        raise CorruptModelFile(f"{thing} is a {type(value).__name__}; expected a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise CorruptModelFile(f"the manifest has {str(value)[:60]!r}; expected a string")
    return value


def _integer(value: object, thing: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_FILE_BYTES:
        raise CorruptModelFile(f"{thing} is {str(value)[:60]}; expected an integer from 0 to {MAX_FILE_BYTES}")
    return value


def _parse_unit(value: object) -> Unit:
    fields = _fields(value, "a unit", Unit.__slots__)
    tensors = tuple(_parse_tensor(tensor) for tensor in _list(fields["tensors"], "tensors"))
    size_bytes = _integer(fields["size_bytes"], "size_bytes")
    return Unit(_integer(fields["index"], "index"), _text(fields["name"]), tensors, size_bytes, _text(fields["digest"]))


def _parse_tensor(value: object) -> TensorInfo:
    fields = _fields(value, "a tensor", TensorInfo.__slots__)
    shape = tuple(_integer(length, "a dimension") for length in _list(fields["shape"], "shape"))
    offset, size_bytes = _integer(fields["offset"], "offset"), _integer(fields["size_bytes"], "size_bytes")
    return TensorInfo(_text(fields["name"]), _text(fields["role"]), _text(fields["block_format"]), shape, offset, size_bytes)


def _parse_spec(value: object) -> ModelSpec:
    fields = dict(_fields(value, "the spec", ModelSpec.__slots__))
    if fields["rope_freq_factors"] is not None:
        fields["rope_freq_factors"] = tuple(_list(fields["rope_freq_factors"], "rope_freq_factors"))
    return ModelSpec(**fields)
