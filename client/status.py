"""`dairllm status`: the cluster as a table, or as JSON for programs."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dairllm.client.events import NUM_RECENT, event_line
from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, JsonOption, connect
from dairllm.mesh.foreign_text import message_on_one_line
from dairllm.mesh.message_json import enum_to_json, message_to_json
from dairllm.mesh.settings import ConfigFile, format_size
from dairllm.mesh.terminal import console
from dairllm.v1 import cluster_pb2

TABLE_WIDTH = 110
"""On narrower terminals a table would break its lines."""


def status(
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show every change until Ctrl-C.")] = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Show the machines of the cluster, what each computes, and how fast."""
    with connect(coordinator, cluster) as client:
        states: Iterable[cluster_pb2.ClusterState] = client.watch_cluster() if watch else [client.cluster()]
        show = show_json if as_json else show_tables
        try:
            show(states)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def show_json(states: Iterable[cluster_pb2.ClusterState]) -> None:
    for state in states:
        print(json.dumps(message_to_json(state)), flush=True)


def show_tables(states: Iterable[cluster_pb2.ClusterState]) -> None:
    screen = console()
    if not sys.stdout.isatty():
        for state in states:
            screen.print(render(state))
        return
    with Live(console=screen, auto_refresh=False) as live:
        for state in states:
            live.update(render(state), refresh=True)


def render(told: cluster_pb2.ClusterState) -> RenderableType:
    """What is said of each shard in words stands below the table, where there is room for it."""
    state = message_on_one_line(told)
    in_ring_order = sorted(state.shards, key=lambda shard: (not shard.HasField("stage"), shard.stage, shard.name))
    shards = _Shards(in_ring_order, state.num_layers) if state.shards else Text("no shards yet", style="dim")
    parts: list[RenderableType] = [_headline(state), _speed_line(state), *_streaming_lines(state), *_answers_lines(state), Text(""), shards]
    notes = [Text.assemble("  ", (shard.name, "yellow"), f": {shard.note}") for shard in in_ring_order if shard.note]
    parts += [Text(""), *notes] if notes else []
    if state.lost:
        parts += [Text(""), Text("lost:", style="bold"), *(_lost_line(shard, state.num_layers) for shard in state.lost)]
    if state.seen:
        parts += [Text(""), Text("seen, but no members:", style="bold"), *(_seen_line(shard) for shard in state.seen)]
    if state.events:
        parts += [Text(""), *(event_line(event) for event in state.events[-NUM_RECENT:])]
    return Group(*parts)


class _Shards:
    """A table, or on narrow terminals two lines for each."""

    def __init__(self, shards: Sequence[cluster_pb2.ShardState], num_layers: int) -> None:
        self._rows = [_shard_row(shard, num_layers) for shard in shards]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= TABLE_WIDTH:
            table = Table(*_Row._fields, box=None, header_style="bold", pad_edge=False)
            for row in self._rows:
                table.add_row(*row)
            yield table
            return
        widest = max(len(row.shard) for row in self._rows)
        for row in self._rows:
            yield Text.assemble(f"{row.stage:>2}  ", (row.shard.ljust(widest), "bold"), f"  {row.state}  {row.computes}")
            about = row.memory, row.threads, f"step {row.step}, planned {row.planned}", f"trip {row.trip}"
            yield Text("    " + " · ".join(about), style="dim")


def _headline(state: cluster_pb2.ClusterState) -> Text:
    phase = enum_to_json(cluster_pb2.ClusterPhase.DESCRIPTOR, state.phase)
    style = {"serving": "bold green", "loading": "bold yellow"}.get(phase, "bold red")
    text = Text.assemble((state.model or "no model", "bold"), " is ", (phase, style))
    if state.reason:
        text.append(f": {state.reason}")
    return text


def _speed_line(state: cluster_pb2.ClusterState) -> Text:
    parts = [f"{state.num_layers} layers", format_size(state.model_size_bytes), f"epoch {state.epoch}"]
    if state.predicted_decode_tok_s:
        parts.append(f"{state.predicted_decode_tok_s:.1f} tok/s planned")
    if state.measured_decode_tok_s:
        parts.append(f"{state.measured_decode_tok_s:.1f} tok/s measured")
    parts.append(f"{state.running_sequences} running, {state.waiting_sequences} waiting")
    if state.kv_blocks_total:
        parts.append(f"KV cache {state.kv_blocks_total - state.kv_blocks_free}/{state.kv_blocks_total} blocks")
    return Text(" · ".join(parts), style="dim")


