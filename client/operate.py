"""Commands that change a running cluster: `dairllm drain`, `cordon`, `uncordon` and `set`."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import typer

from dairllm.client.client import Client
from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, connect
from dairllm.client.status import describe_units
from dairllm.mesh.errors import DeadlineExceeded, InvalidRequest, PeerUnreachable
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile, format_size, parse_size
from dairllm.mesh.terminal import console
from dairllm.mesh.words import counted
from dairllm.v1 import cluster_pb2

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The shard's name, as `dairllm status` shows it.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Also if the model can't be served without it.")]


def drain(
    name: NameArgument,
    force: ForceOption = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest time to wait until it is gone, in seconds.")] = 120.0,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Let a shard hand over its layers and leave, without a disturbance of running answers; wait until it is gone."""
    notes = console(stderr=True)
    with connect(coordinator, cluster) as client:
        client.drain_shard(name, force=force)
        started_s = time.monotonic()
        for line in departure(client, name, timeout):
            notes.print(on_one_line(line), soft_wrap=True)
    print(f"{name} has left the cluster after {time.monotonic() - started_s:.1f} s")


def cordon(
    name: NameArgument,
    force: ForceOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Give a shard no more work while the others suffice; it stays a member. Its layers move to the others."""
    with connect(coordinator, cluster) as client:
        client.cordon_shard(name, True, force=force)
    print(f"{name} gets no more work{'' if force else ' while the others suffice'}, until `dairllm uncordon {name}`")


def uncordon(
    name: NameArgument,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Let a shard work again."""
    with connect(coordinator, cluster) as client:
        client.cordon_shard(name, False)
    print(f"{name} may work again")


def configure(
    context: typer.Context,
    name: NameArgument,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory that it may use, like 4GiB.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute.")] = None,
    force: ForceOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Change the limits of a running shard; the plan follows. They last until the shard ends."""
    # What the environment and the settings file say is meant for programs that start here, not for a shard that runs elsewhere.
    memory = memory if _is_typed(context, "memory") else None
    threads = threads if _is_typed(context, "threads") else None
    if memory is None and threads is None:
        raise InvalidRequest(f"nothing was given to set for {name!r}; expected --memory SIZE, --threads N or both")
    memory_bytes = None if memory is None else parse_size(memory)
    with connect(coordinator, cluster) as client:
        limits = client.configure_shard(name, memory_budget_bytes=memory_bytes, num_threads=threads, force=force)
    print(f"{name} uses at most {format_size(limits.memory_budget_bytes)} of memory and {counted(limits.num_threads, 'thread')}")


def _is_typed(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def departure(client: Client, name: str, timeout_s: float) -> Iterator[str]:
    """One line whenever something changes about a shard that leaves, until it is gone. Raises DeadlineExceeded."""
    last = ""
    hint = f"`dairllm status` shows it, `dairllm drain {name}` waits again"
    try:
        with closing(client.watch_cluster(timeout_s)) as states:
            for state in states:
                shard = next((shard for shard in state.shards if shard.name == name), None)
                if shard is None:
                    return
                line = describe_departure(state, shard)
                if line != last:
                    yield line
                last = line
        raise PeerUnreachable(f"the coordinator stopped telling about shard {name!r}, which may still be leaving; {hint}")
    except DeadlineExceeded:
        raise DeadlineExceeded(f"shard {name!r} has not left within {timeout_s:g} s ({last}); {hint}") from None


def describe_departure(state: cluster_pb2.ClusterState, leaving: cluster_pb2.ShardState) -> str:
    """What a shard that leaves still does, and how far the others are with its layers."""
    held = describe_units(range(leaving.first_unit, leaving.end_unit), state.num_layers)
    loading = [shard for shard in state.shards if shard.name != leaving.name and shard.phase == cluster_pb2.SHARD_PHASE_LOADING]
    progress = ", ".join(_describe_load(shard) for shard in loading)
    parts = [f"{leaving.name} still computes {held}" if leaving.HasField("stage") else f"{leaving.name} has handed over its layers"]
    parts += [f"loading: {progress}"] if progress else []
    parts += [leaving.note] if leaving.note else []
    return "; ".join(parts)


def _describe_load(shard: cluster_pb2.ShardState) -> str:
    total = shard.load.total_bytes
    return f"{shard.name} {shard.load.loaded_bytes / total:.0%}" if total else shard.name
