"""What a part of a model takes in the memory of a machine.

The coordinator plans with these sums and a shard counts with them before it loads: that is why what was planned can be loaded. Whatever a
part needs, of weights, of KV cache and of scratch, it needs no more together with fewer other parts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dairllm.model_files.attention import LatentAttention, LinearAttention, SelfAttention, cache_row_bytes
from dairllm.model_files.block_formats import BLOCK_FORMATS
from dairllm.model_files.feed_forward import ExpertFeedForward
from dairllm.model_files.manifest import TensorInfo, Unit
from dairllm.model_files.spec import ModelSpec

HEAD_ROWS = 32
"""So many rows go through the output projection at once."""
TILE_ROWS = 16
"""Matrices lie in memory in whole tiles of so many rows."""

MIB = 1024**2
_SMALLEST_RESERVE_BYTES = 100 * MIB
_LARGEST_RESERVE_BYTES = 256 * MIB
_LARGEST_RECORDS_BYTES = 512 * MIB
_PROCESS_BYTES = 72 * MIB
"""Measured before anything is loaded: 70 MiB, half of it pages of libraries."""

STATES_PER_PLACE = 2
"""Of each running sequence a layer keeps the state that it goes on from, and the one before."""
_SHORT_SEQUENCE = 2048
_PLACES_PER_CONTEXT = 8

STREAMED_FEATURE = "weights:streamed"
"""What a shard says that can do so."""
EXPERTS_FEATURE = "weights:experts"
"""The same of the experts of layers."""
STREAM_SLOTS = 3
"""Of the units that are streamed, so many have their matrices in memory: one is computed with, the others are read."""
STREAM_HEAD_PARTS = 32
"""The head comes in parts, which are at least so small a share of it that they need no larger slots than that."""
STREAM_READERS = 2
"""Threads that read them."""
STREAM_PIECE_BYTES = 4 * MIB
"""So much is read at a time, to be packed."""
STREAM_PAGE_BYTES = 4096
"""Reads past the page cache begin and end at such multiples."""

_NUMBER_BYTES = 4
_SAMPLER_ROWS = 24
"""What sampling takes beside the logits, in rows of them: copies, weights and sums in double precision of the row that is sampled."""
_QUERIES_AT_ONCE = 24
_LATENT_ROWS = 64
_LINE_BYTES = 64
_TOGETHER = (("q", "k", "v"), ("q", "q_a", "kv_a"), ("qkv", "output_gate", "alpha", "beta"), ("gate", "up"), ("router", "shared_router"))
"""Roles of matrices with one input."""
_ATTENTION_ROLES = ("q", "k", "v", "q_a", "q_b", "kv_a", "qkv", "output_gate", "alpha", "beta")
_SCORES_MULTIPLE = 16
_QUANTISED_BLOCK, _QUANTISED_BLOCK_BYTES = 32, 40
_ROW_FACTS_BYTES = 6 * 4
_ALIGNMENT_BYTES = 40 * 64
_PAIR_FACTS_BYTES = 5 * 4
_EXPERT_GROUP_BYTES = 768
"""What is noted of each expert that has rows, and what its parts are rounded up by."""
_EXPERT_WANTED_BYTES = 8
"""What is noted of each expert that comes into memory when it is chosen."""
_EXPERT_ITEMS_BYTES = 32 * 1024
"""The parts in which work is shared out over the most threads that there may be."""
_TABLES = frozenset({"token_embedding", "per_layer_embedding"})
"""Matrices that nothing is multiplied with."""
_PER_LAYER_ROLES = ("per_layer_projection", "per_layer_gate")
_ROWS_OUTSIDE = 3
"""What a frame's rows take outside the kernels: as they came, as numbers, as they go."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """What is taken while a frame is computed: by embedding and layers, for each thread beside, and by the head."""

    body_bytes: int = 0
    thread_bytes: int = 0
    head_bytes: int = 0

    def size_bytes(self, *, has_body: bool, has_head: bool, num_threads: int) -> int:
        """Of a run of units. has_body: it has the embedding or a layer."""
        return has_body * (self.body_bytes + num_threads * self.thread_bytes) + has_head * self.head_bytes


