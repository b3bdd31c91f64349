"""The command `dairllm-coordinator`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from dairllm.coordinator.http.gate.hosts import checked_host
from dairllm.coordinator.http.gate.origins import checked_origin
from dairllm.coordinator.prefix_reuse import PrefixReuse
from dairllm.coordinator.service import run_coordinator
from dairllm.coordinator.settings import CoordinatorSettings
from dairllm.kernels_pyx import KV_ELEMENT_TYPES, QUANTIZED_FORMATS, WIRE_ENCODINGS
from dairllm.mesh.addresses import DEFAULT_GRPC_PORT
from dairllm.mesh.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from dairllm.mesh.cache_types import parse_cache_type
from dairllm.mesh.cluster_name import DEFAULT_CLUSTER_NAME
from dairllm.mesh.encodings import encoding_name, parse_encoding
from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.process import run_until_signal
from dairllm.mesh.settings import ConfigFile, Version, parse_size, settings_command
from dairllm.mesh.system_memory import require_budget
from dairllm.mesh.telemetry import configure_logging
from dairllm.mesh.terminal import run_program
from dairllm.model_files.pretokenizers import PRETOKENIZERS

DEFAULT_HTTP_PORT = 8080
MAX_RECOVERY_LIMIT_S = 86400

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(cls=settings_command("coordinator"))
def coordinator(
    model: Annotated[
        str,
        typer.Option(
            metavar="PATH|NAME|URL",
            help="A model's file or folder, a short name such as smollm2:135m, hf:OWNER/NAME[:FILE or type], or https://HOST/FILE.gguf.",
        ),
    ],
    model_name: Annotated[str | None, typer.Option(help="What clients call the model. Default: its name, or its file's name.")] = None,
    assume_pretokenizer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="How text is cut into words where a GGUF file names no pre-tokenizer, or one that is not known, as qwen2."
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help=f"Matrices in F32, F16 or BF16 are made {' or '.join(QUANTIZED_FORMATS)} while they are loaded. Default: no.",
        ),
    ] = None,
    wire: Annotated[
        str,
        typer.Option(help=f"What rounds activations between any two layers, and carries them: {', '.join(WIRE_ENCODINGS)}. F32 is exact."),
    ] = DEFAULT_ARITHMETIC.wire,
    http_host: Annotated[str, typer.Option(help="Address of the API and the status page; 0.0.0.0 for every interface.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one.")] = DEFAULT_HTTP_PORT,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name of the API, such as *.example.com. Known are localhost and, unless it listens at loopback only, "
            "addresses and the machine's own name.",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Pages of this origin may use the API, such as http://localhost:3000, or *. Default: none."),
    ] = None,
    grpc_host: Annotated[str, typer.Option(help="Address for shards and gRPC clients. Default: every interface.")] = "",
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 picks a free one.")] = DEFAULT_GRPC_PORT,
    cluster: Annotated[str, typer.Option(help="Name of the cluster: only shards with the same name join.")] = DEFAULT_CLUSTER_NAME,
    min_shards: Annotated[int, typer.Option(min=1, help="Wait for this many shards before the first plan, and use as many.")] = 1,
    context_length: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt and answer together, in tokens. Default: the model's, at most 8192.")
    ] = None,
    kv_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in the cache, of all requests together, where memory allows. Default: 4 contexts."),
    ] = None,
    kv_cache: Annotated[
        str,
        typer.Option(help=f"What keys and values are kept in: {', '.join(KV_ELEMENT_TYPES)}. F32 takes twice the memory, Q8_0 half."),
    ] = DEFAULT_ARITHMETIC.kv_cache,
    prefix_reuse: Annotated[
        PrefixReuse,
        typer.Option(
            help="Whose requests share what is computed of prompts that begin alike. How long a prompt takes tells whether another one "
            "began as it does: with client, only to who has the same API key or address."
        ),
    ] = PrefixReuse.EVERYONE,
    guesses: Annotated[
        bool,
        typer.Option(
            "--guesses/--no-guesses",
            help="Compute tokens that are likely to come before they are known, where that is faster. Answers are the same.",
        ),
    ] = True,
    max_running: Annotated[int, typer.Option(min=1, max=512, help="Answers that are generated at the same time.")] = 64,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests of one client that may wait; more are refused with 429.")] = 256,
    recovery_limit: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_RECOVERY_LIMIT_S, metavar="SECONDS", help="How long answers wait when too few shards are left, before they fail."
        ),
    ] = 60,
    direct_weights: Annotated[
        bool,
        typer.Option("--direct-weights", help="Shards may fetch their part from where the model was fetched: the hub, or its URL."),
    ] = False,
    local_shard: Annotated[bool, typer.Option("--local-shard/--no-local-shard", help="Compute on this machine, too.")] = True,
    memory: Annotated[str | None, typer.Option(help="Memory for the local shard, like 4GiB. Default: 80 % of what is free.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the local shard. Default: all cores.")] = None,
    discovery: Annotated[
        bool, typer.Option("--discovery/--no-discovery", help="Announce this coordinator on the local network by mDNS.")
    ] = True,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written as soon as the ports listen: a JSON object with pid, grpc and http.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON objects instead of text.")] = False,
    config: ConfigFile = None,
    version: Version = False,
) -> None:
    """Serve a model with the shards that join: an OpenAI-compatible API, a gRPC API and a status page.

    On every other machine run `dairllm-shard`: it finds this coordinator by itself.
    """
    configure_logging(log_level, log_json)
    settings = CoordinatorSettings(
        model=model,
        model_name=model_name,
        assumed_pretokenizer=None if assume_pretokenizer is None else _known_pretokenizer(assume_pretokenizer),
        quantize=None if quantize is None else quantize.upper(),
        arithmetic=Arithmetic(encoding_name(parse_encoding(wire)), parse_cache_type(kv_cache)),
        http_host=http_host,
        http_port=http_port,
        allowed_hosts=tuple(checked_host(name) for name in allowed_host or ()),
        cors_origins=tuple(checked_origin(origin) for origin in cors_origin or ()),
        grpc_host=grpc_host,
        grpc_port=grpc_port,
        cluster=cluster,
        min_shards=min_shards,
        context_length=context_length,
        kv_tokens=kv_tokens,
        prefix_reuse=prefix_reuse,
        guesses=guesses,
        max_running=max_running,
        max_waiting=max_waiting,
        recovery_limit_s=recovery_limit,
        direct_weights=direct_weights,
        local_shard=_local_shard_arguments(memory, threads, log_level, log_json) if local_shard else None,
        discovery=discovery,
        ready_file=ready_file,
    )

    async def run(stop: asyncio.Event) -> None:
        await run_coordinator(settings, stop)

    raise typer.Exit(run_until_signal(run))


def _known_pretokenizer(name: str) -> str:
    if name not in PRETOKENIZERS:
        raise InvalidSetting(f"--assume-pretokenizer is {name[:60]!r}; expected one of {', '.join(PRETOKENIZERS)}")
    return name


def _local_shard_arguments(memory: str | None, threads: int | None, log_level: str, log_json: bool) -> tuple[str, ...]:
    """Wrong values are refused here, before the model is loaded, and not by a child that is started again and again."""
    arguments = ["--log-level", log_level]
    if memory is not None:
        require_budget(parse_size(memory))
        arguments += ["--memory", memory]
    if threads is not None:
        arguments += ["--threads", str(threads)]
    return (*arguments, "--log-json") if log_json else tuple(arguments)


def main() -> None:
    run_program(app)


if __name__ == "__main__":
    main()
