"""What happens goes to the cluster machine, one event after the other; what it decides is done."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from dairllm.coordinator.cluster import actions as do
from dairllm.coordinator.cluster import events as on
from dairllm.coordinator.cluster.config import ClusterConfig
from dairllm.coordinator.cluster.machine import ClusterMachine
from dairllm.coordinator.engine.engine import Engine
from dairllm.coordinator.membership.join_streams import JoinStreams
from dairllm.coordinator.membership.orders import Orders
from dairllm.coordinator.membership.reachability import Places
from dairllm.coordinator.membership.ring_life import RingLife
from dairllm.coordinator.model import LoadedModel
from dairllm.coordinator.ring import Ring
from dairllm.mesh.errors import PeerUnreachable, RequestLost

logger = logging.getLogger("dairllm.cluster")

TICK_S = 0.2


class Membership:
    """streams: of those who join. ring_life: of the machine's plans."""

    def __init__(
        self,
        config: ClusterConfig,
        model: LoadedModel,
        machine: ClusterMachine,
        ring: Ring,
        engine: Engine,
        places: Places,
        on_event: Callable[[do.ClusterEvent], None],
    ) -> None:
        self.config = config
        self.machine = machine
        self.streams = JoinStreams(places, self.handle)
        self.ring_life = RingLife(config, ring, engine, places, self.handle)
        self._model = model
        self._engine = engine
        self._orders = Orders(config, model, machine, self.streams, ring, engine)
        self._on_event = on_event
        self._pending: deque[on.Event] = deque()
        self._is_handling = False

    async def run(self) -> None:
        """Tell the machine the time, until cancelled."""
        context_length = self.config.context_length or self._model.manifest.spec.context_length
        self.handle(on.ModelRegistered(self._model.demand(context_length, self.config.arithmetic.kv_cache, self.config.max_batch_rows)))
        while True:
            await asyncio.sleep(TICK_S)
            for awaited in self.ring_life.awaited():
                self.handle(awaited)
            load = self._engine.engine_stats()
            self.handle(on.TimePassed(is_idle=not (load.running or load.waiting)))

    async def stop(self) -> None:
        self.streams.end_all(PeerUnreachable("the coordinator is shutting down"))
        await self.ring_life.stop()

    def handle(self, event: on.Event) -> None:
        """Events that arise while another is handled wait for their turn."""
        self._pending.append(event)
        if self._is_handling:
            return
        self._is_handling = True
        try:
            while self._pending:
                for action in self.machine.handle(self._pending.popleft(), asyncio.get_running_loop().time()):
                    self._perform(action)
        finally:
            self._is_handling = False

    def _perform(self, action: do.Action) -> None:
        match action:
            case do.TellEvent(event):
                logger.info(event.text)
                self._on_event(event)
            case do.AdmitShard(lease=lease):
                self._orders.welcome(self.streams.admit(lease))
            case do.RefuseShard(lease=lease, error=error):
                self.streams.end(lease, error)
            case do.EndLease(name=name, lease=lease, reason=reason):
                self.streams.end(lease, RequestLost(f"the lease of shard {name!r} ended: {reason}; join again"))
            case do.AssignUnits():
                self._orders.assign(action)
            case do.ActivateStage():
                self._orders.activate(action)
            case do.ReleaseShard():
                self._orders.release(action)
            case do.AskToDrain():
                self._orders.ask_to_drain(action)
            case do.AskForProof(name=name, number=number):
                self.streams.challenge(name, number)
            case do.ConfigureLimits():
                self._orders.configure(action)
            case do.OpenRing():
                self.ring_life.start_opening(action)
            case do.CloseRing(graceful=True, epoch=epoch):
                self.ring_life.drain(epoch)
            case do.CloseRing():
                self.ring_life.close()
