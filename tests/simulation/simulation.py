"""A cluster with faults, from a seed to its verdict: every answer is right or has properly failed, and in the end the cluster serves."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.events import ConfigureRequested, CordonRequested, DrainRequested
from dairllm.coordinator.cluster.phases import Phase
from dairllm.coordinator.engine.requests import GenerationRequest
from tests.instruments.descriptions import demand_of
from tests.simulation.coordinator import SimulatedCoordinator
from tests.simulation.engine import CONTEXT_LENGTH, Answer
from tests.simulation.network import Network, Stream
from tests.simulation.shard import (
    CLUSTER_HASH,
    HEARTBEAT_S,
    KV_BLOCK_TOKENS,
    LEASE_TIMEOUT_S,
    Edge,
    Message,
    RingKey,
    SimulatedShard,
)
from tests.simulation.world import World

FAULTS_FROM_S = 1.0
FAULTS_UNTIL_S = 12.0
END_S = 60.0
STEP_S = 2.0
LAYER_BYTES = 100_000


class Simulation:
    """World, network, coordinator and shards of one seed. may_hang: shards may hold their leases and compute nothing for a while."""

    def __init__(self, seed: int, *, may_hang: bool = True) -> None:
        self._may_hang = may_hang
        self.world = World(seed)
        self.network = Network(self.world)
        random = self.world.random
        num_layers = random.randint(2, 6)
        sizes = (LAYER_BYTES // 2, *(LAYER_BYTES for _ in range(num_layers)), LAYER_BYTES // 2)
        self.model = demand_of("simulated", b"\1", sizes, kv_per_token=1, context=CONTEXT_LENGTH)
        self.shards = {name: self._shard(name) for name in "ABCDEF"[: random.randint(2, 6)]}
        self._config = ClusterConfig(
            CLUSTER_HASH,
            1,
            min_shards=random.choice([1, 1, 2, min(3, len(self.shards))]),
            kv_block_tokens=KV_BLOCK_TOKENS,
            target_kv_tokens=random.choice([0, 128, 256]),
            heartbeat_interval_s=HEARTBEAT_S,
            lease_timeout_s=LEASE_TIMEOUT_S,
            better_after_s=random.choice([0.5, 10.0]),
            better_interval_s=random.choice([1.0, 30.0]),
        )
        self._num_leases = 0
        self.counts: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self._num_coordinators = 0
        self.coordinator = self._start_coordinator()

    def _shard(self, name: str) -> SimulatedShard:
        random = self.world.random
        kv_bytes = random.choice([1, 1, 2, 4]) * CONTEXT_LENGTH * self.model.num_layers
        room_bytes = round(self.model.size_bytes * random.choice([0.75, 1.0, 1.5, 2.5])) + kv_bytes
        s_per_byte = 1e-9 * random.choice([1.0, 1.0, 2.0, 5.0])
        most_sent_rows = random.choice([None, None, 0, 30, 100])
        return SimulatedShard(self.world, self.network, self, self.model, name, room_bytes, s_per_byte, most_sent_rows=most_sent_rows)

    def _start_coordinator(self) -> SimulatedCoordinator:
        self._num_coordinators += 1
        config = replace(self._config, coordinator_id=str(self._num_coordinators))
        return SimulatedCoordinator(self.world, self.network, self.model, config, self.shards.get, self.counts)

    # -- what shards reach

    def connect(self, shard: SimulatedShard) -> Stream[Message] | None:
        if not self.coordinator.is_alive:
            return None
        self._num_leases += 1
        return self.coordinator.connect(shard, self._num_leases)

    def find(self, name: str) -> SimulatedShard | None:
        return self.shards.get(name)

    def accept_last(self, key: RingKey, on_end: Callable[[], None]) -> Edge | None:
        return self.coordinator.accept_last(key, on_end)

    # -- a run

    def run(self) -> None:
        """Raises Wrong."""
        random = self.world.random
        for shard in self.shards.values():
            self.world.after(random.uniform(0.0, 1.5), shard.start)
        for _ in range(random.randint(1, 8)):
            self.world.after(random.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S), self._fail_something)
        for _ in range(random.randint(1, 6)):
            self.world.after(random.uniform(0.0, FAULTS_UNTIL_S), self._submit)
        self.world.run_until(FAULTS_UNTIL_S)
        self._heal()
        while self.world.now_s < END_S and not self._is_over():
            self.world.run_until(self.world.now_s + STEP_S)
        phase, reason = self.coordinator.machine.phase, self.coordinator.machine.reason
        self.world.require(phase in (Phase.SERVING, Phase.PREPARING), f"it does not serve: {phase.value}, {reason}")
        for answer in self.answers:
            have = f"{len(answer.received)} of {len(answer.expected)} tokens"
            self.world.require(answer.is_done, f"answer {answer.number} has {have}")
            self.counts["answers"] += 1
            self.counts["answers failed"] += bool(answer.failure)

    def _is_over(self) -> bool:
        is_serving = self.coordinator.machine.phase is Phase.SERVING
        return is_serving and self.world.now_s >= FAULTS_UNTIL_S + 2 * STEP_S and all(answer.is_done for answer in self.answers)

    def _submit(self) -> None:
        if not self.coordinator.is_alive:
            return
        answer = Answer(len(self.answers) + 1, self._request())
        self.answers.append(answer)
        self.coordinator.submit(answer)
        if self.world.chance(0.1):
            self.world.after(self.world.random.uniform(0.1, 2.0), lambda: self.coordinator.engine.cancel(answer))

    def _request(self) -> GenerationRequest:
        random = self.world.random
        common = tuple(range(random.choice([0, 0, 8, 20])))
        prompt_ids = (*common, *(random.randrange(1000) for _ in range(random.choice([1, 3, 10, 30]))))
        max_tokens, end_ids = random.choice([1, 10, 30, 50, None]), frozenset({7} if random.random() < 0.3 else ())
        return GenerationRequest(prompt_ids, max_tokens=max_tokens, end_ids=end_ids, score_prompt=random.random() < 0.15)

    def _heal(self) -> None:
        """The faults are over: who is down starts, who left comes back, people want everything to be used."""
        self.world.say("-- no more faults")
        if not self.coordinator.is_alive:
            self.coordinator = self._start_coordinator()
        for shard in self.shards.values():
            shard.frozen_until_s, shard.hangs_until_s, shard.slowness = 0.0, 0.0, 1.0
            shard.room_bytes = max(shard.room_bytes, 2 * self.model.size_bytes + 100_000)
            if not shard.is_alive or shard.is_leaving:
                shard.crash()
                shard.start()
            self.world.after(1.0, lambda name=shard.name: self._want_back(name))  # type: ignore[misc]

    def _want_back(self, name: str) -> None:
        self.coordinator.handle(CordonRequested(name, False))
        self.coordinator.handle(ConfigureRequested(name, memory_budget_bytes=self.shards[name].room_bytes))

    # -- faults

    def _fail_something(self) -> None:
        if self.world.now_s >= FAULTS_UNTIL_S:
            return
        random = self.world.random
        shard = random.choice(list(self.shards.values()))
        to_one = [self._crash, self._crash, self._freeze, self._cut, self._cut_edge, self._drain, self._cordon, self._slow, self._configure]
        faults = [*to_one, self._restart_coordinator, *([self._hang, self._hang] if self._may_hang else [])]
        fault = random.choice(faults)
        if shard.is_alive or fault == self._restart_coordinator:
            fault(shard)
        if self.world.chance(0.35):
            # Into the middle of what the first has begun.
            self.world.after(random.uniform(0.0, 0.6), self._fail_something)

    def _crash(self, shard: SimulatedShard) -> None:
        shard.crash()
        self.world.after(self.world.random.choice([0.3, 2.0, 20.0]), lambda: None if shard.is_alive else shard.start())

    def _freeze(self, shard: SimulatedShard) -> None:
        shard.freeze(self.world.random.choice([0.5, 3.0, 8.0]))

    def _hang(self, shard: SimulatedShard) -> None:
        shard.hang(self.world.random.choice([1.0, 6.0, 20.0]))

    def _cut(self, shard: SimulatedShard) -> None:
        if shard.stream:
            self.world.say(f"the lease of {shard.name} is cut")
            shard.stream.cut()

    def _cut_edge(self, shard: SimulatedShard) -> None:
        edge = self.world.random.choice([shard.outgoing, shard.incoming])
        if edge:
            self.world.say(f"an edge of {shard.name} is cut")
            edge.cut()

    def _drain(self, shard: SimulatedShard) -> None:
        if self.world.chance(0.5):
            shard.leave()
        else:
            self.coordinator.handle(DrainRequested(shard.name, force=self.world.chance(0.3)))

    def _cordon(self, shard: SimulatedShard) -> None:
        self.coordinator.handle(CordonRequested(shard.name, True, force=self.world.chance(0.3)))

    def _slow(self, shard: SimulatedShard) -> None:
        shard.slowness = self.world.random.choice([3.0, 10.0])

    def _configure(self, shard: SimulatedShard) -> None:
        room_bytes = round(self.model.size_bytes * self.world.random.choice([0.4, 1.2]))
        self.coordinator.handle(ConfigureRequested(shard.name, memory_budget_bytes=room_bytes))

    def _restart_coordinator(self, shard: SimulatedShard) -> None:
        if self.coordinator.is_alive:
            self.coordinator.crash()
            self.world.after(self.world.random.uniform(0.2, 3.0), self._return)

    def _return(self) -> None:
        if not self.coordinator.is_alive:
            self.coordinator = self._start_coordinator()


def run(seed: int) -> Simulation:
    """Raises Wrong, with the number of the seed."""
    simulation = Simulation(seed)
    simulation.run()
    return simulation
