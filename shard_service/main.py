"""The command `dairllm-shard`."""

from pathlib import Path
from typing import Annotated

import typer

from dairllm.mesh.addresses import parse_address
from dairllm.mesh.cluster_name import DEFAULT_CLUSTER_NAME, cluster_hash
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.process import run_until_signal
from dairllm.mesh.settings import ConfigFile, Version, parse_size, settings_command
from dairllm.mesh.shard_names import default_shard_name
from dairllm.mesh.system_memory import SMALLEST_BUDGET_BYTES, detect_available_bytes, require_budget
from dairllm.mesh.telemetry import configure_logging
from dairllm.mesh.terminal import run_program
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.errors import NoCacheFolder
from dairllm.shard_service.machine.memory import default_budget_bytes
from dairllm.shard_service.service import DRAIN_DEADLINE_S, run_shard
from dairllm.shard_service.settings import ShardSettings

_STOP_DEADLINE_S = DRAIN_DEADLINE_S + 10.0

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(cls=settings_command("shard"))
def shard(
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The coordinator's gRPC address. Default: look for it on the local network.")
    ] = None,
    cluster: Annotated[str, typer.Option(help="Name of the cluster to join.")] = DEFAULT_CLUSTER_NAME,
    name: Annotated[
        str | None,
        typer.Option(help="Name of this shard, unique in the cluster. Default: the host's name, or one like it if that is taken."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: every interface.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 0,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory to use, like 4GiB. Default: 80 % of what is available now.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="Threads that compute. Default: all cores it may use.")] = None,
    model_dir: Annotated[
        list[Path] | None, typer.Option(help="Folder with model files, searched before anything is fetched; may be repeated.")
    ] = None,
    weights_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Most disk space for fetched weights, never over half of what is free; 0 keeps none.")
    ] = "20GiB",
    direct_weights: Annotated[
        bool,
        typer.Option(
            "--direct-weights/--no-direct-weights",
            help="Fetch weights also from where the model is from (its hub, or https://), if the coordinator says so.",
        ),
    ] = True,
    discovery: Annotated[
        bool,
        typer.Option("--discovery/--no-discovery", help="Find the coordinator and be found by mDNS; without it --coordinator is needed."),
    ] = True,
    parent_pid: Annotated[int | None, typer.Option(hidden=True, help="Process that started this one: end when it ends.")] = None,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written as soon as the port listens: a JSON object with pid, grpc (host:port), name and boot_id.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects instead of text.")] = False,
    config: ConfigFile = None,
    version: Version = False,
) -> None:
    """Lend this machine to a dairllm cluster: it joins by itself, loads the layers that it is given and computes them.

    Start it on every machine of the cluster but the one where dairllm-coordinator runs. It may be started and stopped at any time: told to
    stop (SIGTERM, Ctrl-C), it first hands over what it computes; told a second time, it ends at once.
    """
    configure_logging(log_level, log_json)
    if coordinator is None and not discovery:
        raise InvalidSetting("--no-discovery leaves no way to find the coordinator; expected --coordinator HOST:PORT as well")
    if coordinator is not None:
        parse_address(coordinator)
    cluster_hash(cluster)
    try:
        cache_folder()
    except NoCacheFolder as error:
        raise InvalidSetting(str(error)) from error
    for folder in model_dir or ():
        if not folder.is_dir():
            raise InvalidSetting(f"--model-dir {folder} is no folder; expected one with model files")
    settings = ShardSettings(
        cluster=cluster,
        name=name or default_shard_name(),
        is_named=bool(name),
        budget_bytes=_budget_bytes(memory),
        coordinator=coordinator,
        discovery=discovery,
        host=host,
        port=port,
        threads=threads,
        model_dirs=tuple(model_dir or ()),
        weights_cache_bytes=parse_size(weights_cache),
        direct_weights=direct_weights,
        ready_file=ready_file,
    )
    raise typer.Exit(run_until_signal(lambda stop: run_shard(settings, stop), parent_pid=parent_pid, stop_timeout_s=_STOP_DEADLINE_S))


def _budget_bytes(memory: str | None) -> int:
    if memory is None:
        return max(default_budget_bytes(detect_available_bytes()), SMALLEST_BUDGET_BYTES)
    return require_budget(parse_size(memory))


def main() -> None:
    run_program(app)


if __name__ == "__main__":
    main()
