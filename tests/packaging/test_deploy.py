"""Files for running dairllm for good, as far as they can be checked without running them."""

import re
import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MODULES = {"dairllm-coordinator": "dairllm.coordinator.main", "dairllm-shard": "dairllm.shard_service.main"}


def flags_of(program: str) -> set[str]:
    """The long flags that the program explains."""
    command = [sys.executable, "-m", MODULES[program], "--help"]
    environment = {"COLUMNS": "200", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return set(re.findall(r"--[a-z][a-z-]+", result.stdout))


def read_unit(path: Path) -> RawConfigParser:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[method-assign,assignment]
    unit.read_string(path.read_text())
    return unit


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_there_is_a_unit_for_each_service() -> None:
    assert [path.name for path in UNITS] == ["dairllm-coordinator.service", "dairllm-shard.service"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_unit(path: Path, tmp_path: Path) -> None:
    """With a program that exists in the place of ours, since ours is not installed in /opt here."""
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text()))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in result.stderr.splitlines() if path.name in line]
    assert not complaints, result.stderr


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_unit_starts_our_program_with_flags_that_it_has(path: Path) -> None:
    program, *flags = read_unit(path)["Service"]["ExecStart"].split()
    assert program == f"/opt/dairllm/bin/{path.stem}"
    assert set(flags) <= flags_of(path.stem)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_unit_gives_no_rights_away(path: Path) -> None:
    service = read_unit(path)["Service"]
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["CacheDirectory"] in service["Environment"]


def test_compose_has_one_coordinator_and_two_shards_with_flags_that_exist() -> None:
    services = compose()["services"]
    assert sorted(services) == ["coordinator", "shard-1", "shard-2"]
    for service in services.values():
        program, *arguments = service["command"]
        flags = {argument for argument in arguments if argument.startswith("--")}
        assert flags <= flags_of(program)
        assert service["cap_drop"] == ["ALL"]


def test_compose_builds_the_image_of_this_repository() -> None:
    build = compose()["services"]["coordinator"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_compose_names_every_volume_that_it_mounts() -> None:
    project = compose()
    mounted = {volume.split(":")[0] for service in project["services"].values() for volume in service["volumes"]}
    assert mounted == set(project["volumes"])


def test_the_image_has_two_stages_and_ends_as_an_ordinary_user() -> None:
    instructions = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text()).splitlines()
    words = [line.split(maxsplit=1) for line in instructions if line and not line.startswith("#")]
    assert [name for name, _ in words if name == "FROM"] == ["FROM", "FROM"]
    users = [rest for name, rest in words if name == "USER"]
    assert users == ["dairllm"]
    order = [name for name, _ in words]
    assert order.index("USER") > len(order) - 1 - order[::-1].index("FROM")
    assert order[-1] == "CMD"


def test_what_the_image_is_built_from_is_in_its_context() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "protos", "kernels_pyx", "mesh", "client"}
    assert needed <= kept
    assert all((ROOT / name).exists() for name in kept)
