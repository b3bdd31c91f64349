"""One sequence on its way from request to last token.

A sequence knows all its tokens: prompt and answer. Rows up to `num_completed` have come back from the ring, rows up to `num_sent`
are on their way. When the ring breaks, it resumes from `num_completed`, after a replay of what was lost (see `recovery`); when its
cache blocks are taken away, it restarts from nothing, or from the blocks that others have left for it (see `prefixes`). Because a
row's bits do not depend on when or with what it is computed, and randomness is counted by position, its next token is the one that
it would have been.
"""

from dataclasses import dataclass, field

from dairllm.coordinator.engine.blocks import BlockKey
from dairllm.coordinator.engine.guesses.guesser import Guesser
from dairllm.coordinator.engine.recovery import Placement, SentRowsHolders, holders_after, holders_under, plan_replay
from dairllm.coordinator.engine.requests import (
    GenerationEvent,
    GenerationFinished,
    GenerationRequest,
    PrefixReused,
    PromptScored,
    SequenceId,
    TokenGenerated,
)
from dairllm.mesh.ring.frames import Replay, RingId, TokenScore


@dataclass(slots=True, eq=False)
class Sequence:
    """sent_rows: who has kept its past rows; None while the shards do not hold all of its past: before the first row, and in the
    middle of a replay. replay: what is computed again before it goes on. begins: the shards must be told of it with its next slice.
    last_frame: number of the last frame with rows of it. overtaken_by: cache blocks with which later ones began while it had to wait.
    block_keys: of its full blocks, from the first on, as far as somebody has asked for them. num_known_blocks: its first ones, which may be
    known by these keys. follows: what it has to replay next is being replayed for another one. num_reused: tokens that were in the cache
    when it first began; None before. ahead: guesses behind its tokens whose rows are under way. live_from: frames with lower numbers go on
    from a guess that was wrong. never_guess: a row of a guess has failed.
    """

    id: SequenceId
    request: GenerationRequest
    max_length: int
    tokens: list[int] = field(init=False)
    ahead: list[int] = field(default_factory=list)
    live_from: int = 0
    guesser: Guesser | None = None
    never_guess: bool = False
    ring_id: RingId | None = None
    block_ids: list[int] = field(default_factory=list)
    begins: bool = False
    num_sent: int = 0
    num_completed: int = 0
    sent_rows: SentRowsHolders | None = None
    replay: Replay | None = None
    num_replayed: int = 0
    last_frame: int = 0
    overtaken_by: int = 0
    block_keys: list[BlockKey] = field(default_factory=list)
    num_known_blocks: int = 0
    follows: bool = False
    num_reused: int | None = None
    _sent_rows_after_replay: SentRowsHolders | None = None
    _sent_rows_after_part: SentRowsHolders | None = None
    _scores: list[TokenScore] = field(default_factory=list)
    _prompt_is_scored: bool = field(init=False)
    _reuse_is_reported: bool = False

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt_ids)
        self._prompt_is_scored = not self.request.score_prompt or self.prompt_length == 1

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_unsent(self) -> int:
        return max(0, len(self.tokens) - self.num_sent)

    @property
    def awaits_sample(self) -> bool:
        """Its newest token was sent."""
        return self.samples and self.num_unsent == 0

    @property
    def is_decoding(self) -> bool:
        """Exactly the newest token is unsent, or its successor is being computed, and the shards know of it."""
        return self.awaits_sample or (self.num_unsent == 1 and not self.begins and self.num_sent > 0 and self.num_unreplayed == 0)

    @property
    def num_unreplayed(self) -> int:
        return 0 if self.replay is None else self.num_completed - self.num_replayed

    @property
    def wants_scores(self) -> bool:
        return not self._prompt_is_scored

    @property
    def samples(self) -> bool:
        return self.max_length > self.prompt_length

    def restart(self) -> None:
        """Forget what the shards know of it. The caller frees the blocks."""
        self.ring_id = None
        self.block_ids = []
        self.begins = False
        self.num_sent = self.num_completed = self.num_replayed = 0
        self.ahead, self.live_from = [], 0
        self.sent_rows = self._sent_rows_after_replay = self._sent_rows_after_part = self.replay = None
        self.num_known_blocks = 0
        self.follows = False
        self._scores = []

    def begin(self, ring_id: RingId, reused: list[int], new: list[int], block_tokens: int) -> None:
        """Its first rows are in the cache already, in the blocks `reused`; nobody has kept them as they were sent from shard to shard."""
        self.ring_id = ring_id
        self.begins = True
        self.block_ids = [*reused, *new]
        self.num_known_blocks = len(reused)
        self.num_sent = self.num_completed = len(reused) * block_tokens
        if reused:
            self.sent_rows = {}
        if self.num_reused is None:
            self.num_reused = self.num_completed

    def resume(self, placement: Placement, present: frozenset[int]) -> None:
        """Go on under a new plan from what is completed. The caller has freed the blocks beyond it."""
        assert self.sent_rows is not None
        self.begins = True
        self.num_sent = self.num_completed
        self.num_replayed = 0
        self.ahead, self.live_from = [], 0
        self.replay = plan_replay(self.sent_rows, placement, present)
        self._sent_rows_after_replay = holders_after(self.sent_rows, placement, self.replay)
        self._sent_rows_after_part = holders_after(self.sent_rows, placement, None)
        self.sent_rows = None if self.replay else self._sent_rows_after_replay

    def replay_from(self, position: int) -> None:
        """What comes before, others have replayed for it: then the rows that pass a boundary have no beginning there."""
        self.num_replayed = position
        if position:
            self._sent_rows_after_replay = self._sent_rows_after_part
            self.complete_replay(position)

    def complete_rows(self, stop: int, placement: Placement) -> None:
        """Rows before position `stop` have come back."""
        self.num_completed = max(self.num_completed, stop)
        if self.sent_rows is None and self.replay is None:
            self.sent_rows = holders_under(placement)

    def complete_replay(self, stop: int) -> None:
        """Replayed rows before position `stop` have come back."""
        if stop >= self.num_completed:
            self.sent_rows, self.replay = self._sent_rows_after_replay, None

    def tokens_at(self, start: int, stop: int) -> tuple[int, ...]:
        """And guesses behind them."""
        num_tokens = len(self.tokens)
        return (*self.tokens[start:stop], *self.ahead[max(0, start - num_tokens) : max(0, stop - num_tokens)])

    def score_targets(self, start: int, stop: int) -> tuple[int, ...]:
        """The token after each of the rows [start, stop), as far as the prompt goes; a row beyond it repeats its last token."""
        last = self.prompt_length - 1
        return tuple(self.tokens[min(position + 1, last)] for position in range(start, stop))

    def report_reuse(self) -> list[GenerationEvent]:
        """When its first rows come back, whatever becomes of it later."""
        if self._reuse_is_reported:
            return []
        self._reuse_is_reported = True
        return [PrefixReused(self.num_reused)] if self.num_reused else []

    def accept_scores(self, scores: tuple[TokenScore, ...]) -> list[GenerationEvent]:
        self._scores.extend(scores)
        wanted = self.prompt_length - 1
        if len(self._scores) < wanted:
            return []
        self._prompt_is_scored = True
        return [PromptScored(tuple(self._scores[:wanted]))]

    def accept_token(self, token: TokenScore) -> list[GenerationEvent]:
        """The next one. The caller sets it back if that is not what was guessed."""
        self.tokens.append(token.token_id)
        events: list[GenerationEvent] = [TokenGenerated(token)]
        if token.token_id in self.request.end_ids:
            events.append(GenerationFinished("stop"))
        elif len(self.tokens) >= self.max_length:
            events.append(GenerationFinished("length"))
        return events

    def confirm_guess(self) -> bool | None:
        """Whether the first guess is the token that was accepted last; None if there was no guess."""
        return self.ahead.pop(0) == self.tokens[-1] if self.ahead else None

    def drop_guesses(self, num_valid: int, next_frame: int) -> None:
        """What was sent behind so many rows rests on a wrong guess, in all frames up to the next one."""
        self.ahead = []
        self.num_sent = num_valid
        self.live_from = next_frame

    def finish_without_sample(self) -> list[GenerationEvent]:
        """The events of a sequence that only wanted its prompt scored, once every row was computed."""
        return [] if self.wants_scores else [GenerationFinished("length")]
