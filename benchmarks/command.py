"""How the benchmarks run as commands."""

import logging
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from dairllm.mesh.errors import DairllmError
from dairllm.mesh.process import EXIT_ERROR, report_error
from dairllm.model_files.errors import ModelFileError

TABLE_WIDTH = 130
WITHOUT_REUSE = ("--prefix-reuse", "off")
"""For coordinators: a prompt that is asked again is computed again."""


def show(*tables: Table) -> None:
    """On a narrow terminal lines wrap: a figure that is cut off helps nobody."""
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)
    for table in tables:
        console.print(table, "")


def run(command: Callable[..., Any]) -> None:
    """Parse the arguments and run; what the user can put right is one line on stderr."""
    logging.basicConfig(level=logging.WARNING)
    try:
        typer.run(command)
    except DairllmError as error:
        report_error(error)
        raise SystemExit(EXIT_ERROR) from None
    except ModelFileError as error:
        report_error(DairllmError(str(error)))
        raise SystemExit(EXIT_ERROR) from None
