import itertools
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from dairllm.mesh.errors import InvalidSetting
from dairllm.mesh.settings import ConfigFile, default_settings_path, format_size, parse_size, read_settings_file, settings_command

app = typer.Typer()


@app.command(cls=settings_command("shard"))
def shard(
    port: Annotated[int, typer.Option(help="a number")] = 1,
    memory: Annotated[str, typer.Option(help="a text")] = "auto",
    probe: Annotated[bool, typer.Option(help="a switch")] = True,
    model_dirs: Annotated[list[str] | None, typer.Option("--model-dir", help="a list")] = None,
    config: ConfigFile = None,
) -> None:
    if port == 13:
        raise InvalidSetting("port 13 is unlucky")
    typer.echo(f"port={port} memory={memory} probe={probe} model_dirs={model_dirs or []}")


several = typer.Typer()


@several.command(cls=settings_command("client"))
def chat(url: str = typer.Option("none"), config: ConfigFile = None) -> None:
    typer.echo(f"chat {url}")


@several.command(cls=settings_command("client"))
def bench(url: str = typer.Option("none"), tokens: int = typer.Option(0), config: ConfigFile = None) -> None:
    typer.echo(f"bench {url} {tokens}")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's configuration folder without a file, and an environment without settings."""
    for name in ("DAIRLLM_CONFIG", "DAIRLLM_PORT", "DAIRLLM_SHARD_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def invoke(file: Path, text: str, *arguments: str, env: dict[str, str] | None = None, program: typer.Typer = app) -> Result:
    file.write_text(text)
    return CliRunner().invoke(program, [*arguments, *(() if "--config" in arguments else ("--config", str(file)))], env=env)


@pytest.mark.parametrize("present", [set(combination) for n in range(5) for combination in itertools.combinations(range(4), n)])
def test_flag_before_environment_before_file_before_default(home: Path, present: set[int]) -> None:
    flag = ["--port", "50"] if 0 in present else []
    env = ({"DAIRLLM_SHARD_PORT": "40"} if 1 in present else {}) | ({"DAIRLLM_PORT": "30"} if 2 in present else {})
    text = "[shard]\nport = 20\n" if 3 in present else ""
    expected = {0: 50, 1: 40, 2: 30, 3: 20}[min(present)] if present else 1
    result = invoke(home / "file.toml", text, *flag, env=env)
    assert result.output == f"port={expected} memory=auto probe=True model_dirs=[]\n"


def test_values_of_every_kind(home: Path) -> None:
    text = '[shard]\nport = 2\nmemory = "2GiB"\nprobe = false\nmodel-dir = ["a", "b"]\n[coordinator]\nport = 5\n'
    assert invoke(home / "file.toml", text).output == "port=2 memory=2GiB probe=False model_dirs=['a', 'b']\n"
    assert "model_dirs=['c']" in invoke(home / "file.toml", text, "--model-dir", "c").output
    assert "probe=True" in invoke(home / "file.toml", text, "--probe").output


def test_the_default_file_is_read_and_may_be_missing(home: Path) -> None:
    assert CliRunner().invoke(app, []).output.startswith("port=1 ")
    path = home / "dairllm" / "config.toml"
    assert default_settings_path() == path
    path.parent.mkdir()
    path.write_text("[shard]\nport = 7\n")
    assert CliRunner().invoke(app, []).output.startswith("port=7 ")
    other = home / "other.toml"
    other.write_text("[shard]\nport = 8\n")
    assert CliRunner().invoke(app, [], env={"DAIRLLM_CONFIG": str(other)}).output.startswith("port=8 ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[shard]\nprot = 1", "key 'prot' is unknown; did you mean 'port'?"),
        ("[shard]\nzzzzzz = 1", "expected one of memory, model_dir, port, probe"),
        ("[shard]\nconfig = 'x'", "key 'config' is unknown"),
        ("[shrad]\nport = 1", "section 'shrad' is unknown; did you mean 'shard'?"),
        ("shard = 1", "'shard' is a value; expected a section [shard]"),
        ("[shard]\nport = 'x'", "port is 'x'; "),
        ("[shard]\nport = true", "port is True; "),
        ("[shard]\nport = 1.5", "port is 1.5; "),
        ("[shard]\nport = [1]", "port is [1]; "),
        ("[shard]\nprobe = 1", "probe is 1; "),
        ("[shard]\nmemory = ['a']", "memory is ['a']; "),
        ("[shard.memory]\na = 1", "memory is {'a': 1}; "),
        ("[shard]\nmodel-dir = 'a'", "model-dir is 'a'; "),
        ("[shard", "is not TOML"),
    ],
)
def test_a_wrong_line_is_named(home: Path, text: str, expected: str) -> None:
    result = invoke(home / "file.toml", text)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert str(home / "file.toml") in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_named_file_must_exist(home: Path) -> None:
    result = CliRunner().invoke(app, ["--config", str(home / "none.toml")])
    assert result.exit_code == 2
    assert f"settings file {home / 'none.toml'} can't be read: No such file" in result.stderr
    with pytest.raises(InvalidSetting, match="can't be read"):
        read_settings_file(home)


