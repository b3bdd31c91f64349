"""Which rows are computed together, and when: continuous batching over a ring of shards. Pure: events in, actions out.

- As many micro-batches are in flight as the ring has stages, so that every stage has work. Decoding sequences are dealt evenly over
  them. A frame that holds only prompt rows may be one more: it hides the way back to the coordinator.
- A sequence has at most one slice in a frame, and is in at most one frame while it awaits a sample; the chunks of one prompt follow
  each other without waiting.
- A long prompt is cut into chunks, shorter ones while others decode, so that running answers keep flowing. Clients share the rows of
  prompts in a frame evenly. Answers do not take them all.
- Cache blocks are given out to a whole prompt when it begins, then as positions are filled. When they run out, the sequence whose turn
  comes last is set back and starts again later: it loses time, never tokens (see `sequences`, `turns` and `admission`).
- Sequences that begin with the same tokens share the cache blocks which these fill, also one after the other (see `prefixes`).
- A sequence's life on the shards is one `ring_id`; after a restart it has a new one, and results for the old are ignored.
- Sequences and their blocks outlive a plan. Under the next one they resume where they were, after a replay of what was lost.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import partial

from dairllm.coordinator.engine.actions import (
    EmitEvent,
    FailSequence,
    ReportDrained,
    ReportRecovered,
    ReportRecovery,
    SchedulerAction,
    SendBatch,
)
from dairllm.coordinator.engine.admission import admit
from dairllm.coordinator.engine.events import (
    BatchCompleted,
    GenerationCancelled,
    GenerationRequested,
    RingAvailable,
    RingDraining,
    RingUnavailable,
    SchedulerEvent,
)
from dairllm.coordinator.engine.facts import RingGeometry, SchedulerLimits
from dairllm.coordinator.engine.flights import is_alive
from dairllm.coordinator.engine.guesses.guess_planner import GuessPlanner, MakeGuesser
from dairllm.coordinator.engine.guesses.pace import FrameTime
from dairllm.coordinator.engine.guesses.repetition import Repetition
from dairllm.coordinator.engine.recovery import lacks_layers
from dairllm.coordinator.engine.requests import GenerationEvent, GenerationFinished, GenerationRequest, PromptScored, SequenceId
from dairllm.coordinator.engine.results import Awaited, fault_in
from dairllm.coordinator.engine.roster import SequenceRoster
from dairllm.coordinator.engine.sequences import Sequence
from dairllm.coordinator.engine.turns import even_shares
from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.mesh.ring.frames import MicroBatch, MicroBatchResult, RingId, SequenceBegin, SequenceResult, SequenceSlice

CHUNKS_PER_STAGE = 4
"""Into so many chunks for each stage of the ring what is left of prompts is cut. With k chunks, n stages take (k + n - 1) / k times as long
as they would if none ever waited."""


@dataclass(slots=True)
class Flight:
    """A frame on its way. is_beside: others were, too, at some time."""

    slices: tuple[SequenceSlice, ...]
    only_decodes: bool
    is_beside: bool


@dataclass(slots=True)
class _Ring:
    """What is true only while one plan lasts."""

    geometry: RingGeometry
    in_flight: dict[int, Flight] = field(default_factory=dict)
    is_closing: bool = False
    next_batch_id: int = 1

    def add(self, slices: tuple[SequenceSlice, ...], *, only_decodes: bool) -> int:
        """The number of the frame with these."""
        flight = Flight(slices, only_decodes, is_beside=bool(self.in_flight))
        for other in self.in_flight.values():
            other.is_beside = True
        number = self.next_batch_id
        self.in_flight[number] = flight
        self.next_batch_id += 1
        return number


class Scheduler:
    """handle() is the only way in. Callers check `is_full_for` and the prompt's length before GenerationRequested."""

    def __init__(self, limits: SchedulerLimits, make_guesser: MakeGuesser = Repetition) -> None:
        self.limits = limits
        self._ring: _Ring | None = None
        # What a state has come of cannot be shared in blocks, nor be taken back by a row.
        has_states = limits.tokens_per_place is not None
        self._roster = SequenceRoster(limits.max_running, PrefixReuse.OFF if has_states else limits.prefix_reuse)
        self._guesses = GuessPlanner(make_guesser) if limits.guesses and not has_states else None
        self.num_guessed = self.num_guessed_right = 0
        self._num_frames = 0
        self._recovering: dict[SequenceId, int] = {}

    @property
    def num_running(self) -> int:
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        return len(self._roster.waiting)

    def is_full_for(self, client: str) -> bool:
        """Whether as many wait as may. A client with less than its even share of the queue finds room beyond that, up to twice as many."""
        if self.num_waiting < self.limits.max_waiting:
            return False
        waiting = Counter(sequence.request.asker.client for sequence in self._roster.waiting)
        share = self.limits.max_waiting // len(waiting.keys() | {client})
        return waiting[client] >= share or self.num_waiting >= 2 * self.limits.max_waiting

    @property
    def kv_blocks_total(self) -> int:
        return self._roster.kv_blocks_total

    @property
    def kv_blocks_free(self) -> int:
        return self._roster.kv_blocks_free

    @property
    def num_reused_tokens(self) -> int:
        """Tokens that sequences found in the cache when they began, since the beginning."""
        return self._roster.num_reused_tokens

    @property
    def alive_ring_ids(self) -> tuple[RingId, ...]:
        """Sequences that the shards must not forget."""
        return self._roster.alive_ring_ids

    @property
    def used_block_ids(self) -> tuple[int, ...]:
        """Cache blocks with content that is needed again, or may be."""
        return self._roster.used_block_ids

    def handle(self, event: SchedulerEvent) -> list[SchedulerAction]:
        actions: list[SchedulerAction] = []
        match event:
            case RingAvailable(geometry):
                actions += self._open(geometry)
            case RingDraining():
                actions += self._start_closing()
            case RingUnavailable():
                self._ring = None
            case GenerationRequested(sequence_id, request):
                actions += self._request(sequence_id, request)
            case GenerationCancelled(sequence_id):
                self._roster.drop(sequence_id)
            case BatchCompleted(result, took_s):
                actions += self._complete(result, took_s)
        return [*actions, *map(SendBatch, self._fill_ring()), *self._note_recovered()]

    def check_invariants(self) -> None:
        """What holds between any two events. For tests: it costs time, and raises AssertionError."""
        self._roster.check_invariants()
        assert self.num_running <= self.limits.max_running
        assert self._ring is None or len(self._ring.in_flight) <= self._ring.geometry.frames_at_once + 1

    # Changes of plan

    def _open(self, geometry: RingGeometry) -> list[SchedulerAction]:
        before = list(self._roster.running)
        lost = [s for s in before if s.sent_rows is None or max(s.block_ids, default=0) >= geometry.num_intact_blocks]
        lost += self._without_place(geometry, [s for s in before if s not in lost])
        all_work = sum(s.num_completed for s in before) * geometry.placement[-1].units.stop
        restarted_work = sum(s.num_completed for s in lost) * geometry.placement[-1].units.stop
        self._roster.set_back(lost)
        self._roster.resize(geometry.num_kv_blocks, geometry.num_intact_blocks, geometry.kv_block_tokens)
        self._ring = _Ring(geometry)
        if self._guesses is not None:
            self._guesses.begin_plan(geometry)
        for sequence in self._roster.running:
            self._roster.trim(sequence)
            sequence.resume(geometry.placement, geometry.present)
        if lacks_layers(geometry.placement, geometry.present):
            self._roster.forget_blocks()
        elif geometry.has_moved:
            self._roster.forget_unmoved_blocks()
        if not before:
            return []
        self._recovering = {s.id: s.num_completed for s in before}
        replays = [(s.num_completed, s.replay) for s in self._roster.running if s.replay]
        work = restarted_work + sum(rows * (replay.end_unit - replay.first_unit) for rows, replay in replays)
        return [ReportRecovery(self.num_running - len(replays), len(replays), len(lost), work, all_work)]

    def _without_place(self, geometry: RingGeometry, running: list[Sequence]) -> list[Sequence]:
        """Those for which the shards have no place any more: the last by their turns."""
        tokens_per_place, most = self.limits.tokens_per_place, self.limits.max_running
        self._roster.max_running = most if tokens_per_place is None else min(most, geometry.num_tokens // tokens_per_place)
        if len(running) <= self._roster.max_running:
            return []
        turns = self._roster.turns()
        return sorted(running, key=lambda s: turns[s.id])[self._roster.max_running :]

    def _start_closing(self) -> list[SchedulerAction]:
        if self._ring is None:
            return [ReportDrained()]
        self._ring.is_closing = True
        return self._note_drained(self._ring)

    def _note_drained(self, ring: _Ring) -> list[SchedulerAction]:
        return [ReportDrained()] if ring.is_closing and not ring.in_flight else []

    def _note_recovered(self) -> list[SchedulerAction]:
        if not self._recovering or self._ring is None:
            return []
        alive = {number: sequence for number in self._recovering if (sequence := self._roster.find(number))}
        self._recovering = {
            number: self._recovering[number]
            for number, sequence in alive.items()
            if sequence.num_completed <= self._recovering[number] or sequence.replay is not None
        }
        return [] if self._recovering else [ReportRecovered()]

    def _request(self, sequence_id: SequenceId, request: GenerationRequest) -> list[SchedulerAction]:
        room = self.limits.context_length - len(request.prompt_ids)
        max_new = room if request.max_tokens is None else min(request.max_tokens, room)
        sequence = Sequence(sequence_id, request, len(request.prompt_ids) + max_new)
        actions: list[SchedulerAction] = []
        if request.score_prompt and not sequence.wants_scores:
            actions.append(EmitEvent(sequence_id, PromptScored(())))
        if not sequence.samples and not sequence.wants_scores:
            return [*actions, EmitEvent(sequence_id, GenerationFinished("length"))]
        self._roster.add(sequence)
        return actions

    # Frames that come back

    def fault_in(self, batch: MicroBatchResult, num_tokens: int) -> str:
        """Why this result cannot be, as in `results`; '' if it can, or if it is of another plan. num_tokens: of the vocabulary."""
        ring = self._ring
        if ring is None or batch.epoch != ring.geometry.epoch:
            return ""
        flight, has_states = ring.in_flight.get(batch.batch_id), self.limits.tokens_per_place is not None
        awaited_of = partial(self._awaited_of, batch.batch_id)
        return fault_in(batch, flight.slices if flight else None, awaited_of, num_tokens, has_states=has_states)

    def _awaited_of(self, batch_id: int, ring_id: RingId) -> Awaited | None:
        sequence = self._roster.find_on_shards(ring_id)
        return Awaited(sequence.request.sampling, batch_id < sequence.live_from) if sequence else None

    def _complete(self, batch: MicroBatchResult, took_s: float | None) -> list[SchedulerAction]:
        ring = self._ring
        if ring is None or batch.epoch != ring.geometry.epoch or batch.batch_id not in ring.in_flight:
            return []
        results = {result.sequence_id: result for result in batch.results}
        flight = ring.in_flight.pop(batch.batch_id)
        self._note_time(flight, batch, took_s)
        actions: list[SchedulerAction] = []
        for slice_ in flight.slices:
            sequence = self._roster.find_on_shards(slice_.sequence_id)
            if sequence is not None and batch.batch_id >= sequence.live_from:
                actions += self._accept(ring, sequence, slice_, results.get(slice_.sequence_id, SequenceResult(slice_.sequence_id)))
        return actions + self._note_drained(ring)

    def _note_time(self, flight: Flight, batch: MicroBatchResult, took_s: float | None) -> None:
        if self._guesses is None or took_s is None or not batch.timings:
            return
        if flight.only_decodes and is_alive(batch, len(flight.slices)):
            stage_s = max(timing.compute_us + timing.codec_us for timing in batch.timings) * 1e-6
            num_rows = sum(slice_.num_rows for slice_ in flight.slices)
            self._guesses.note_time(num_rows, FrameTime(took_s, stage_s), is_beside=flight.is_beside)

    def _accept(self, ring: _Ring, sequence: Sequence, slice_: SequenceSlice, result: SequenceResult) -> list[SchedulerAction]:
        if result.replay_failed:
            self._roster.set_back([sequence])
            return []
        if result.failure:
            return self._fail(ring, sequence, slice_, result.failure)
        if slice_.replay is not None:
            sequence.complete_replay(slice_.end_position)
            self._roster.note_computed(sequence, slice_.end_position)
            return []
        sequence.complete_rows(slice_.end_position - slice_.num_samples + len(result.sampled), ring.geometry.placement)
        events = self._events_of(ring, sequence, slice_, result)
        self._roster.note_computed(sequence, sequence.num_completed)
        if any(isinstance(event, GenerationFinished) for event in events):
            self._roster.drop(sequence.id)
        return [EmitEvent(sequence.id, event) for event in events]

    def _fail(self, ring: _Ring, sequence: Sequence, slice_: SequenceSlice, reason: str) -> list[SchedulerAction]:
        """What fails with guesses may go well without them."""
        if slice_.end_position > len(sequence.tokens) and not sequence.never_guess:
            sequence.never_guess = True
            sequence.drop_guesses(slice_.first_position, ring.next_batch_id)
            return []
        self._roster.drop(sequence.id)
        return [FailSequence(sequence.id, reason)]

    def _events_of(self, ring: _Ring, sequence: Sequence, slice_: SequenceSlice, result: SequenceResult) -> list[GenerationEvent]:
        events = sequence.report_reuse()
        if slice_.score_targets:
            events += sequence.accept_scores(result.scores)
        for token in result.sampled:
            events += sequence.accept_token(token)
            is_right = sequence.confirm_guess()
            self.num_guessed_right += is_right is True
            if is_right is False:
                sequence.drop_guesses(len(sequence.tokens) - 1, ring.next_batch_id)
        if not sequence.samples:
            events += sequence.finish_without_sample()
        return events

    # Frames to send

    def _fill_ring(self) -> Iterator[MicroBatch]:
        while self._ring is not None and not self._ring.is_closing:
            batch = self._next_batch(self._ring)
            if batch is None:
                return
            yield batch

    def _next_batch(self, ring: _Ring) -> MicroBatch | None:
        free_slots = ring.geometry.frames_at_once - len(ring.in_flight)
        if free_slots < 0:
            return None
        self._num_frames += 1
        self._roster.follow_replays()
        slices: list[SequenceSlice] = []
        begins: list[SequenceBegin] = []
        if free_slots > 0:
            self._add_decode_slices(ring, slices, begins)
        num_decoding = len(slices)
        if free_slots > 0 or not self._any_decoding():
            self._add_prompt_slices(ring, slices, begins)
        if free_slots > 0 and not slices:
            num_decoding = self._add_slices_ahead(ring, slices, begins)
        if not slices and not (self._roster.has_pending_ends and free_slots > 0):
            return None
        # A sequence can be set back to make room for one that comes after it in this very frame.
        kept = tuple(slice_ for slice_ in slices if self._roster.find_on_shards(slice_.sequence_id))
        begun = tuple(begin for begin in begins if self._roster.find_on_shards(begin.sequence_id))
        number = ring.add(kept, only_decodes=0 < num_decoding == len(slices))
        return MicroBatch(ring.geometry.epoch, number, ring.geometry.encoding, begun, kept, self._roster.take_ends())

    def _any_decoding(self) -> bool:
        return any(sequence.is_decoding for sequence in self._roster.running)

    def _add_decode_slices(self, ring: _Ring, slices: list[SequenceSlice], begins: list[SequenceBegin]) -> None:
        decoding = [s for s in self._roster.running if s.is_decoding]
        ready = sorted((s for s in decoding if not s.awaits_sample), key=lambda s: s.last_frame)
        for_prompts = min(sum(map(_prompt_rows, self._roster.running)), self.limits.short_chunk_rows, self.limits.max_batch_rows // 2)
        share = min(-(-len(decoding) // ring.geometry.frames_at_once), self.limits.max_batch_rows - for_prompts)
        guesses = self._guesses.along(ready[:share], len(decoding), self.limits.max_batch_rows - for_prompts) if self._guesses else {}
        for sequence in ready[:share]:
            self._add_rows(sequence, 1, slices, begins, guesses.get(sequence, ()))

    def _add_slices_ahead(self, ring: _Ring, slices: list[SequenceSlice], begins: list[SequenceBegin]) -> int:
        """Of sequences whose next token is awaited, while no other has anything to compute. How many."""
        if self._guesses is None or self._roster.waiting:
            return 0
        awaiting = [s for s in self._roster.running if s.is_decoding and s.awaits_sample]
        for sequence, guesses in self._guesses.ahead(awaiting, len(ring.in_flight), self.limits.max_batch_rows).items():
            self._add_rows(sequence, 0, slices, begins, guesses)
        return len(slices)

    def _add_prompt_slices(self, ring: _Ring, slices: list[SequenceSlice], begins: list[SequenceBegin]) -> None:
        budget = min(self._chunk_rows(ring.geometry), self.limits.max_batch_rows - sum(slice_.num_rows for slice_ in slices))
        if self._roster.waiting:
            self._admit(budget)
        for prompts, rows in self._shares_of_prompts(budget):
            for sequence in prompts:
                rows -= self._add_prompt_rows(sequence, min(rows, _prompt_rows(sequence)), slices, begins)

    def _chunk_rows(self, geometry: RingGeometry) -> int:
        """Rows of prompts in the next frame. The last stage waits for the first chunk, and the first one for the last chunk."""
        least, most = self.limits.short_chunk_rows, self.limits.max_batch_rows
        if geometry.streams:
            return most
        if self._any_decoding():
            return least
        if geometry.frames_at_once == 1:
            return most
        rows = sum(map(_prompt_rows, (*self._roster.running, *self._roster.waiting)))
        return min(most, max(least, -(-rows // (CHUNKS_PER_STAGE * geometry.frames_at_once))))

    def _admit(self, budget: int) -> None:
        """As many prompts begin as the frame has rows for, and of each client at least one."""
        rows: Counter[str] = Counter()
        for sequence in self._roster.running:
            rows[sequence.request.asker.client] += _prompt_rows(sequence)
        for sequence in admit(self._roster, lambda one: rows.total() < budget or not rows[one.request.asker.client]):
            rows[sequence.request.asker.client] += _prompt_rows(sequence)

    def _shares_of_prompts(self, budget: int) -> Iterator[tuple[list[Sequence], int]]:
        """The prompts of each client, oldest first, and how many rows are for them; the client that has waited longest for a row first."""
        by_client: dict[str, list[Sequence]] = {}
        for sequence in sorted(self._roster.running, key=lambda s: s.id):
            if _prompt_rows(sequence):
                by_client.setdefault(sequence.request.asker.client, []).append(sequence)
        clients = sorted(by_client.values(), key=lambda prompts: max(s.last_frame for s in prompts))
        return zip(clients, even_shares([sum(map(_prompt_rows, prompts)) for prompts in clients], budget), strict=True)

    def _add_prompt_rows(self, sequence: Sequence, rows: int, slices: list[SequenceSlice], begins: list[SequenceBegin]) -> int:
        if sequence.num_unreplayed > 0:
            return self._add_replay(sequence, rows, slices, begins)
        return self._add_rows(sequence, rows, slices, begins)

    def _begin(self, sequence: Sequence, first_position: int, begins: list[SequenceBegin]) -> None:
        """Tell the shards of it, if they do not know: the blocks of what they have computed, and the tokens before its next slice."""
        if not sequence.begins:
            return
        sequence.begins = False
        assert sequence.ring_id is not None
        begins.append(
            SequenceBegin(
                sequence.ring_id,
                sequence.prompt_length,
                sequence.request.sampling,
                tuple(sequence.block_ids[: self._roster.blocks.blocks_for(sequence.num_completed)]),
                tuple(sequence.tokens[:first_position]),
            )
        )

    def _add_replay(self, sequence: Sequence, rows: int, slices: list[SequenceSlice], begins: list[SequenceBegin]) -> int:
        if rows <= 0 or sequence.ring_id is None:
            return 0
        sequence.last_frame = self._num_frames
        start = sequence.num_replayed
        sequence.num_replayed += rows
        self._begin(sequence, start, begins)
        token_ids = tuple(sequence.tokens[start : start + rows])
        slices.append(SequenceSlice(sequence.ring_id, start, token_ids, (), 0, replay=sequence.replay))
        return rows

    def _add_rows(
        self, sequence: Sequence, rows: int, slices: list[SequenceSlice], begins: list[SequenceBegin], guesses: Items[int] = ()
    ) -> int:
        """The next rows of the sequence, if there is room for them in the cache, and those of guesses behind them, as far as there is; the
        number that was added."""
        if rows + len(guesses) <= 0 or sequence.ring_id is None or not self._roster.reserve(sequence, rows):
            return 0
        guesses = guesses[: self._roster.reserve_for_guesses(sequence, rows, len(guesses))]
        rows += len(guesses)
        if not rows:
            return 0
        blocks = self._roster.blocks
        start, stop = sequence.num_sent, sequence.num_sent + rows
        self._begin(sequence, start, begins)
        sequence.last_frame = self._num_frames
        sequence.num_sent = stop
        sequence.ahead += guesses
        self.num_guessed += len(guesses)
        slices.append(
            SequenceSlice(
                sequence_id=sequence.ring_id,
                first_position=start,
                token_ids=sequence.tokens_at(start, stop),
                new_block_ids=tuple(sequence.block_ids[blocks.blocks_for(start) : blocks.blocks_for(stop)]),
                num_samples=min(rows, stop + 1 - len(sequence.tokens)) if sequence.awaits_sample else 0,
                score_targets=sequence.score_targets(start, stop) if sequence.wants_scores and start < sequence.prompt_length - 1 else (),
            )
        )
        return rows


def _prompt_rows(sequence: Sequence) -> int:
    """Rows that can be sent before it decodes: of a replay first, then those that were never computed."""
    return 0 if sequence.is_decoding or sequence.follows else sequence.num_unreplayed or sequence.num_unsent
