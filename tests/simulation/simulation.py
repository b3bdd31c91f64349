"""A cluster with faults, from a seed to its verdict: every answer is right or has properly failed, and in the end the cluster serves."""

from dairllm.coordinator.cluster.actions import Action
from dairllm.coordinator.cluster.events import ConfigureRequested, CordonRequested, DrainRequested, Event
from dairllm.coordinator.cluster.facts import ShardHello
from dairllm.coordinator.cluster.state import Phase
from dairllm.coordinator.planner import ModelDemand
from tests.simulation.coordinator import Sequence, SimulatedCoordinator
from tests.simulation.network import Network, Stream
from tests.simulation.shard import Frame, SimulatedShard
from tests.simulation.world import World

FAULTS_FROM_S = 1.0
FAULTS_UNTIL_S = 12.0
END_S = 60.0
STEP_S = 2.0
LAYER_BYTES = 100_000


class Simulation:
    """World, network, coordinator and shards of one seed."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.network = Network(self.world)
        random = self.world.random
        num_layers = random.randint(2, 6)
        sizes = (LAYER_BYTES // 2, *(LAYER_BYTES for _ in range(num_layers)), LAYER_BYTES // 2)
        self.model = ModelDemand("simulated", b"\1", sizes, 0, 1, num_layers, "llama", frozenset({"Q4_0"}), 64)
        self.shards = {name: self._shard(name) for name in "ABCDEF"[: random.randint(2, 6)]}
        self.min_shards = random.choice([1, 1, 2, min(3, len(self.shards))])
        self._num_leases = self._num_sequences = 0
        self.submitted: list[Sequence] = []
        self.coordinator = self._start_coordinator()

    def _shard(self, name: str) -> SimulatedShard:
        random = self.world.random
        room_bytes = round(self.model.size_bytes * random.choice([0.75, 1.0, 1.5, 2.5])) + 5 * 64 * self.model.num_layers
        return SimulatedShard(self.world, self.network, self, self.model, name, room_bytes, 1e-9 * random.choice([1.0, 1.0, 2.0, 5.0]))

    def _start_coordinator(self) -> SimulatedCoordinator:
        return SimulatedCoordinator(self.world, self.network, self.model, self.min_shards, self.shards.get)

    # -- what shards reach

    def connect(self, shard: SimulatedShard) -> Stream[Action | Event | ShardHello] | None:
        if not self.coordinator.is_alive:
            return None
        self._num_leases += 1
        return self.coordinator.connect(shard, self._num_leases)

    def find(self, name: str) -> SimulatedShard | None:
        return self.shards.get(name)

    def receive(self, frame: Frame) -> None:
        self.coordinator.receive(frame)

    # -- a run

    def run(self) -> None:
        """Raises Wrong."""
        random = self.world.random
        for shard in self.shards.values():
            self.world.after(random.uniform(0.0, 1.5), shard.start)
        for _ in range(random.randint(1, 8)):
            self.world.after(random.uniform(FAULTS_FROM_S, FAULTS_UNTIL_S), self._fail_something)
        for _ in range(random.randint(1, 4)):
            self.world.after(random.uniform(0.0, FAULTS_UNTIL_S), self._submit)
        self.world.run_until(FAULTS_UNTIL_S)
        self._heal()
        while self.world.now_s < END_S and not self._is_over():
            self.world.run_until(self.world.now_s + STEP_S)
        phase, reason = self.coordinator.machine.phase, self.coordinator.machine.reason
        self.world.require(phase in (Phase.SERVING, Phase.PREPARING), f"it does not serve: {phase.value}, {reason}")
        for sequence in self.submitted:
            have = f"{len(sequence.generated)} of {sequence.num_tokens} tokens"
            self.world.require(sequence.is_done, f"sequence {sequence.number} has {have}")

    def _is_over(self) -> bool:
        is_serving = self.coordinator.machine.phase is Phase.SERVING
        return is_serving and self.world.now_s >= FAULTS_UNTIL_S + 2 * STEP_S and all(sequence.is_done for sequence in self.submitted)

    def _submit(self) -> None:
        if not self.coordinator.is_alive:
            return
        random = self.world.random
        self._num_sequences += 1
        prompt = tuple(random.randrange(1000) for _ in range(random.randint(1, 8)))
        sequence = Sequence(self._num_sequences, prompt, random.choice([5, 20, 50]))
        self.submitted.append(sequence)
        self.coordinator.submit(sequence)

    def _heal(self) -> None:
        """The faults are over: who is down starts, who left comes back, people want everything to be used."""
        self.world.say("-- no more faults")
        if not self.coordinator.is_alive:
            self.coordinator = self._start_coordinator()
        for shard in self.shards.values():
            shard.frozen_until_s, shard.slowness = 0.0, 1.0
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
        random = self.world.random
        shard = random.choice(list(self.shards.values()))
        to_one = [self._crash, self._crash, self._freeze, self._cut, self._drain, self._cordon, self._slow, self._configure]
        faults = [*to_one, self._restart_coordinator]
        fault = random.choice(faults)
        if shard.is_alive or fault == self._restart_coordinator:
            fault(shard)

    def _crash(self, shard: SimulatedShard) -> None:
        shard.crash()
        self.world.after(self.world.random.choice([0.3, 2.0, 20.0]), lambda: None if shard.is_alive else shard.start())

    def _freeze(self, shard: SimulatedShard) -> None:
        shard.freeze(self.world.random.choice([0.5, 3.0, 8.0]))

    def _cut(self, shard: SimulatedShard) -> None:
        if shard.stream:
            self.world.say(f"the lease of {shard.name} is cut")
            shard.stream.cut()

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