def test_an_error_of_the_command_is_one_line(home: Path) -> None:
    result = invoke(home / "file.toml", "", "--port", "13")
    assert result.exit_code == 2
    assert result.stderr.endswith(": port 13 is unlucky\n")
    assert result.stderr.count("\n") == 1


def test_commands_of_one_section_share_its_keys(home: Path) -> None:
    text = "[client]\nurl = 'u'\ntokens = 5\n"
    assert invoke(home / "file.toml", text, "chat", program=several).output == "chat u\n"
    assert invoke(home / "file.toml", text, "bench", program=several).output == "bench u 5\n"
    assert (
        "'token' is unknown; did you mean 'tokens'" in invoke(home / "file.toml", "[client]\ntoken = 5\n", "chat", program=several).stderr
    )


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("17", 17),
        ("17B", 17),
        ("1k", 1024),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("500MB", 500_000_000),
        ("2GiB", 2 * 1024**3),
        ("1.5g", 3 * 1024**3 // 2),
        (" 1.5 GiB ", 3 * 1024**3 // 2),
        (".5k", 512),
        ("0.1k", 102),
        ("1T", 1024**4),
        (3, 3),
    ],
)
def test_sizes(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "GiB", "1.", "1..5g", "-1", -1, "1e3", "1 2", "2GiBs", "0x10", "inf", "nan", "٣", True, "99999999999g"]
)
def test_sizes_that_are_none(text: str | int) -> None:
    with pytest.raises(InvalidSetting, match="size"):
        parse_size(text)


@given(st.integers(0, 2**50), st.sampled_from(["", "B", "k", "KiB", "kb", "m", "MiB", "GB"]))
def test_a_whole_number_is_exact(number: int, unit: str) -> None:
    factor = {"": 1, "b": 1, "k": 1024, "kib": 1024, "kb": 1000, "m": 1024**2, "mib": 1024**2, "gb": 1000**3}[unit.lower()]
    if number * factor < 2**63:
        assert parse_size(f"{number}{unit}") == number * factor


@given(st.integers(0, 2**63 - 1))
def test_a_size_for_people_reads_back_within_its_digits(size_bytes: int) -> None:
    text = format_size(size_bytes)
    assert abs(parse_size(text) - size_bytes) <= size_bytes * 0.006 if size_bytes < 2**62 else text.endswith("PiB")
    assert len(text.split()[0].replace(".", "")) <= 4


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_error(text: str) -> None:
    message = repr(text)
    try:
        assert parse_size(text) >= 0
    except InvalidSetting as refusal:
        message = refusal.message
    assert repr(text) in message


def test_sizes_for_people() -> None:
    assert [format_size(n) for n in (0, 1023, 1024, 1536, 10 * 1024**2, 1024**3 * 3 // 2)] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "10 MiB", "1.5 GiB",
    ]  # fmt: skip
