"""All books of one machine."""

from dataclasses import dataclass, field

from dairllm.coordinator.cluster.books.cache_places import CachePlaces
from dairllm.coordinator.cluster.books.journal import Journal
from dairllm.coordinator.cluster.books.links import Links
from dairllm.coordinator.cluster.books.losses import Losses
from dairllm.coordinator.cluster.books.members import Members
from dairllm.coordinator.cluster.books.state import ClusterState
from dairllm.coordinator.cluster.books.step_times import StepTimes
from dairllm.coordinator.cluster.books.waits import Backoff, BetterPlan, PlanTimer, RingPause
from dairllm.coordinator.cluster.books.watch import Watch
from dairllm.coordinator.cluster.config import ClusterConfig


@dataclass(frozen=True, slots=True)
class Books:
    """retries: of rings that broke or could not be opened. retries_beside: of plans that were prepared while answers came, in a row, until
    one of them serves."""

    config: ClusterConfig
    journal: Journal
    members: Members
    links: Links
    retries: Backoff
    retries_beside: Backoff
    state: ClusterState = field(default_factory=ClusterState)
    timer: PlanTimer = field(default_factory=PlanTimer)
    better: BetterPlan = field(default_factory=BetterPlan)
    pause: RingPause = field(default_factory=RingPause)
    cache: CachePlaces = field(default_factory=CachePlaces)
    steps: StepTimes = field(default_factory=StepTimes)
    losses: Losses = field(default_factory=Losses)
    awaited: Watch = field(default_factory=Watch)

    @classmethod
    def of(cls, config: ClusterConfig) -> "Books":
        journal = Journal(config.lease_timeout_s / 2)
        retries, retries_beside = Backoff(config.pause_s), Backoff(config.pause_beside_s)
        return cls(config, journal, Members(config, journal), Links(config), retries, retries_beside)
