"""Runs cases: answers under way, a fault at the right moment, then the comparison with undisturbed answers."""

import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults.cases import Case, Fault, Moment, Outcome, Place, mover, targets
from tests.faults.fleet import HTTP, MIXED_ISAS, RING_SHARDS, SAME_ISAS, Fleet, State
from tests.faults.streams import Clients, Seen

HOLD_S = 6.5
"""Longer than a lease lasts."""
MOST_PLANS = 5
LASTING = frozenset({Fault.FROZEN, Fault.HUNG, Fault.LINK_DOWN, Fault.BAD_LINK})
SIGNS_OF_A_FAULT = (
    "Traceback",
    "never retrieved",
    "never awaited",
    "Exception in callback",
    "Unhandled exception",
    "Segmentation fault",
    "chttp2",
)
SETUPS = {
    Fault.KILLED: MIXED_ISAS,
    Fault.FROZEN: SAME_ISAS,
    Fault.HUNG: MIXED_ISAS,
    Fault.TERMINATED: MIXED_ISAS,
    Fault.LINK_DOWN: SAME_ISAS,
    Fault.BAD_LINK: MIXED_ISAS,
    Fault.FULL_DISK: SAME_ISAS,
}
"""Instruction sets of the shards."""


@dataclass(frozen=True, slots=True)
class Load:
    """Eight clients at once."""

    prompts: Sequence[Sequence[int]]
    num_tokens: int


DECODING = Load([[17 * index + position for position in range(3 + 5 * index)] for index in range(8)], 72)
PREFILLING = Load([[(7 * index + 3 * position) % 256 for position in range(1000)] for index in range(8)], 12)


def load_of(moment: Moment) -> Load:
    return PREFILLING if moment is Moment.PREFILL else DECODING


@dataclass(frozen=True, slots=True)
class Observation:
    """phase: of the cluster when the fault came. silence_s: the longest between two tokens that a client saw."""

    case: Case
    outcome: Outcome
    phase: str
    silence_s: float
    took_s: float


class Undisturbed:
    """Answers of a cluster that nothing disturbs: taken once for each load, whatever the plan and the instruction sets."""

    def __init__(self) -> None:
        self._answers: dict[int, list[Seen]] = {}
        self._lock = threading.Lock()

    def of(self, load: Load) -> list[Seen]:
        """Of the cluster that serves at HTTP, if they are not known yet."""
        with self._lock:
            if load.num_tokens not in self._answers:
                with Clients(HTTP, load.prompts, load.num_tokens) as clients:
                    answers = clients.seen()
                for answer in answers:
                    assert answer.error is None, answer.error
                    assert len(answer.tokens) == load.num_tokens, f"{len(answer.tokens)} tokens of an undisturbed answer"
                self._answers[load.num_tokens] = answers
            return self._answers[load.num_tokens]