NO_SCRATCH = Scratch()


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a shard keeps of its memory for something else than weights and KV cache.

    size_bytes: at least. process_bytes: what the process takes of it, and the rows that it has sent; the rest is for scratch.
    """

    size_bytes: int = 0
    process_bytes: int = 0

    def with_scratch(self, scratch_bytes: int) -> int:
        """Bytes of it for a part with this scratch: more where that takes more than the rest."""
        return max(self.size_bytes, self.process_bytes + scratch_bytes)


def reserve_of(budget_bytes: int) -> Reserve:
    """Of a shard with this memory budget."""
    least_bytes = max(_SMALLEST_RESERVE_BYTES, min(budget_bytes // 16, _LARGEST_RESERVE_BYTES))
    rows_bytes = sent_rows_bytes(budget_bytes)
    return Reserve(rows_bytes + least_bytes, rows_bytes + _PROCESS_BYTES)


def sent_rows_bytes(budget_bytes: int) -> int:
    """For rows that a shard has sent, which it may have to send again."""
    return min(budget_bytes // 16, _LARGEST_RECORDS_BYTES)


def weights_bytes(units: Iterable[Unit]) -> int:
    """Of all units in one memory; a tensor that two of them have counts once."""
    by_place = {tensor.place: _packed_bytes(tensor) for unit in units for tensor in unit.tensors}
    return sum(by_place.values())


class StreamedSize(NamedTuple):
    """What a unit takes in memory that is read anew for every step.

    slot_bytes: of its matrices, while they are there; of the head's, of the smallest part. numbers_bytes: of the rest, which stays.
    reading_bytes: of a thread that reads it. most_slots: that it can make use of, where it comes in parts.
    """

    slot_bytes: int
    numbers_bytes: int
    reading_bytes: int
    most_slots: int = 1


def streamed_size_of(unit: Unit, max_rows: int) -> StreamedSize | None:
    """Of a layer, of the head, which comes in parts, or the embedding, of which the rows of a frame are read; None if it can't be."""
    if unit.index == 0:
        return _rows_size_of(unit, max_rows)
    output = output_of(unit)
    matrices = [tensor for tensor in unit.tensors if not tensor.is_numbers]
    numbers_bytes = sum(_packed_bytes(tensor) for tensor in unit.tensors if tensor.is_numbers)
    reading_bytes = max(map(_reading_bytes, matrices), default=0)
    if output is None:
        return StreamedSize(slot_layout(unit)[1], numbers_bytes, reading_bytes)
    num_tiles = _tiles(output)
    slot_bytes = _multiple(-(-num_tiles // STREAM_HEAD_PARTS) * _tile_bytes(output), _LINE_BYTES)
    return None if output.transforms else StreamedSize(slot_bytes, numbers_bytes, reading_bytes, min(num_tiles, STREAM_SLOTS))


def output_of(unit: Unit) -> TensorInfo | None:
    """The head's matrix; None for another unit."""
    return next((tensor for tensor in unit.tensors if tensor.role == "output"), None)


def output_parts(output: TensorInfo, slot_bytes: int, num_others: int) -> list[range]:
    """The rows of each part of the head's matrix, in whole tiles, for slots of this size that so many other units come to, too.

    As few as have room in a slot, but enough for all slots; and so many that all units come to the slots evenly, round after round.
    """
    num_tiles = _tiles(output)
    count = max(-(-num_tiles // (slot_bytes // _tile_bytes(output))), min(num_tiles, STREAM_SLOTS))
    while (count + num_others) % STREAM_SLOTS and count < num_tiles:
        count += 1
    begins = [TILE_ROWS * (number * num_tiles // count) for number in range(count)]
    return [range(begin, end) for begin, end in zip(begins, [*begins[1:], output.shape[0]], strict=True)]


def _tiles(matrix: TensorInfo) -> int:
    return -(-matrix.shape[-2] // TILE_ROWS)


def _tile_bytes(matrix: TensorInfo) -> int:
    return TILE_ROWS * matrix.packed_row_bytes


def _rows_size_of(unit: Unit, max_rows: int) -> StreamedSize | None:
    """As they are read and as they are packed."""
    tensor, *others = unit.tensors
    if others or tensor.transforms:
        return None
    rows = table_rows(max_rows)
    numbers_bytes = 3 * _NUMBER_BYTES * rows * tensor.shape[-1] if tensor.quantized_to else 0
    return StreamedSize(
        0, rows * (tensor.packed_row_bytes + tensor.row_bytes) + numbers_bytes + tensor.row_bytes + 2 * STREAM_PAGE_BYTES, 0
    )


def table_rows(max_rows: int) -> int:
    """For which an embedding has room whose rows are read as they are needed."""
    return _multiple(max_rows, TILE_ROWS)


def slot_layout(unit: Unit) -> tuple[dict[str, int], int]:
    """Where each matrix of a streamed unit lies in its slot, by role, and how large the slot is."""
    offsets, size_bytes = dict[str, int](), 0
    for tensor in unit.tensors:
        if not tensor.is_numbers:
            offsets[tensor.role] = size_bytes
            size_bytes += _multiple(_packed_bytes(tensor), _LINE_BYTES)
    return offsets, size_bytes


def stream_piece_bytes(tensor: TensorInfo) -> int:
    """How much of a matrix is read at a time: whole tiles, or all of it if its values are moved before they are packed."""
    stored_bytes = tensor.size_bytes // math.prod(tensor.shape[:-2])
    if tensor.transforms:
        return stored_bytes
    tile_bytes = TILE_ROWS * tensor.row_bytes
    return min(stored_bytes, max(tile_bytes, STREAM_PIECE_BYTES // tile_bytes * tile_bytes))


def _reading_bytes(tensor: TensorInfo) -> int:
    """The bytes as they are read, and what is made of them on the way: moved values, numbers to be quantised."""
    piece_bytes = stream_piece_bytes(tensor)
    copies = 1 + 2 * bool(tensor.transforms)
    numbers = piece_bytes // tensor.row_bytes * tensor.shape[-1] if tensor.quantized_to else 0
    return copies * piece_bytes + 3 * _NUMBER_BYTES * numbers + 2 * STREAM_PAGE_BYTES


def streamed_bytes(sizes: Sequence[StreamedSize]) -> int:
    """For all units in one memory that are streamed."""
    if not sizes:
        return 0
    reading_bytes = STREAM_READERS * max(size.reading_bytes for size in sizes)
    return slots_bytes(sizes) + sum(size.numbers_bytes for size in sizes) + reading_bytes


def slots_bytes(sizes: Iterable[StreamedSize]) -> int:
    """Of them, where matrices are read to."""
    in_slots = [size for size in sizes if size.slot_bytes]
    return num_slots(in_slots) * max((size.slot_bytes for size in in_slots), default=0)


def num_slots(in_slots: Iterable[StreamedSize]) -> int:
    return min(sum(size.most_slots for size in in_slots), STREAM_SLOTS)


class ExpertsSize(NamedTuple):
    """What a layer takes in memory whose experts come there when they are chosen.

    place_bytes: of one of them. others_bytes: of all else of the layer, which stays. reading_bytes: of a thread that reads experts.
    """

    num_experts: int
    num_used: int
    place_bytes: int
    others_bytes: int
    reading_bytes: int


def experts_size_of(unit: Unit, num_used: int) -> ExpertsSize | None:
    """None for a unit without experts. num_used: of them, by a row."""
    stacks = [tensor for tensor in unit.tensors if tensor.is_expert_stack]
    if not stacks:
        return None
    others_bytes = sum(_packed_bytes(tensor) for tensor in unit.tensors if not tensor.is_expert_stack)
    return ExpertsSize(stacks[0].shape[0], num_used, expert_layout(unit)[1], others_bytes, max(map(_reading_bytes, stacks)))


def expert_layout(unit: Unit) -> tuple[dict[str, int], int]:
    """Where each matrix of an expert lies in its place, by role, and how large the place is."""
    offsets, size_bytes = dict[str, int](), 0
    for tensor in unit.tensors:
        if tensor.is_expert_stack:
            offsets[tensor.role] = size_bytes
            size_bytes += _multiple(_packed_bytes(tensor) // tensor.shape[0], _LINE_BYTES)
    return offsets, size_bytes


@dataclass(frozen=True, slots=True)
class ExpertsInMemory:
    """So many places for the experts of some layers. With fewer than one row chooses, in all layers together, those that were used last are
    always gone before they come round: then the first experts that come to most of the places stay there, and the others share the rest.
    """

    sizes: Sequence[ExpertsSize]
    num_places: int

    @property
    def least_places(self) -> int:
        """With fewer a row cannot be computed."""
        return max(size.num_used for size in self.sizes)

    @property
    def num_touched(self) -> int:
        """By a row."""
        return sum(size.num_used for size in self.sizes)

    @property
    def num_pinned(self) -> int:
        """Places whose expert stays; 0 if the one that was not used for the longest time makes room."""
        return max(0, self.num_places - self.least_places) if self.is_below_cliff else 0

    @property
    def is_below_cliff(self) -> bool:
        return self.num_places < self.num_touched

    @property
    def expected_hits(self) -> float:
        """Of the chosen experts, how many are there, if each is as likely as the others."""
        total = sum(size.num_experts for size in self.sizes)
        return min(1.0, (self.num_pinned if self.is_below_cliff else self.num_places) / total)

    @property
    def place_bytes(self) -> int:
        return max(size.place_bytes for size in self.sizes)

    @property
    def size_bytes(self) -> int:
        """Of the layers, with what reads them."""
        if not self.sizes:
            return 0
        reading_bytes = STREAM_READERS * max(size.reading_bytes for size in self.sizes)
        return self.num_places * self.place_bytes + sum(size.others_bytes for size in self.sizes) + reading_bytes


def _packed_bytes(tensor: TensorInfo) -> int:
    """Numbers take four bytes each. Each matrix of a stack lies in whole tiles."""
    if tensor.is_numbers:
        return _NUMBER_BYTES * math.prod(tensor.shape)
    return math.prod(tensor.shape[:-2]) * _tiles(tensor) * _tile_bytes(tensor)


def cache_bytes_per_token(spec: ModelSpec, unit: int, element_type: str, context_length: int) -> int:
    """What the KV cache of a unit takes for a token; element_type: of keys and values. Values lie in whole groups of 16.

    A layer that carries a state along takes its share of a place (`tokens_per_place`).
    """
    layer = spec.layer_of(unit)
    if layer is not None and isinstance(layer.attention, LinearAttention):
        place_bytes = STATES_PER_PLACE * _NUMBER_BYTES * state_numbers(layer.attention)
        return -(-place_bytes // _tokens_per_place(context_length))
    if layer is not None and isinstance(layer.attention, SelfAttention):
        attention = layer.attention
        value_bytes = cache_row_bytes(element_type, _multiple(attention.value_dim, _SCORES_MULTIPLE))
        return attention.num_kv_heads * (cache_row_bytes(element_type, attention.key_dim) + value_bytes)
    return spec.state_bytes_per_token(unit, element_type)


def state_numbers(attention: LinearAttention) -> int:
    """Of one state as the kernels keep it (c/linear.h): columns and what the convolution needs lie in whole groups of 16."""
    channels = 2 * attention.num_key_heads * attention.key_dim + attention.num_value_heads * attention.value_dim
    columns = attention.num_value_heads * attention.key_dim * _multiple(attention.value_dim, _SCORES_MULTIPLE)
    return _multiple((attention.conv_width - 1) * channels, _SCORES_MULTIPLE) + columns


def tokens_per_place(spec: ModelSpec, context_length: int) -> int | None:
    """Of the cache, so many tokens go with each sequence that may run at once; None: as many run as it has room for."""
    has_states = any(isinstance(layer.attention, LinearAttention) for layer in spec.layers)
    return _tokens_per_place(context_length) if has_states else None


def _tokens_per_place(context_length: int) -> int:
    """A sequence whose layers carry a state along counts as so many tokens of the cache, however short it is: states do not grow."""
    return max(min(_SHORT_SEQUENCE, context_length), -(-context_length // _PLACES_PER_CONTEXT))


def scratch_of(spec: ModelSpec, units: Sequence[Unit], *, max_rows: int, context_length: int) -> Scratch:
    """Of these units or any run of them, for frames of at most max_rows. No less than the kernels take (c/stage.c)."""
    heads = [unit for unit in units if unit.index == spec.head_index]
    body = [unit for unit in units if unit.index != spec.head_index]
    residual = 2 * spec.hidden_size + spec.carried_width
    widest_bytes = max((_block_bytes(spec, unit, max_rows) for unit in body), default=0)
    numbers = residual + _ROWS_OUTSIDE * spec.row_width + _rope_numbers(spec)
    body_bytes = max_rows * (_NUMBER_BYTES * numbers + _activation_bytes(body) + _ROW_FACTS_BYTES) + widest_bytes + _ALIGNMENT_BYTES
    scores = _QUERIES_AT_ONCE * _multiple(context_length, _SCORES_MULTIPLE)
    head_row_bytes = _NUMBER_BYTES * (residual + spec.vocab_size) + _activation_bytes(heads) + _ROW_FACTS_BYTES
    head_bytes = HEAD_ROWS * head_row_bytes + _SAMPLER_ROWS * _NUMBER_BYTES * spec.vocab_size + _ALIGNMENT_BYTES
    return Scratch(body_bytes, _NUMBER_BYTES * scores, head_bytes)


def _block_bytes(spec: ModelSpec, unit: Unit, max_rows: int) -> int:
    """Between the matrices of a layer: attention and feed-forward share their memory."""
    layer = spec.layer_of(unit.index)
    numbers_bytes = _NUMBER_BYTES * max_rows * _block_numbers(unit)
    numbers_bytes += _latent_part_bytes(spec, unit, max_rows)
    if layer is None or not isinstance(layer.feed_forward, ExpertFeedForward):
        return numbers_bytes
    return max(numbers_bytes, expert_scratch_bytes(layer.feed_forward, unit.tensors, max_rows))


def expert_scratch_bytes(experts: ExpertFeedForward, tensors: Sequence[TensorInfo], max_rows: int) -> int:
    """Of a block of experts (c/experts.c). A pair is a row and an expert that it passes.

    Inputs and products of each pair and of the shared expert, and what routing notes of rows and pairs.
    """
    by_role = {tensor.role: tensor for tensor in tensors}
    hidden_size = by_role["router"].shape[-1]
    pairs = max_rows * experts.num_experts_used
    pair_bytes = _pair_bytes(by_role, "expert", experts.intermediate_size) + _PAIR_FACTS_BYTES
    shared_bytes = _pair_bytes(by_role, "shared", experts.shared_intermediate_size) if experts.shared_intermediate_size else 0
    row_numbers = 2 * hidden_size + 2 * experts.num_experts + 2 * experts.router.num_groups + 1
    groups_bytes = (min(pairs, experts.num_experts) + 1) * _EXPERT_GROUP_BYTES
    row_bytes = shared_bytes + _PAIR_FACTS_BYTES + _NUMBER_BYTES * row_numbers
    return pairs * pair_bytes + max_rows * row_bytes + groups_bytes + _EXPERT_ITEMS_BYTES + experts.num_experts * _EXPERT_WANTED_BYTES


def _pair_bytes(by_role: Mapping[str, TensorInfo], prefix: str, intermediate_size: int) -> int:
    first = {by_role[f"{prefix}_{name}"].packed_format: by_role[f"{prefix}_{name}"] for name in ("gate", "up")}
    first_bytes = sum(_activation_row_bytes(tensor) for tensor in first.values())
    return max(first_bytes, _activation_row_bytes(by_role[f"{prefix}_down"])) + 2 * _NUMBER_BYTES * intermediate_size


def _latent_part_bytes(spec: ModelSpec, unit: Unit, max_rows: int) -> int:
    """Of the rows that go through the latents' space together, for every head (c/latent_attention.c)."""
    layer = spec.layer_of(unit.index)
    if layer is None or not isinstance(layer.attention, LatentAttention):
        return 0
    attention, rows = layer.attention, min(max_rows, _LATENT_ROWS)
    into_bytes = max(_activation_row_bytes(tensor) for tensor in unit.tensors if tensor.role in ("k_b", "v_b"))
    numbers = 2 * attention.kv_rank + attention.rope.dim
    return attention.num_heads * (rows * (_NUMBER_BYTES * numbers + into_bytes) + _LINE_BYTES)


def _block_numbers(unit: Unit) -> int:
    """The same without experts, in numbers of a row."""
    outputs = {tensor.role: tensor.shape[-2] for tensor in unit.tensors if len(tensor.shape) > 1}
    attended = sum(tensor.shape[-1] for tensor in unit.tensors if tensor.role == "attention_output")
    attention = sum(outputs.get(role, 0) for role in _ATTENTION_ROLES) + attended
    return max(attention, outputs.get("gate", 0) + outputs.get("up", 0), *(outputs.get(role, 0) for role in _PER_LAYER_ROLES))


def _rope_numbers(spec: ModelSpec) -> int:
    """Cosines and sines of a row: once for all layers with the same angles."""
    attentions = (layer.attention for layer in spec.layers)
    ropes = {attention.rope for attention in attentions if isinstance(attention, SelfAttention | LatentAttention)}
    angles = {(rope.theta, rope.dim, rope.freq_factors, rope.magnitude) for rope in ropes if rope is not None}
    return sum(dim for _, dim, _, _ in angles)


def _activation_bytes(units: Iterable[Unit]) -> int:
    """Of a row as the matrices take it: once for each format of matrices with one input."""
    matrices = [[tensor for tensor in unit.tensors if tensor.is_matrix and tensor.role not in _TABLES] for unit in units]
    most = max((_activation_row_bytes(tensor) for unit in matrices for tensor in unit), default=0)
    return most * max((_formats_at_once({tensor.role: tensor.packed_format for tensor in unit}) for unit in matrices), default=0)


def _formats_at_once(formats: dict[str, str]) -> int:
    groups = ({formats.get(role) for role in roles} - {None} for roles in _TOGETHER)
    return max(1, *(len(group) for group in groups))


def _activation_row_bytes(tensor: TensorInfo) -> int:
    inputs = tensor.shape[-1]
    if BLOCK_FORMATS[tensor.packed_format].block_size == 1:
        return _NUMBER_BYTES * inputs
    return -(-inputs // _QUANTISED_BLOCK) * _QUANTISED_BLOCK_BYTES


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
