"""The shard's part of a plan, as facts that were checked where they came in."""

import math
from dataclasses import dataclass, field

from dairllm.kernels_pyx import BLOCK_FORMATS
from dairllm.mesh.cache_types import cache_type_name
from dairllm.mesh.encodings import encoding_name
from dairllm.mesh.errors import InvalidModel, Unsupported
from dairllm.mesh.peers import Peer
from dairllm.v1 import cluster_pb2, model_pb2

ARCHITECTURES = ("llama",)

_MATRIX_ROLES = frozenset({"token_embedding", "q", "k", "v", "attention_output", "gate", "up", "down", "output"})
_OPTIONAL_VECTOR_ROLES = frozenset({"q_bias", "k_bias", "v_bias", "attention_output_bias"})
_EMBEDDING_ROLES = frozenset({"token_embedding"})
_HEAD_ROLES = frozenset({"output_norm", "output"})
_LAYER_ROLES = frozenset({"attention_norm", "q", "k", "v", "attention_output", "ffn_norm", "gate", "up", "down"})


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """shape: [outputs, inputs] of a matrix, [n] of a vector. offset_bytes: in the model file."""

    name: str
    role: str
    block_format: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int

    @property
    def is_matrix(self) -> bool:
        return self.role in _MATRIX_ROLES


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """digest: SHA-256 over the bytes of the tensors in their order."""

    index: int
    tensors: tuple[TensorFacts, ...]
    size_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The hyper-parameters of `ModelSpec` in model.proto."""

    architecture: str
    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_dim: int
    rope_interleaved: bool
    rope_freq_factors: tuple[float, ...]
    attention_scale: float


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    num_blocks: int
    block_tokens: int
    context_length: int
    max_batch_rows: int
    element_type: str = "F16"


@dataclass(frozen=True, slots=True)
class AssignmentFacts:
    """units: contiguous, ascending, at least one; unit 0 is the embedding, unit num_layers + 1 the head. wire: name of the encoding that
    rounds between any two units. exclusive, weight_sources: as in cluster.proto.
    """

    epoch: int
    model_digest: bytes
    model: ModelFacts
    units: tuple[UnitFacts, ...]
    model_path: str
    model_file_size_bytes: int
    next: Peer
    geometry: CacheGeometry
    wire: str
    exclusive: bool = False
    ring_key: bytes = field(default=b"", repr=False)
    weight_sources: tuple[Peer, ...] = ()
    kv_key: bytes = field(default=b"", repr=False)

    @property
    def span(self) -> range:
        return range(self.units[0].index, self.units[-1].index + 1)

    @property
    def layers(self) -> range:
        """Indices of its layers, from 0."""
        return range(max(self.span.start - 1, 0), min(self.span.stop - 1, self.model.num_layers))

    @property
    def layer_units(self) -> range:
        """Its units that are layers."""
        return range(self.layers.start + 1, self.layers.stop + 1)

    @property
    def has_embedding(self) -> bool:
        return self.span.start == 0

    @property
    def has_head(self) -> bool:
        return self.span.stop == self.model.num_layers + 2

    @property
    def outgoing_boundary(self) -> int:
        return self.span.stop

    @property
    def kv_cache_bytes(self) -> int:
        """Keys and values of every layer, by the geometry."""
        element_bytes = BLOCK_FORMATS[self.geometry.element_type].block_bytes
        per_token = 2 * element_bytes * self.model.num_kv_heads * self.model.head_dim
        return len(self.layers) * self.geometry.num_blocks * self.geometry.block_tokens * per_token


def assignment_from_proto(message: cluster_pb2.Assignment) -> AssignmentFacts:
    """Raises Unsupported for an unknown architecture or element type, InvalidModel for a part that contradicts itself."""
    model = _model_from_proto(message.spec)
    units = tuple(_unit_from_proto(unit) for unit in message.units)
    _require_span(units, model)
    for unit in units:
        _require_unit(unit, model)
    geometry = _geometry_from_proto(message)
    if min(geometry.num_blocks, geometry.block_tokens, geometry.context_length, geometry.max_batch_rows) < 1:
        raise InvalidModel(f"the assignment has the cache geometry {geometry}; expected numbers over 0")
    return AssignmentFacts(
        epoch=message.epoch,
        model_digest=message.model_digest,
        model=model,
        units=units,
        model_path=message.model_path,
        model_file_size_bytes=message.model_file_size_bytes,
        next=Peer(message.next.name, tuple(message.next.addresses)),
        geometry=geometry,
        wire=encoding_name(message.wire),
        exclusive=message.exclusive,
        ring_key=message.ring_key,
        weight_sources=tuple(Peer(peer.name, tuple(peer.addresses)) for peer in message.weight_sources),
        kv_key=message.kv_key,
    )


def _geometry_from_proto(message: cluster_pb2.Assignment) -> CacheGeometry:
    return CacheGeometry(
        num_blocks=message.num_kv_blocks,
        block_tokens=message.kv_block_tokens,
        context_length=message.context_length,
        max_batch_rows=message.max_batch_rows,
        element_type=cache_type_name(message.kv_cache_type),
    )


def _model_from_proto(spec: model_pb2.ModelSpec) -> ModelFacts:
    if spec.architecture not in ARCHITECTURES:
        raise Unsupported(f"architecture {spec.architecture!r} is not supported; this shard runs {', '.join(ARCHITECTURES)}")
    names = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta")
    for name in names:
        if not getattr(spec, name) > 0:
            raise InvalidModel(f"{name} of the model is {getattr(spec, name)}; expected more than 0")
    if spec.num_heads % spec.num_kv_heads:
        raise InvalidModel(f"the model has {spec.num_heads} heads for {spec.num_kv_heads} KV heads; expected a multiple")
    if spec.rope_freq_factors and len(spec.rope_freq_factors) != spec.rope_dim // 2:
        raise InvalidModel(f"the model has {len(spec.rope_freq_factors)} rope factors; expected {spec.rope_dim // 2} or none")
    return ModelFacts(
        architecture=spec.architecture,
        name=spec.name,
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        rms_norm_eps=spec.rms_norm_eps,
        rope_theta=spec.rope_theta,
        rope_dim=spec.rope_dim or spec.head_dim,
        rope_interleaved=spec.rope_interleaved,
        rope_freq_factors=tuple(spec.rope_freq_factors),
        attention_scale=spec.attention_scale or 1.0 / math.sqrt(spec.head_dim),
    )


def _unit_from_proto(unit: model_pb2.Unit) -> UnitFacts:
    tensors = tuple(
        TensorFacts(info.name, info.role, info.block_format, tuple(info.shape), info.offset_bytes, info.size_bytes) for info in unit.tensors
    )
    return UnitFacts(unit.index, tensors, unit.size_bytes, unit.digest)


def _require_span(units: tuple[UnitFacts, ...], model: ModelFacts) -> None:
    indices = [unit.index for unit in units]
    if not indices or indices != list(range(indices[0], indices[0] + len(indices))) or indices[-1] > model.num_layers + 1:
        raise InvalidModel(f"the assignment has the units {indices}; expected a contiguous run within 0 to {model.num_layers + 1}")


def _require_unit(unit: UnitFacts, model: ModelFacts) -> None:
    roles = [tensor.role for tensor in unit.tensors]
    needed, optional = _roles_of(unit.index, model)
    if len(set(roles)) != len(roles) or not needed <= set(roles) <= needed | optional:
        raise InvalidModel(f"unit {unit.index} has tensors for {sorted(roles)}; expected {sorted(needed)}")
    if len(unit.digest) != 32:
        raise InvalidModel(f"the digest of unit {unit.index} has {len(unit.digest)} bytes; expected the 32 of SHA-256")
    if unit.size_bytes != sum(tensor.size_bytes for tensor in unit.tensors):
        raise InvalidModel(f"unit {unit.index} has {unit.size_bytes} bytes; expected the sum of its tensors")
    for tensor in unit.tensors:
        _require_tensor(tensor)


def _roles_of(index: int, model: ModelFacts) -> tuple[frozenset[str], frozenset[str]]:
    if index == 0:
        return _EMBEDDING_ROLES, frozenset()
    if index == model.num_layers + 1:
        return _HEAD_ROLES, frozenset()
    return _LAYER_ROLES, _OPTIONAL_VECTOR_ROLES


def _require_tensor(tensor: TensorFacts) -> None:
    if tensor.block_format not in BLOCK_FORMATS:
        raise Unsupported(f"tensor {tensor.name} has element type {tensor.block_format}; this shard computes {', '.join(BLOCK_FORMATS)}")
    if len(tensor.shape) != (2 if tensor.is_matrix else 1) or min(tensor.shape) < 1:
        raise InvalidModel(f"tensor {tensor.name} for {tensor.role} has shape {list(tensor.shape)}")
    if tensor.shape[-1] % BLOCK_FORMATS[tensor.block_format].block_size:
        raise InvalidModel(f"tensor {tensor.name} has {tensor.shape[-1]} columns, not a multiple of a {tensor.block_format} block")
    expected = math.prod(tensor.shape[:-1]) * row_bytes(tensor)
    if tensor.size_bytes != expected:
        raise InvalidModel(f"tensor {tensor.name} has {tensor.size_bytes} bytes; its shape and type need {expected}")


def row_bytes(tensor: TensorFacts) -> int:
    """Bytes of one row of a matrix, or of a whole vector."""
    block = BLOCK_FORMATS[tensor.block_format]
    return tensor.shape[-1] // block.block_size * block.block_bytes
