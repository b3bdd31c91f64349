"""The `dairllm` command. Packages add commands to it by entry points of the group `dairllm.commands`, as `bench` does, and to
`dairllm models` by those of the group `dairllm.models`."""

import json
import os
from importlib.metadata import entry_points
from typing import Annotated

import typer

from dairllm.client.chat import chat
from dairllm.client.doctor.command import doctor
from dairllm.client.events import events
from dairllm.client.models import served
from dairllm.client.operate import configure, cordon, drain, uncordon
from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, JsonOption, connect
from dairllm.client.status import status
from dairllm.mesh.process import report_line
from dairllm.mesh.settings import ConfigFile, GroupWithDefault, Version, settings_command
from dairllm.mesh.terminal import run_program

EXIT_DEFECT = 70

app = typer.Typer(
    help="Ask a dairllm cluster, look at it, and measure machines. Start one with dairllm-coordinator and dairllm-shard.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

models = typer.Typer(
    cls=GroupWithDefault.of("served"),
    help="The models that the cluster serves (`served`, which may be left out), and those on this machine's disk.",
    rich_markup_mode=None,
)


def tokenize(
    text: Annotated[str, typer.Argument(help="Text to be cut into tokens.")],
    special: Annotated[bool, typer.Option("--special", help="Take special tokens that are written out in the text as such.")] = False,
    as_json: JsonOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Print the token ids of a text."""
    with connect(coordinator, cluster) as client:
        token_ids = client.tokenize(text, parse_special=special)
    print(json.dumps({"token_ids": token_ids}) if as_json else " ".join(map(str, token_ids)))


@app.callback()
def dairllm(
    version: Version = False,
) -> None:
    pass


def add_commands() -> None:
    for command in (chat, status, events, tokenize, drain, cordon, uncordon, doctor):
        app.command(cls=settings_command("client"))(command)
    app.command("set", cls=settings_command("client"))(configure)
    _add_entry_points(app, "dairllm.commands")
    models.command(cls=settings_command("client"))(served)
    _add_entry_points(models, "dairllm.models")
    app.add_typer(models, name="models")


def _add_entry_points(group: typer.Typer, name: str) -> None:
    for entry in sorted(entry_points(group=name), key=lambda entry: entry.name):
        group.command(entry.name, cls=settings_command("client"))(entry.load())


def main() -> None:
    """Run the command line. Nobody sees a traceback unless DAIRLLM_DEBUG is set: a defect is one line, too."""
    try:
        run_program(_run)
    except Exception as error:
        if os.environ.get("DAIRLLM_DEBUG"):
            raise
        report_line(f"defect: {type(error).__name__}: {error} (DAIRLLM_DEBUG=1 shows where)")
        raise SystemExit(EXIT_DEFECT) from None


def _run() -> None:
    add_commands()
    app()


if __name__ == "__main__":
    main()
