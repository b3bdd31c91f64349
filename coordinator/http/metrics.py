"""What Prometheus sees. Counters are kept here, gauges are read from the engine and the cluster when they are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dairllm.coordinator.engine.interface import TokenEngine

CLIENT_GONE_STATUS = 499
"""As nginx counts a client that went away before its answer began."""
PHASES = ("waiting", "loading", "serving")
FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
EVENT_BUCKETS_S = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
NEXT_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ServingMetrics:
    """Registers everything in `registry`; observes latencies for `coordinator.text`."""

    def __init__(self, registry: CollectorRegistry, engine: TokenEngine, cluster: Callable[[], Mapping[str, object]]) -> None:
        self.registry = registry
        self._requests = Counter("dairllm_http_requests", "HTTP requests answered.", ("route", "status"), registry=registry)
        self._first_token = Histogram(
            "dairllm_first_token_seconds",
            "Time from a request to its first token, for every sequence.",
            registry=registry,
            buckets=FIRST_TOKEN_BUCKETS_S,
        )
        self._next_token = Histogram(
            "dairllm_next_token_seconds", "Time between two tokens of a sequence.", registry=registry, buckets=NEXT_TOKEN_BUCKETS_S
        )
        self._events = Counter("dairllm_cluster_events", "What happened to the cluster.", ("kind",), registry=registry)
        self._event_seconds = Histogram(
            "dairllm_cluster_event_seconds",
            "How long it took, of events that take time: loading, pauses of a switch, recoveries.",
            ("kind",),
            registry=registry,
            buckets=EVENT_BUCKETS_S,
        )
        registry.register(_StateCollector(engine, cluster))

    def observe_first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def observe_next_token(self, seconds: float) -> None:
        self._next_token.observe(seconds)

    def count_event(self, kind: str, duration_s: float) -> None:
        self._events.labels(kind).inc()
        if duration_s > 0:
            self._event_seconds.labels(kind).observe(duration_s)

    def count_request(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()


class _StateCollector(Collector):
    def __init__(self, engine: TokenEngine, cluster: Callable[[], Mapping[str, object]]) -> None:
        self._engine = engine
        self._cluster = cluster

    def collect(self) -> Iterable[Metric]:
        yield from self._engine_metrics()
        yield from self._cluster_metrics()

    def _engine_metrics(self) -> Iterable[Metric]:
        stats = self._engine.engine_stats()
        yield CounterMetricFamily("dairllm_prompt_tokens", "Prompt tokens taken in.", stats.prompt_tokens)
        yield CounterMetricFamily("dairllm_generated_tokens", "Tokens generated.", stats.generated_tokens)
        yield CounterMetricFamily(
            "dairllm_kv_reused_tokens", "Tokens that were in the KV cache when they were asked for.", stats.reused_tokens
        )
        yield CounterMetricFamily(
            "dairllm_guessed_tokens", "Tokens that were computed before it was known that they come.", stats.guessed_tokens
        )
        yield CounterMetricFamily("dairllm_guessed_tokens_right", "Guessed tokens that came.", stats.guessed_right)
        yield GaugeMetricFamily("dairllm_running_sequences", "Sequences being computed.", stats.running)
        yield GaugeMetricFamily("dairllm_waiting_sequences", "Sequences in the queue.", stats.waiting)
        yield GaugeMetricFamily("dairllm_kv_blocks", "Blocks of the KV cache.", stats.kv_blocks_total)
        yield GaugeMetricFamily("dairllm_kv_blocks_free", "Blocks of the KV cache that no sequence holds.", stats.kv_blocks_free)
        yield GaugeMetricFamily("dairllm_ready", "1 while requests are served.", float(self._engine.why_unready() is None))

    def _cluster_metrics(self) -> Iterable[Metric]:
        cluster = self._cluster()
        phases = GaugeMetricFamily("dairllm_cluster_phase", "1 for the phase that the cluster is in.", labels=("phase",))
        phase_now = str(cluster.get("phase", "waiting")).lower()
        for phase in dict.fromkeys((*PHASES, phase_now)):
            phases.add_metric((phase,), float(phase == phase_now))
        yield phases
        epoch = cluster.get("epoch")
        yield GaugeMetricFamily("dairllm_cluster_epoch", "Number of the plan.", epoch if isinstance(epoch, int) else 0)
        shards = cluster.get("shards")
        members = shards if isinstance(shards, list | tuple) else []
        yield GaugeMetricFamily("dairllm_cluster_shards", "Shards that are members.", len(members))
        yield from _streaming_metrics(members)


_STREAMING = {
    "streamed_bytes": ("dairllm_shard_streamed_bytes", "Bytes read of weights that have no room in memory.", 1.0),
    "streaming_us": ("dairllm_shard_streaming_seconds", "Time during which a shard read some of them.", 1e-6),
    "stalled_us": ("dairllm_shard_stalled_seconds", "Time for which frames waited for them.", 1e-6),
    "experts_found": ("dairllm_shard_experts_found", "Chosen experts that were in memory, where not all have room.", 1.0),
    "experts_missed": ("dairllm_shard_experts_missed", "Chosen experts that had to be read.", 1.0),
}
"""What shards say of their use: name, help, and what one of it is."""


def _streaming_metrics(shards: Sequence[Mapping[str, Any]]) -> Iterable[Metric]:
    for field, (name, about, unit) in _STREAMING.items():
        family = CounterMetricFamily(name, about, labels=("shard",))
        for shard in shards:
            family.add_metric((str(shard.get("name", "")),), unit * float((shard.get("usage") or {}).get(field, 0)))
        yield family


class CountRequests:
    """ASGI middleware: counts requests by route and status."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = CLIENT_GONE_STATUS

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            self._metrics.count_request(_route_of(scope), status)


def _route_of(scope: Scope) -> str:
    """The path of the route that matched, so that strangers cannot invent labels."""
    return str(getattr(scope.get("route"), "path", "none"))
