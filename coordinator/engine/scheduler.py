"""Which rows are computed together, and when: continuous batching over a ring of shards. Pure: events in, actions out.

- As many micro-batches are in flight as the ring has stages, so that every stage has work. Decoding sequences are dealt evenly over
  them. A frame that holds only prompt rows may be one more: it hides the way back to the coordinator.
- A sequence is in at most one frame while it awaits a sample; the chunks of one prompt follow each other without waiting.
- A long prompt is cut into chunks, shorter ones while others decode, so that running answers keep flowing.
- Cache blocks are given out as positions are filled. When they run out, the youngest sequence is set back and starts again later: it loses
  time, never tokens (see `sequences`).
- A sequence's life on the shards is one `ring_id`; after a restart it has a new one, and results for the old are ignored.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dairllm.coordinator.engine.blocks import BlockAllocator
from dairllm.coordinator.engine.requests import GenerationEvent, GenerationFinished, GenerationRequest, PromptScored, SequenceId, TokenScore
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.mesh.sampling import SamplingParams


class SchedulerLimits(NamedTuple):
    """context_length in tokens; rows are tokens of one frame; chunk_rows_while_decoding bounds prompt rows beside running answers."""

    context_length: int
    max_batch_rows: int = 512
    chunk_rows_while_decoding: int = 128
    max_running: int = 64
    max_waiting: int = 256


@dataclass(frozen=True, slots=True)
class RingGeometry:
    """What the scheduler must know of a plan. rounding_points: unit boundary -> encoding, for sequences that begin under this plan."""

    epoch: int
    num_stages: int
    num_kv_blocks: int
    kv_block_tokens: int
    rounding_points: Mapping[int, str]


class Begin(NamedTuple):
    ring_id: int
    prompt_length: int
    sampling: SamplingParams
    rounding_points: Mapping[int, str]


class Slice(NamedTuple):
    ring_id: int
    first_position: int
    token_ids: tuple[int, ...]
    new_block_ids: tuple[int, ...]
    sample: bool
    score_targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    epoch: int
    batch_id: int
    begins: tuple[Begin, ...]
    slices: tuple[Slice, ...]
    ends: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        return sum(len(piece.token_ids) for piece in self.slices)


class SliceResult(NamedTuple):
    ring_id: int
    sampled: TokenScore | None
    scores: tuple[TokenScore, ...]


# Events


class RingOpened(NamedTuple):
    geometry: RingGeometry


class RingClosed(NamedTuple):
    """Nothing that is in flight will come back. Sequences wait for the next RingOpened."""


class GenerationRequested(NamedTuple):
    sequence_id: SequenceId
    request: GenerationRequest


class GenerationCancelled(NamedTuple):
    sequence_id: SequenceId


class BatchCompleted(NamedTuple):
    epoch: int
    batch_id: int
    results: tuple[SliceResult, ...]


SchedulerEvent = RingOpened | RingClosed | GenerationRequested | GenerationCancelled | BatchCompleted


# Actions


class SendBatch(NamedTuple):
    batch: Batch


class EmitEvent(NamedTuple):
    sequence_id: SequenceId
    event: GenerationEvent


SchedulerAction = SendBatch | EmitEvent


@dataclass(slots=True)
class _Ring:
    """All that is true only while one plan lasts."""

    geometry: RingGeometry
    blocks: BlockAllocator
    in_flight: dict[int, tuple[Slice, ...]] = field(default_factory=dict)
    pending_ends: list[int] = field(default_factory=list)
    by_ring_id: dict[int, Sequence] = field(default_factory=dict)
    next_batch_id: int = 1


class Scheduler:
    """handle() is the only way in. Callers check `is_full` and the prompt's length before GenerationRequested."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._ring: _Ring | None = None
        self._sequences: dict[SequenceId, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._next_ring_id = 1

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self.limits.max_waiting

    @property
    def kv_blocks_total(self) -> int:
        return self._ring.blocks.num_blocks if self._ring else 0

    @property
    def kv_blocks_free(self) -> int:
        return self._ring.blocks.num_free if self._ring else 0

    def handle(self, event: SchedulerEvent) -> list[SchedulerAction]:
        actions: list[SchedulerAction] = []
        match event:
            case RingOpened(geometry):
                self._set_back(list(self._running))
                self._ring = _Ring(geometry, BlockAllocator(geometry.num_kv_blocks, geometry.kv_block_tokens))
            case RingClosed():
                self._set_back(list(self._running))
                self._ring = None
            case GenerationRequested(sequence_id, request):
                actions += self._request(sequence_id, request)
            case GenerationCancelled(sequence_id):
                self._drop(sequence_id)
            case BatchCompleted():
                actions += self._complete(event)
        return actions + [SendBatch(batch) for batch in self._fill_ring()]

    def _request(self, sequence_id: SequenceId, request: GenerationRequest) -> list[SchedulerAction]:
        room = self.limits.context_length - len(request.prompt_ids)
        max_new = room if request.max_tokens is None else min(request.max_tokens, room)
        sequence = Sequence(sequence_id, request, len(request.prompt_ids) + max_new)
        actions: list[SchedulerAction] = []
        if request.score_prompt and not sequence.wants_scores:
            actions.append(EmitEvent(sequence_id, PromptScored(())))
        if not sequence.samples and not sequence.wants_scores:
            return [*actions, EmitEvent(sequence_id, GenerationFinished("length"))]
        self._sequences[sequence_id] = sequence
        self._waiting.append(sequence)
        return actions

    def _drop(self, sequence_id: SequenceId) -> None:
        sequence = self._sequences.pop(sequence_id, None)
        if sequence is None:
            return
        if sequence in self._running:
            self._running.remove(sequence)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        """Give its blocks back. Shards process frames in order, so blocks may be reused by any later frame."""
        if self._ring is not None and sequence.ring_id is not None:
            self._ring.blocks.free(sequence.block_ids)
            if self._ring.by_ring_id.pop(sequence.ring_id, None) is not None:
                self._ring.pending_ends.append(sequence.ring_id)
        sequence.restart()

    def _set_back(self, sequences: Iterable[Sequence]) -> None:
        """To the head of the queue, oldest first."""
        for sequence in sorted(sequences, key=lambda s: s.id, reverse=True):
            self._running.remove(sequence)
            self._release(sequence)
            self._waiting.appendleft(sequence)

    def _complete(self, event: BatchCompleted) -> list[SchedulerAction]:
        ring = self._ring
        if ring is None or event.epoch != ring.geometry.epoch or event.batch_id not in ring.in_flight:
            return []
        slices = {piece.ring_id: piece for piece in ring.in_flight.pop(event.batch_id)}
        actions: list[SchedulerAction] = []
        for result in event.results:
            sequence = ring.by_ring_id.get(result.ring_id)
            if sequence is not None and result.ring_id in slices:
                actions += self._accept(sequence, slices[result.ring_id], result)
        return actions

    def _accept(self, sequence: Sequence, piece: Slice, result: SliceResult) -> Iterator[EmitEvent]:
        events: list[GenerationEvent] = []
        if piece.score_targets:
            events += sequence.accept_scores(result.scores)
        if result.sampled is not None:
            events += sequence.accept_token(result.sampled)
        elif not sequence.samples:
            events += sequence.finish_without_sample()
        if any(isinstance(event, GenerationFinished) for event in events):
            self._drop(sequence.id)
        return (EmitEvent(sequence.id, event) for event in events)

    def _fill_ring(self) -> Iterator[Batch]:
        while self._ring is not None:
            batch = self._next_batch(self._ring)
            if batch is None:
                return
            yield batch

    def _next_batch(self, ring: _Ring) -> Batch | None:
        free_slots = ring.geometry.num_stages - len(ring.in_flight)
        if free_slots < 0:
            return None
        slices: list[Slice] = []
        begins: list[Begin] = []
        if free_slots > 0:
            slices += self._decode_slices(ring)
        if free_slots > 0 or not self._any_decoding():
            self._add_prompt_slices(ring, slices, begins)
        if not slices and not (ring.pending_ends and free_slots > 0):
            return None
        # A sequence can be set back to make room for one that comes after it in this very frame.
        alive = ring.by_ring_id
        kept = tuple(piece for piece in slices if piece.ring_id in alive)
        batch = Batch(
            ring.geometry.epoch, ring.next_batch_id, tuple(b for b in begins if b.ring_id in alive), kept, self._take_ends(ring, begins)
        )
        ring.next_batch_id += 1
        ring.in_flight[batch.batch_id] = kept
        return batch

    def _take_ends(self, ring: _Ring, begins: list[Begin]) -> tuple[int, ...]:
        """Ring ids to end. One that would have begun in this frame never existed for the shards."""
        unborn = {begin.ring_id for begin in begins} - ring.by_ring_id.keys()
        ends = tuple(ring_id for ring_id in ring.pending_ends if ring_id not in unborn)
        ring.pending_ends.clear()
        return ends

    def _any_decoding(self) -> bool:
        return any(sequence.is_decoding for sequence in self._running)

    def _decode_slices(self, ring: _Ring) -> list[Slice]:
        decoding = [s for s in self._running if s.is_decoding]
        ready = [s for s in decoding if not s.awaits_sample]
        share = min(-(-len(decoding) // ring.geometry.num_stages), self.limits.max_batch_rows)
        slices = []
        for sequence in ready[:share]:
            if sequence.ring_id is not None and self._reserve(ring, sequence, 1):
                slices.append(self._send_rows(ring, sequence, 1))
        return slices

    def _add_prompt_slices(self, ring: _Ring, slices: list[Slice], begins: list[Begin]) -> None:
        budget = self.limits.chunk_rows_while_decoding if self._any_decoding() else self.limits.max_batch_rows
        budget = min(budget, self.limits.max_batch_rows - sum(len(piece.token_ids) for piece in slices))
        for sequence in [s for s in self._running if not s.is_decoding and s.num_unsent > 0]:
            budget = self._add_chunk(ring, sequence, budget, slices)
        while budget > 0 and self._waiting and len(self._running) < self.limits.max_running:
            sequence = self._waiting[0]
            if ring.blocks.blocks_for(len(sequence.tokens)) > ring.blocks.num_free:
                return
            self._waiting.popleft()
            begins.append(self._begin(ring, sequence))
            budget = self._add_chunk(ring, sequence, budget, slices)

    def _begin(self, ring: _Ring, sequence: Sequence) -> Begin:
        sequence.ring_id = self._next_ring_id
        self._next_ring_id += 1
        if sequence.rounding_points is None:
            sequence.rounding_points = ring.geometry.rounding_points
        ring.by_ring_id[sequence.ring_id] = sequence
        self._running.append(sequence)
        return Begin(sequence.ring_id, sequence.prompt_length, sequence.request.sampling, sequence.rounding_points)

    def _add_chunk(self, ring: _Ring, sequence: Sequence, budget: int, slices: list[Slice]) -> int:
        rows = min(budget, sequence.num_unsent)
        if rows > 0 and sequence.ring_id is not None and self._reserve(ring, sequence, rows):
            slices.append(self._send_rows(ring, sequence, rows))
            return budget - rows
        return budget

    def _reserve(self, ring: _Ring, sequence: Sequence, rows: int) -> bool:
        """Make room in the cache for its next rows, if need be by setting back younger sequences, or itself."""
        while True:
            needed = ring.blocks.blocks_for(sequence.num_sent + rows) - len(sequence.block_ids)
            new = ring.blocks.allocate(needed)
            if new is not None:
                sequence.block_ids.extend(new)
                return True
            victim = max(self._running, key=lambda s: s.id)
            self._set_back([victim])
            if victim is sequence:
                return False

    def _send_rows(self, ring: _Ring, sequence: Sequence, rows: int) -> Slice:
        start, stop = sequence.num_sent, sequence.num_sent + rows
        first_new_block = ring.blocks.blocks_for(start)
        sequence.num_sent = stop
        sequence.awaits_sample = sequence.samples and stop == len(sequence.tokens)
        assert sequence.ring_id is not None
        return Slice(
            ring_id=sequence.ring_id,
            first_position=start,
            token_ids=tuple(sequence.tokens[start:stop]),
            new_block_ids=tuple(sequence.block_ids[first_new_block:]),
            sample=sequence.awaits_sample,
            score_targets=sequence.score_targets(start, stop) if sequence.wants_scores and start < sequence.prompt_length - 1 else (),
        )