def _streaming_lines(state: cluster_pb2.ClusterState) -> Iterator[Text]:
    """Where machines have too little memory: what that costs."""
    if state.memory_for_all_bytes:
        size_bytes = sum(shard.streamed_bytes for shard in state.shards)
        streams = f"streams {format_size(size_bytes)} of {format_size(state.model_size_bytes)} a token"
        more = f"{format_size(state.memory_for_all_bytes)} more memory would give {state.in_memory_decode_tok_s:.1f} tok/s"
        yield Text(f"{streams}: {more}", style="yellow")
    for shard in state.shards:
        if shard.expert_places:
            yield _experts_line(shard)
        if shard.usage.streamed_bytes and shard.usage.rows:
            read_bytes, waited_ms = shard.usage.streamed_bytes // shard.usage.rows, shard.usage.stalled_us / shard.usage.rows / 1e3
            yield Text(f"{shard.name}, a token so far: {format_size(read_bytes)} read, {waited_ms:.1f} ms waited", style="dim")


def _experts_line(shard: cluster_pb2.ShardState) -> Text:
    chosen = shard.usage.experts_found + shard.usage.experts_missed
    hits = f", {shard.usage.experts_found / chosen:.0%} of those that were chosen were there" if chosen else ""
    text = Text(f"{shard.name} has {shard.expert_places} experts in memory{hits}", style="dim")
    if shard.expert_places < shard.experts_touched:
        text.append(f"; a token uses {shard.experts_touched}: with fewer than that nearly every one is read anew", style="yellow")
    return text


def _answers_lines(state: cluster_pb2.ClusterState) -> Iterator[Text]:
    """What answers depend on, if there is a model: those of clusters with one fingerprint are equal, whatever their plans and machines."""
    if state.system_fingerprint:
        yield Text(f"{state.system_fingerprint} · model {state.model_digest.hex()[:12]} · arithmetic {state.arithmetic}", style="dim")


def _lost_line(shard: cluster_pb2.LostShard, num_layers: int) -> Text:
    when = datetime.fromtimestamp(shard.since_time_s).strftime("%H:%M:%S")
    had = describe_units(range(shard.first_unit, shard.end_unit), num_layers)
    return Text.assemble("  ", (shard.name, "red"), f" {shard.reason}, at {when}; it computed {had}")


def _seen_line(shard: cluster_pb2.SeenShard) -> Text:
    since = datetime.fromtimestamp(shard.since_time_s).strftime("%H:%M:%S")
    name = shard.name or "a shard without a name"
    return Text.assemble("  ", (name, "yellow"), f" at {' or '.join(shard.addresses)}, since {since}: {shard.reason}")


class _Row(NamedTuple):
    """The columns. step: measured; trip: of a heartbeat, there and back."""

    stage: str
    shard: str
    state: str
    computes: str
    memory: str
    threads: str
    step: str
    planned: str
    trip: str


def _shard_row(shard: cluster_pb2.ShardState, num_layers: int) -> _Row:
    used_bytes = shard.usage.weights_bytes + shard.usage.kv_cache_bytes + shard.usage.scratch_bytes
    rate = f" at {1e-9 / shard.stream_s_per_byte:.1f} GB/s" if shard.stream_s_per_byte else ""
    streams = f", streams {format_size(shard.streamed_bytes)}{rate}" if shard.streamed_bytes else ""
    return _Row(
        stage=str(shard.stage) if shard.HasField("stage") else "-",
        shard=shard.name,
        state=_describe_phase(shard),
        computes=describe_units(range(shard.first_unit, shard.end_unit), num_layers) + streams,
        memory=f"{format_size(used_bytes)} of {format_size(shard.capabilities.memory_budget_bytes)}",
        threads=f"{shard.capabilities.num_threads} {shard.capabilities.isa}",
        step=_milliseconds(shard.measured_step_s),
        planned=_milliseconds(shard.predicted_step_s),
        trip=f"{shard.round_trip_us / 1000:.1f} ms" if shard.round_trip_us else "-",
    )


def _describe_phase(shard: cluster_pb2.ShardState) -> str:
    phase = enum_to_json(cluster_pb2.ShardPhase.DESCRIPTOR, shard.phase)
    if phase == "loading" and shard.load.total_bytes:
        return f"loading {shard.load.loaded_bytes / shard.load.total_bytes:.0%}"
    return phase


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds else "-"


def describe_units(units: range, num_layers: int) -> str:
    """Units in words: unit 0 is the embedding, num_layers + 1 the head, e.g. 'embedding, layers 0-14'."""
    parts = ["embedding"] if 0 in units else []
    first, last = max(units.start, 1) - 1, min(units.stop - 1, num_layers) - 1
    if first <= last:
        parts.append(f"layer {first}" if first == last else f"layers {first}-{last}")
    if num_layers + 1 in units:
        parts.append("head")
    return ", ".join(parts) or "nothing"