class CaseRun:
    """One case on a fleet that is whole; it is whole again afterwards. Raises AssertionError (ProcessFailed is one)."""

    def __init__(self, fleet: Fleet, case: Case, undisturbed: Undisturbed) -> None:
        self._fleet, self._case, self._undisturbed = fleet, case, undisturbed
        self._load = load_of(case.moment)
        self._ring: list[str] = []
        self._hit: tuple[str, ...] = ()
        self._phase = ""

    def run(self) -> Observation:
        began_s = time.monotonic()
        self._fleet.wait_whole()
        expected = self._undisturbed.of(self._load)
        if self._case.moment is Moment.IDLE:
            self._inflict()
            if self._case.fault in (Fault.KILLED, Fault.TERMINATED):
                # New requests wait 5 s for a plan: less than starting shards takes on a busy machine.
                self._fleet.revive()
                self._fleet.wait_whole()
        with self._clients() as clients:
            if self._case.moment is not Moment.IDLE:
                self._reach_moment(clients)
                self._inflict()
            self._mend_until_over(clients)
        outcome = self._compare(clients.seen(), expected, self._case.expected)
        self._restore(expected)
        return Observation(self._case, outcome, self._phase, clients.longest_silence_s, time.monotonic() - began_s)

    def _clients(self) -> Clients:
        return Clients(HTTP, self._load.prompts, self._load.num_tokens)

    def _reach_moment(self, clients: Clients) -> None:
        fleet, moment = self._fleet, self._case.moment
        if moment is Moment.PREFILL:
            fleet.wait_until(lambda state: state["running_sequences"] > 0 or clients.num_tokens > 0, "a prompt that is computed")
            assert clients.num_begun < len(self._load.prompts), "the prompts were computed too soon"
            return
        clients.wait_tokens(5)
        assert not clients.are_over
        epoch = fleet.state()["epoch"]
        if moment is Moment.LOADING:
            self._aim(self._reach_loading(epoch))
        elif moment is Moment.MOVE:
            self._aim(fleet.state())
            fleet.terminate(mover(self._hit, self._ring))
            fleet.wait_until(lambda state: state["epoch"] > epoch or state["next_epoch"] > 0, "a plan without the shard that leaves")

    def _reach_loading(self, epoch: int) -> State:
        """Weights of some MiB may be loaded between two looks at the cluster: then once more."""
        for _ in range(MOST_PLANS):
            self._fleet.kill_shards()
            self._fleet.revive()
            state = self._fleet.wait_until(partial(_has_planned_since, epoch), "the shards to load")
            if state["phase"] == "loading":
                return state
            epoch = state["epoch"]
        raise AssertionError(f"the shards have loaded {MOST_PLANS} times before it was seen")

    def _aim(self, state: State) -> None:
        self._ring = _ring(state)
        others = [shard["name"] for shard in state["shards"] if shard["name"] not in self._ring]
        self._hit = targets(self._case.place, self._ring, others)

    def _inflict(self) -> None:
        state = self._fleet.state()
        self._phase = "moving" if state["phase"] == "serving" and state["next_epoch"] else state["phase"]
        if not self._hit:
            self._aim(state)
        self._fleet.inflict(self._case.fault, self._hit)
        self._inflicted_s = time.monotonic()
        if self._case.moment is Moment.IDLE and self._ends_the_coordinator:
            self._fleet.coordinator.wait()
            self._fleet.revive()
            self._fleet.wait_whole()

    @property
    def _ends_the_coordinator(self) -> bool:
        return self._case.place is Place.COORDINATOR and self._case.fault in (Fault.KILLED, Fault.TERMINATED)

    def _mend_until_over(self, clients: Clients) -> None:
        """What must come back for answers to go on comes back: shards when too few are left, and links and frozen processes in time."""
        case = self._case
        if case.fault in LASTING:
            time.sleep(max(0.0, self._inflicted_s + HOLD_S - time.monotonic()))
            self._fleet.mend(case.fault, self._hit)
        if self._ends_the_coordinator and case.moment is not Moment.IDLE:
            clients.seen()
            self._fleet.coordinator.wait()
        if case.place is Place.ALL_BUT_ONE or case.moment in (Moment.LOADING, Moment.MOVE):
            self._fleet.revive()
        clients.seen()

    def _restore(self, expected: Sequence[Seen]) -> None:
        fleet, case = self._fleet, self._case
        fleet.mend(case.fault, self._hit)
        fleet.revive()
        fleet.wait_whole()
        codes = fleet.wait_left()
        assert set(codes) <= ({0, -9} if case.fault is Fault.KILLED else {0}), f"shards that left ended with {codes}"
        if case.expected is not Outcome.SAME_ANSWER:
            with self._clients() as clients:
                self._compare(clients.seen(), expected, Outcome.SAME_ANSWER)
        for name, output in fleet.new_output().items():
            assert not [sign for sign in SIGNS_OF_A_FAULT if sign in output], f"{name}:\n{output[-6000:]}"

    def _compare(self, seen: Sequence[Seen], expected: Sequence[Seen], outcome: Outcome) -> Outcome:
        """What the clients have seen: all the whole answer, or some of them `outcome`. Raises AssertionError for anything else."""
        for index, (answer, whole) in enumerate(zip(seen, expected, strict=True)):
            what = f"client {index} got {len(answer.tokens)} of {len(whole.tokens)} tokens, error {answer.error}, lost: {answer.lost}"
            assert answer.begins(whole), f"{what}; they differ from the undisturbed ones at {_first_difference(answer, whole)}"
            if answer == whole:
                continue
            assert outcome is not Outcome.SAME_ANSWER, what
            assert answer.lost is (outcome is Outcome.CONNECTION_LOST), what
        return Outcome.SAME_ANSWER if seen == expected else outcome


def _has_planned_since(epoch: int, state: State) -> bool:
    return state["phase"] != "waiting" and state["epoch"] > epoch and len(_ring(state)) >= RING_SHARDS


def _ring(state: State) -> list[str]:
    """Shards of the plan that is prepared, if there is one, else of the plan that serves, in the order of their layers."""
    first, end = ("next_first_unit", "next_end_unit") if state["next_epoch"] else ("first_unit", "end_unit")
    return [shard["name"] for shard in sorted(state["shards"], key=lambda shard: shard[first]) if shard[first] < shard[end]]


def _first_difference(answer: Seen, whole: Seen) -> str:
    pairs = zip(zip(answer.tokens, answer.logprobs, strict=True), zip(whole.tokens, whole.logprobs, strict=True), strict=False)
    return next((f"token {i}: {one} for {other}" for i, (one, other) in enumerate(pairs) if one != other), "the end")


def run_lane(fault: Fault, model: Path, cases: Iterable[Case], undisturbed: Undisturbed, results: dict[Case, Future[Observation]]) -> None:
    """The cases of one fault one after the other on one fleet, and on a new one after a failure."""
    left = list(cases)
    isas = SETUPS[fault]
    while left:
        try:
            with tempfile.TemporaryDirectory(prefix="dairllm-faults-") as folder:
                without_files, lossy = fault is Fault.FULL_DISK, fault is Fault.BAD_LINK
                with Fleet(model, Path(folder), isas, without_files=without_files, lossy=lossy) as fleet:
                    while left and _settle(results, fleet, left.pop(0), undisturbed):
                        pass
        except Exception as error:  # the outermost place of a lane: whoever waits for a case must hear of it
            for case in left:
                results[case].set_exception(error)
            return


def _settle(results: dict[Case, Future[Observation]], fleet: Fleet, case: Case, undisturbed: Undisturbed) -> bool:
    try:
        results[case].set_result(CaseRun(fleet, case, undisturbed).run())
    except Exception as error:  # whatever went wrong belongs to this case
        error.add_note(fleet.tails())
        results[case].set_exception(error)
        return False
    return True
