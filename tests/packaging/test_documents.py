"""What the documents speak of is there: links and their anchors, files, make targets, messages and fields of the protocol."""

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import pytest

from dairllm.v1 import cluster_pb2, inference_pb2, model_pb2, ring_pb2, shard_pb2, weights_pb2

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
DOCUMENTS = [path for path in DOCUMENTS if "node_modules" not in path.parts]
SOURCES = r"(?:py|pyi|pyx|pxi|c|h|proto|md|png|toml|yaml|service|js|html)"
PROTOS: tuple[ModuleType, ...] = (cluster_pb2, inference_pb2, model_pb2, ring_pb2, shard_pb2, weights_pb2)

pytestmark = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code_words(document: Path) -> set[str]:
    """Everything between backticks, and every word of a block of code."""
    text = document.read_text()
    blocks = [word for line in re.findall(r"^ {4}(.*)$", text, re.MULTILINE) for word in re.split(r"[\s'\"=]+", line)]
    return {*re.findall(r"`([^`\n]+)`", text), *blocks}


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def files_of_the_project() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode:
        pytest.skip("which files belong to the project is known only in a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def test_links_lead_somewhere(document: Path) -> None:
    missing = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert not missing


def paths(document: Path) -> Iterator[str]:
    for word in code_words(document):
        path = word.removeprefix("./").partition("::")[0]
        begins_here = "/" in path and (ROOT / path.partition("/")[0]).is_dir() and not path.startswith((".venv", "build/"))
        if re.fullmatch(r"[\w./*-]+", path) and not path.startswith(("/", ".")) and (begins_here or re.search(rf"\.{SOURCES}$", path)):
            yield path.rstrip("/")


def test_files_that_are_named_exist(document: Path) -> None:
    """By their path, or by the end of it where the text around says in which folder."""
    files = files_of_the_project()
    known = {*files, *(str(parent) for name in files for parent in Path(name).parents)}
    missing = [path for path in paths(document) if not any(fnmatch(name, path) or fnmatch(name, f"*/{path}") for name in known)]
    assert not missing


def test_make_targets_exist(document: Path) -> None:
    named = set(re.findall(r"^(?: {4}|`)make ([a-z][a-z-]*)|`make ([a-z][a-z-]*)", document.read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {one or other for one, other in named} <= targets


def test_messages_and_methods_have_what_is_said_of_them(document: Path) -> None:
    descriptors = [module.DESCRIPTOR for module in PROTOS]
    members = {name: set(message.fields_by_name) for file in descriptors for name, message in file.message_types_by_name.items()}
    members |= {name: set(service.methods_by_name) for file in descriptors for name, service in file.services_by_name.items()}
    said = [re.match(r"([A-Z]\w+)[.{](\w+)", word) for word in code_words(document)]
    wrong = [match[0] for match in said if match and match[1] in members and match[2] not in members[match[1]]]
    assert not wrong
