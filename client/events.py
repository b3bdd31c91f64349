"""`dairllm events`: what has happened to the cluster."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, JsonOption, connect
from dairllm.mesh.foreign_text import message_on_one_line
from dairllm.mesh.message_json import message_to_json
from dairllm.mesh.settings import ConfigFile
from dairllm.mesh.terminal import console
from dairllm.v1 import cluster_pb2

NUM_RECENT = 5
"""So many stand at the end of `dairllm status`."""

_RED, _YELLOW, _GREEN = ("lost", "failed"), ("left", "refused", "waiting"), ("serving", "recovered", "resumed", "opened")
_STYLES = {**dict.fromkeys(_RED, "red"), **dict.fromkeys(_YELLOW, "yellow"), **dict.fromkeys(_GREEN, "green")}
"""By words in the kind of an event."""


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new ones until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Show joins, losses, moves and recoveries of late, oldest first. With --json: one object a line."""
    screen = console()
    with connect(coordinator, cluster) as client:
        states: Iterable[cluster_pb2.ClusterState] = client.watch_cluster() if follow else [client.cluster()]
        try:
            for event in new_events(state.events for state in states):
                if as_json:
                    print(json.dumps(message_to_json(event)), flush=True)
                else:
                    screen.print(event_line(event), soft_wrap=True)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def new_events(lists: Iterable[Sequence[cluster_pb2.ClusterEvent]]) -> Iterator[cluster_pb2.ClusterEvent]:
    """Each event once, and again when it has happened again, of lists that each hold those of late, oldest first."""
    newest = -1
    for latest in lists:
        yield from (event for event in latest if event.number > newest)
        newest = max((event.number for event in latest), default=newest)


def event_line(event: cluster_pb2.ClusterEvent) -> Text:
    """Clock time here, what happened, how long it took: '14:03:07.120  shard b has joined'."""
    event = message_on_one_line(event)
    when = datetime.fromtimestamp(event.time_s).strftime("%H:%M:%S.%f")[:-3]
    style = next((style for word, style in _STYLES.items() if word in event.kind), "")
    line = Text.assemble((when, "dim"), "  ", (event.text, style))
    if event.times > 1:
        line.append(f"  ({event.times} times)", style="dim")
    if event.duration_s:
        line.append(f"  ({event.duration_s:.2f} s)", style="dim")
    return line
