"""Settings of the programs: flag, else environment, else settings file, else default.

A command takes part by two things:

    @app.command(cls=settings_command("shard"))
    def main(memory: Annotated[str, typer.Option(help=...)] = "auto", config: ConfigFile = None) -> None: ...

Then `--memory` is also read from DAIRLLM_SHARD_MEMORY, from DAIRLLM_MEMORY and from `memory` in section [shard] of the file, which is TOML.
Keys are the flags' names with `-` or `_`. Commands of one section share its keys. A DairllmError that leaves the command becomes one
line on stderr and exit code 2.
"""

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dairllm.mesh.errors import DairllmError, InvalidSetting
from dairllm.mesh.foreign_text import is_text, on_one_line
from dairllm.mesh.process import EXIT_ERROR, report_error
from dairllm.mesh.protocol import software_version

SECTIONS = ("coordinator", "shard", "client")

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_POWERS = {prefix: power for power, prefix in enumerate("kmgtp", 1)}
_UNITS = {
    "": 1,
    "b": 1,
    **{prefix: 1024**power for prefix, power in _POWERS.items()},
    **{f"{prefix}ib": 1024**power for prefix, power in _POWERS.items()},
    **{f"{prefix}b": 1000**power for prefix, power in _POWERS.items()},
}
_MAX_SIZE_BYTES = 2**63 - 1


def parse_size(value: str | int) -> int:
    """Bytes of a size: `2GiB` and `2g` count in 1024, `2GB` in 1000, a bare number is bytes. Fractions are rounded down.

    Raises InvalidSetting.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size_bytes = value
    else:
        match = _SIZE.fullmatch(str(value))
        if match is None or match[2].lower() not in _UNITS:
            raise InvalidSetting(f"size {value!r} is not understood; expected a number and a unit, like 2GiB, 500MB or 1.5g")
        size_bytes = _scaled(match[1], _UNITS[match[2].lower()])
    if not 0 <= size_bytes <= _MAX_SIZE_BYTES:
        raise InvalidSetting(f"size {value!r} is out of range; expected 0 to {_MAX_SIZE_BYTES} bytes")
    return size_bytes


def _scaled(number: str, unit: int) -> int:
    whole, _, fraction = number.partition(".")
    return int(whole or "0") * unit + int(fraction or "0") * unit // int(10 ** len(fraction))


def format_size(size_bytes: int) -> str:
    """For people, with three significant digits: `1.5 GiB`. `parse_size` reads it back."""
    power = min(max(size_bytes.bit_length() - 1, 0) // 10, len(_POWERS))
    if power == 0:
        return f"{size_bytes} B"
    value = size_bytes / 1024**power
    decimals = max(0, 2 - int(math.log10(value)))
    text = f"{value:.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if decimals else text} {'KMGTP'[power - 1]}iB"


def default_settings_path() -> Path | None:
    """$XDG_CONFIG_HOME/dairllm/config.toml. None for a user without a home."""
    configured = os.environ.get("XDG_CONFIG_HOME")
    try:
        return (Path(configured) if configured else Path.home() / ".config") / "dairllm" / "config.toml"
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return None


def read_settings_file(path: Path | None) -> dict[str, dict[str, Any]]:
    """Sections of the file; of the default one, if it exists, for None. Raises InvalidSetting."""
    if path is None:
        path = default_settings_path()
        if path is None or not os.path.exists(path):
            return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"settings file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"settings file {path} is not TOML: {error}") from error
    for name, section in content.items():
        if name not in SECTIONS:
            raise InvalidSetting(f"settings file {path}: section {name!r} is unknown; {_suggestion(name, SECTIONS)}")
        if not isinstance(section, dict):
            raise InvalidSetting(f"settings file {path}: {name!r} is a value; expected a section [{name}]")
    return content


def _suggestion(name: str, known: tuple[str, ...]) -> str:
    nearest = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]!r}?" if nearest else f"expected one of {', '.join(known)}"


_EPILOG = (
    "Every option can also be set in the environment (--log-level as DAIRLLM_LOG_LEVEL) "
    "or in section [{section}] of the settings file (log-level = ...); a flag comes first, then the environment, then the file."
)


class SettingsCommand(TyperCommand):
    """A command whose options are also read from the environment and from a section of the settings file."""

    section: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        options = _options(self)
        assert "config" in options, f"command {self.name} lacks `config: ConfigFile = None`"
        for key, option in options.items():
            if not option.is_eager and option.envvar is None:
                option.envvar = [f"DAIRLLM_{self.section}_{key}".upper(), f"DAIRLLM_{key}".upper()]
                option.show_envvar = False
        self.epilog = self.epilog or _EPILOG.format(section=self.section)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            rest = super().parse_args(ctx, args)
            for param in self.params:
                _check_text(param, ctx.params.get(str(param.name)))
            return rest
        except DairllmError as error:
            report_error(error)
            raise typer.Exit(EXIT_ERROR) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DairllmError as error:
            report_error(error)
            raise typer.Exit(EXIT_ERROR) from error


def settings_command(section: str) -> type[TyperCommand]:
    """Class for `@app.command(cls=...)` of a program whose settings stand in this section of the file."""
    assert section in SECTIONS, section
    return type(f"{section.capitalize()}Command", (SettingsCommand,), {"section": section})


class GroupWithDefault(TyperGroup):
    """A group of commands, one of which is meant where none is named."""

    default: str

    @classmethod
    def of(cls, default: str) -> "type[GroupWithDefault]":
        """Class for `typer.Typer(cls=...)`."""
        return type(cls.__name__, (cls,), {"default": default})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names_none = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, [self.default, *args] if names_none else args)


def _check_text(param: Any, value: object) -> None:
    """All but paths is sent, or shown to others."""
    if isinstance(value, str) and not is_text(value) and "PATH" not in (param.metavar or ""):
        name = param.opts[0] if param.param_type_name == "option" else f"the {param.name}"
        raise InvalidSetting(f"{name} is {on_one_line(value)!r}; expected text in UTF-8")


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"dairllm {software_version()}")
        raise typer.Exit


def _options(command: Any) -> dict[str, Any]:
    """Options that the command's function takes, by their long flag written with `_`."""
    named = {}
    for param in command.params:
        flags = [flag for flag in param.opts if flag.startswith("--")]
        if param.param_type_name == "option" and param.expose_value and flags:
            named[flags[0].removeprefix("--").replace("-", "_")] = param
    return named


