"""The shard's part of a plan, as facts that were checked where they came in."""

from dataclasses import dataclass, field

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.mesh.cache_types import cache_type_name
from dairllm.mesh.encodings import encoding_name
from dairllm.mesh.errors import InvalidModel, Unsupported
from dairllm.mesh.peers import Peer
from dairllm.model_files.codec import file_from_proto, spec_from_proto, unit_from_proto
from dairllm.model_files.errors import ModelFileError, UnsupportedModel
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.manifest import ModelFile, Unit, validate_units
from dairllm.model_files.memory import (
    ExpertsInMemory,
    StreamedSize,
    cache_bytes_per_token,
    experts_size_of,
    streamed_size_of,
    tokens_per_place,
)
from dairllm.model_files.spec import ModelSpec, require_features
from dairllm.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    num_blocks: int
    block_tokens: int
    context_length: int
    max_batch_rows: int
    element_type: str = "F16"

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_tokens


@dataclass(frozen=True, slots=True)
class AssignmentFacts:
    """units: contiguous, ascending, at least one. model_folder: where the files lie on the coordinator. wire: name of the encoding that
    rounds between any two units. streamed: indexes of units whose matrices are read anew for every frame. expert_places: so many experts of
    the other layers are in memory at a time; 0: all. exclusive, weight_sources, model_urls: as in cluster.proto.
    """

    epoch: int
    model_digest: bytes
    model: ModelSpec
    units: tuple[Unit, ...]
    model_folder: str
    files: tuple[ModelFile, ...]
    next: Peer
    geometry: CacheGeometry
    wire: str
    exclusive: bool = False
    ring_key: bytes = field(default=b"", repr=False)
    weight_sources: tuple[Peer, ...] = ()
    kv_key: bytes = field(default=b"", repr=False)
    model_urls: tuple[str, ...] = ()
    streamed: frozenset[int] = frozenset()
    expert_places: int = 0

    @property
    def span(self) -> range:
        return range(self.units[0].index, self.units[-1].index + 1)

    @property
    def resident_units(self) -> tuple[Unit, ...]:
        """Those whose weights stay in memory."""
        others = self.streamed | self.experts_used.keys()
        return tuple(unit for unit in self.units if unit.index not in others)

    @property
    def experts_used(self) -> dict[int, int]:
        """By unit, how many experts a row chooses, of layers whose experts come into memory then."""
        if not self.expert_places:
            return {}
        parts = {unit: self.model.layers[unit - 1].feed_forward for unit in self.layer_units if unit not in self.streamed}
        return {unit: part.num_experts_used for unit, part in parts.items() if isinstance(part, ExpertFeedForward)}

    @property
    def expert_units(self) -> tuple[Unit, ...]:
        return tuple(unit for unit in self.units if unit.index in self.experts_used)

    @property
    def experts_in_memory(self) -> ExpertsInMemory:
        used = self.experts_used
        sizes = [size for unit in self.expert_units if (size := experts_size_of(unit, used[unit.index])) is not None]
        return ExpertsInMemory(sizes, self.expert_places)

    @property
    def streamed_units(self) -> tuple[Unit, ...]:
        """Those that are read in their order."""
        return tuple(unit for unit in self.units if unit.index in self.streamed and unit.index > 0)

    @property
    def has_embedding_rows(self) -> bool:
        """Of the embedding only those rows are read that a frame needs."""
        return 0 in self.streamed

    @property
    def streamed_sizes(self) -> list[StreamedSize]:
        sizes = (streamed_size_of(unit, self.geometry.max_batch_rows) for unit in self.units if unit.index in self.streamed)
        return [size for size in sizes if size is not None]

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
    def has_body(self) -> bool:
        """Something in front of the head."""
        return self.has_embedding or bool(self.layers)

    @property
    def has_head(self) -> bool:
        return self.span.stop == self.model.num_units

    @property
    def outgoing_boundary(self) -> int:
        return self.span.stop

    @property
    def kv_cache_bytes(self) -> int:
        """What the units keep of all tokens for which there are blocks."""
        element_type, context_length = self.geometry.element_type, self.geometry.context_length
        per_token = sum(cache_bytes_per_token(self.model, unit, element_type, context_length) for unit in self.span)
        return self.geometry.num_tokens * per_token

    @property
    def num_places(self) -> int | None:
        """Sequences that may run at once, if that is limited by what layers keep of each, whatever its length."""
        per_place = tokens_per_place(self.model, self.geometry.context_length)
        return None if per_place is None else self.geometry.num_tokens // per_place


def assignment_from_proto(message: cluster_pb2.Assignment) -> AssignmentFacts:
    """Raises Unsupported, by name, for what these kernels can't do, InvalidModel for a part that contradicts itself."""
    try:
        model = spec_from_proto(message.spec).for_context(message.context_length)
        require_features(model, STAGE_FEATURES)
        units = tuple(unit_from_proto(unit) for unit in message.units)
        files = tuple(file_from_proto(file) for file in message.model_files)
        validate_units(model, units, files)
    except UnsupportedModel as error:
        raise Unsupported(str(error)) from error
    except ModelFileError as error:
        raise InvalidModel(f"the assignment makes no sense: {error}") from error
    assignment = AssignmentFacts(
        epoch=message.epoch,
        model_digest=message.model_digest,
        model=model,
        units=units,
        model_folder=message.model_folder,
        files=files,
        next=Peer(message.next.name, tuple(message.next.addresses)),
        geometry=_geometry_from_proto(message),
        wire=encoding_name(message.wire),
        exclusive=message.exclusive,
        ring_key=message.ring_key,
        weight_sources=tuple(Peer(peer.name, tuple(peer.addresses)) for peer in message.weight_sources),
        kv_key=message.kv_key,
        model_urls=tuple(message.model_urls) if len(message.model_urls) == len(files) else (),
        streamed=frozenset(message.streamed_units),
        expert_places=message.expert_places,
    )
    if len(assignment.streamed_sizes) < len(assignment.streamed):
        raise InvalidModel(f"units {sorted(assignment.streamed)} are to be streamed; expected some of {assignment.span} that can be")
    _require_places(assignment)
    return assignment


def _require_places(assignment: AssignmentFacts) -> None:
    experts = assignment.experts_in_memory
    if assignment.expert_places and not experts.sizes:
        raise InvalidModel(f"expert_places is {assignment.expert_places}; expected 0 for units without experts")
    if experts.sizes and experts.num_places < experts.least_places:
        raise InvalidModel(f"expert_places is {experts.num_places}; expected at least {experts.least_places}, which a row chooses")


def _geometry_from_proto(message: cluster_pb2.Assignment) -> CacheGeometry:
    geometry = CacheGeometry(
        num_blocks=message.num_kv_blocks,
        block_tokens=message.kv_block_tokens,
        context_length=message.context_length,
        max_batch_rows=message.max_batch_rows,
        element_type=cache_type_name(message.kv_cache_type),
    )
    if min(geometry.num_blocks, geometry.block_tokens, geometry.context_length, geometry.max_batch_rows) < 1:
        raise InvalidModel(f"the assignment has the cache geometry {geometry}; expected numbers over 0")
    return geometry
