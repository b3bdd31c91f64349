"""The settings of a cluster."""

from dataclasses import dataclass

from dairllm.coordinator.planner import KvDemand
from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC, Arithmetic


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of a cluster.

    context_length: None for the model's; never more than the model's.
    target_kv_tokens: tokens that the KV cache should hold where memory allows, for all sequences together.
    arithmetic: of every shard, for as long as the coordinator runs.
    settle_s: how long after a join planning waits, so that machines that start together are planned together.
    hop_s: what an edge of the ring costs a step until hop_round_trips of the shard were heard; then half of the least of them counts,
        since a machine that is busy, as while it loads, answers late.
    grace_s: how long after a broken edge membership has time to notice that a shard is lost; doubles with every failure in a
        row, up to longest_pause_s.
    load_stall_s: a stage that reports no progress for this long has failed; after short_load_stall_s its shard is at fault, if the others
        suffice, unless it still computes what came before.
    standstill_s, standstill_beats: a shard is at fault if its thread that computes got no further for so long, and at least so many
        heartbeats said so: a process that stands still itself says nothing.
    unheard_s, unheard_row_s: the same for a frame that lies between two members, both of which say so: longer than an edge may be silent,
        and as long as its rows may take on a slow network.
    frame_patience: a frame may take this many times what its shard is expected to take for its rows one by one, and unheard_s.
    proof_limit_s: how soon a shard must prove that it computes.
    open_timeout_s: how long the first frame may take around the ring, whose shards have switched already.
    set_aside_s: how long a shard that failed set_aside_after times in a row is not used, if the others suffice.
        A shard that is at fault is not used for set_aside_s, twice as long each further time, whether the others suffice or not; if it only
        stood still, for suspicion_s. After it, it must prove that it computes, and is asked again after pauses that double, too.
    avoid_after: after so many failures of one edge in a row, while both ends live, plans go around the link, if they can: for avoid_s,
        twice as long with each further failure, up to longest_avoid_s.
    held_settle_s: after a restart of the coordinator, how long the first plan waits for shards that hold the rest of the model.
    drain_timeout_s, activate_timeout_s: how long a graceful end of a ring, and a switch with its transfers, may take; after
        short_activate_timeout_s a shard that has not switched is at fault, unless it still computes what came before.
    beside_pause_s: pause after a plan that could not be prepared beside the one that serves; doubles, up to longest_beside_pause_s.
    recovery_limit_s: how long answers wait for a ring after one was closed.
    better_after_s, better_looks, better_look_s: another plan only because it is faster, which nobody has joined, left or asked for, is
        looked for when one has served for so long, and prepared when it was found so often in a row, this far apart.
    better_interval_s: this long after a plan for speed alone the next may follow, ten times as long after each further one that is less
        than better_memory_s ago.
    """

    cluster_hash: str
    protocol_major: int
    protocol_minor: int = 0
    coordinator_id: str = ""
    software_version: str = ""
    min_shards: int = 1
    context_length: int | None = None
    max_batch_rows: int = 512
    kv_block_tokens: int = 32
    target_kv_tokens: int = 0
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC
    heartbeat_interval_s: float = 1.0
    lease_timeout_s: float = 4.5
    settle_s: float = 0.5
    hop_s: float = 0.0005
    hop_round_trips: int = 5
    grace_s: float = 0.5
    longest_pause_s: float = 10.0
    load_stall_s: float = 120.0
    short_load_stall_s: float = 10.0
    standstill_s: float = 3.0
    standstill_beats: int = 3
    unheard_s: float = 6.0
    unheard_row_s: float = 0.02
    frame_patience: float = 4.0
    proof_limit_s: float = 2.0
    suspicion_s: float = 5.0
    open_timeout_s: float = 10.0
    set_aside_after: int = 3
    set_aside_s: float = 60.0
    avoid_after: int = 2
    avoid_s: float = 60.0
    longest_avoid_s: float = 600.0
    held_settle_s: float = 2.0
    drain_timeout_s: float = 3.0
    activate_timeout_s: float = 30.0
    short_activate_timeout_s: float = 12.0
    beside_pause_s: float = 5.0
    longest_beside_pause_s: float = 300.0
    recovery_limit_s: float = 60.0
    better_after_s: float = 10.0
    better_looks: int = 3
    better_look_s: float = 5.0
    better_interval_s: float = 120.0
    better_memory_s: float = 3600.0

    @property
    def kv(self) -> KvDemand:
        return KvDemand(self.kv_block_tokens, self.target_kv_tokens)

    def pause_s(self, failures: int) -> float:
        """Pause after so many failures in a row (1 or more)."""
        return _growing(self.grace_s, failures, self.longest_pause_s)

    def fault_s(self, faults: int, is_believed: bool) -> float:
        """How long a shard is not used that was at fault so often (1 or more)."""
        return _growing(self.suspicion_s if is_believed else self.set_aside_s, faults, self.longest_avoid_s)

    def pause_between_proofs_s(self, asked: int) -> float:
        """Until a shard is asked again that was asked so often in a row (1 or more)."""
        return _growing(self.suspicion_s, asked, self.set_aside_s)

    def avoidance_s(self, failures: int) -> float:
        """How long plans go around a link after so many failures of an edge in a row (avoid_after or more)."""
        return _growing(self.avoid_s, failures - self.avoid_after + 1, self.longest_avoid_s)

    def better_pause_s(self, recent: int) -> float:
        """Between plans for speed alone, after so many of them (1 or more) that are remembered."""
        return _growing(self.better_interval_s, recent, self.better_memory_s, 10.0)

    def pause_beside_s(self, failures: int) -> float:
        """Pause before the next plan beside the one that serves, after so many that failed in a row (1 or more)."""
        return _growing(self.beside_pause_s, failures, self.longest_beside_pause_s)


def _growing(first_s: float, times: int, longest_s: float, factor: float = 2.0) -> float:
    """The first time it is first_s, then each time so many times as long, up to longest_s."""
    return min(longest_s, first_s * factor ** min(times - 1, 20))