def _take_defaults_from_file(ctx: typer.Context, path: Path | None) -> Path | None:
    command = ctx.command
    assert isinstance(command, SettingsCommand), "ConfigFile needs a command of class settings_command(...)"
    values = read_settings_file(path).get(command.section, {})
    options = _options(command)
    ctx.default_map = _checked_values(values, options, _keys_of_section(ctx), f"settings file {path or default_settings_path()}", ctx)
    return path


def _keys_of_section(ctx: typer.Context) -> tuple[str, ...]:
    """Keys that any command of this section knows: `dairllm chat` must accept the keys of `dairllm bench`."""
    section = getattr(ctx.command, "section", None)
    commands = [command for command in _commands_under(ctx.find_root().command) if getattr(command, "section", None) == section]
    return tuple(sorted({key for command in commands for key, option in _options(command).items() if not option.is_eager}))


def _commands_under(command: Any) -> Iterator[Any]:
    yield command
    for child in getattr(command, "commands", {}).values():
        yield from _commands_under(child)


def _checked_values(
    values: Mapping[str, Any], options: Mapping[str, Any], known: tuple[str, ...], file: str, ctx: typer.Context
) -> dict[str, Any]:
    checked = {}
    for written, value in values.items():
        key = written.replace("-", "_")
        if key not in known:
            raise InvalidSetting(f"{file}: key {written!r} is unknown; {_suggestion(key, known)}")
        if key in options and not options[key].is_eager:
            _check_value(f"{file}: {written} is {value!r}", value, options[key], ctx)
            checked[options[key].name] = value
    return checked


def _check_value(where: str, value: Any, option: Any, ctx: typer.Context) -> None:
    try:
        converted = option.process_value(ctx, value)
    except (typer.BadParameter, TypeError, ValueError) as error:
        raise InvalidSetting(f"{where}; {error}") from error
    single = not (option.multiple or option.nargs != 1)
    is_bool, wants_bool = isinstance(value, bool), isinstance(converted, bool)
    cut = isinstance(value, float) and isinstance(converted, int)
    if (single and isinstance(value, list | dict)) or cut or is_bool != wants_bool:
        raise InvalidSetting(f"{where}; expected a value as for --{option.opts[0].removeprefix('--')}")


Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and end.")]

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=_take_defaults_from_file,
        envvar="DAIRLLM_CONFIG",
        help="Settings file. Default: dairllm/config.toml in the user's configuration folder.",
    ),
]
