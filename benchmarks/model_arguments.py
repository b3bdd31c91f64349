"""What happens with the things that people pass to --model, as a table in Markdown: real coordinators, and the seconds until they answer
or refuse.

    .venv/bin/python benchmarks/model_arguments.py > table.md

All of them are made here, of SmolLM2 and of the tiny models of the tests; the hub is a server of the tests on this machine. `HF_HUB_CACHE`,
`OLLAMA_MODELS` and the caches are folders of their own. Nothing is fetched but SmolLM2 itself, once.
"""

import json
import shutil
import struct
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from command import run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dairllm.model_files.converting.writing import convert_model
from dairllm.model_files.getting.resolve import resolve_model
from tests.instruments.golden import TINY
from tests.instruments.hub import Hub, Repository
from tests.instruments.processes import ManagedProcess
from tests.instruments.stored_models import write_distributed_llama, write_hub_cache, write_ollama_store, write_sharded_folder, write_split

DEADLINE_S = 120.0
COORDINATOR = str(Path(sys.executable).parent / "dairllm-coordinator")


class Thing(NamedTuple):
    """said: how a user would describe it. argument: what follows --model."""

    said: str
    argument: str
    options: tuple[str, ...] = ()


def convert(source: Path, target: Path, element_type: str) -> Path:
    convert_model(source, target, element_type)
    return target


def written(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def linked(path: Path, target: Path) -> str:
    path.symlink_to(target)
    return str(path)


def copied(path: Path, *files: Path) -> str:
    path.mkdir()
    for file in files:
        shutil.copy(file, path)
    return str(path)


def archive(path: Path, member: str) -> str:
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, b"x")
    return str(path)


def other_architecture(model: Path) -> bytes:
    """The same length of name, so that nothing else moves."""
    return model.read_bytes().replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"mamba", 1)


def things(folder: Path, model: Path, hub: Hub) -> list[Thing]:
    """folder: where they come to lie."""
    parts = write_split(model, folder / "split", 3, stem="SmolLM2")
    halves = write_split(model, folder / "halves", 3, stem="SmolLM2")
    halves[1].unlink()
    blob = write_ollama_store(folder / "ollama", model, name="smollm2", tag="135m")
    snapshot = write_hub_cache(folder / "hub", "someone", "SmolLM2-GGUF", [model])
    return [
        Thing("a GGUF file", str(model)),
        Thing("a link to it, without an ending", linked(folder / "model", model)),
        Thing("a folder with one GGUF file", copied(folder / "one", model)),
        Thing(
            "a folder with two",
            copied(folder / "two", model, TINY.parent / "smollm2.json", convert(TINY / "llama", folder / "tiny.gguf", "Q8_0")),
        ),
        Thing("the second part of a split file", str(parts[1])),
        Thing("a part whose neighbour is missing", str(halves[0])),
        Thing("a Hugging Face folder (Qwen 3)", str(TINY / "qwen3")),
        Thing("the same, in several files, in BF16", str(write_sharded_folder(TINY / "qwen3", folder / "sharded", 3, "BF16"))),
        Thing("its config.json", str(TINY / "qwen3" / "config.json")),
        Thing("a folder of gpt-oss, with --quantize Q8_0", str(TINY / "gpt-oss"), ("--quantize", "Q8_0")),
        Thing("the same as GGUF, Q4_0, by `dairllm models convert`", str(convert(TINY / "gpt-oss", folder / "gpt-oss-q4_0.gguf", "Q4_0"))),
        Thing("distributed-llama's .m", str(write_distributed_llama(folder / "model.m", TINY / "llama"))),
        Thing("a name of Ollama", "smollm2:135m"),
        Thing("its blob in Ollama's store", str(blob)),
        Thing("a repository in the hub's cache", str(snapshot.parent.parent)),
        Thing("hf:OWNER/NAME:TYPE", "hf:someone/Tiny-GGUF:Q8_0"),
        Thing("hf:OWNER/NAME, a repository that is not there", "hf:someone/Nothing"),
        Thing("https://… that is a web page", f"{hub.url}/files/page.gguf"),
        Thing("a URL of a GGUF file", f"{hub.url}/files/tiny.gguf"),
        Thing("OWNER/NAME, without hf:", "someone/Tiny-GGUF"),
        Thing("half of a download", written(folder / "half.gguf", model.read_bytes()[: model.stat().st_size // 2])),
        Thing(
            "a pointer of Git LFS",
            written(folder / "lfs.gguf", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98000000\n"),
        ),
        Thing("a folder with PyTorch's .bin", str(Path(archive(folder / "torch" / "pytorch_model.bin", "model/data.pkl")).parent)),
        Thing("an architecture that is not supported", written(folder / "mamba.gguf", other_architecture(model))),
        Thing("a path that is not there", str(folder / "nothing.gguf")),
        Thing("nothing but zeros", written(folder / "zeros.gguf", bytes(1 << 20))),
        Thing("a short name that does not exist", "llama9:7b"),
    ]


def outcome(thing: Thing, environment: Mapping[str, str]) -> str:
    """How it ended: an answer, or what was said, with the seconds since the start."""
    command = [COORDINATOR, "--model", thing.argument, *thing.options, "--no-discovery", "--http-port", "0", "--grpc-port", "0"]
    with ManagedProcess([*command, "--ready-file", "{ready_file}"], environment) as process:
        started = time.monotonic()
        while (seconds := time.monotonic() - started) < DEADLINE_S:
            if not process.running:
                lines = process.output().strip().splitlines()
                return f"refused after {seconds:.1f} s: {lines[-1] if lines else '**nothing was said**'}"
            if answers(process):
                return f"answers after {time.monotonic() - started:.1f} s"
            time.sleep(0.05)
    return f"**nothing in {DEADLINE_S:.0f} s**"


def answers(process: ManagedProcess) -> bool:
    try:
        address = json.loads(process.ready_file.read_text())["http"]
        body = json.dumps({"prompt": [1, 2, 3], "max_tokens": 2}).encode()
        request = urllib.request.Request(f"http://{address}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return bool(json.load(answer)["choices"])
    except (OSError, ValueError):
        return False


def model_arguments() -> None:
    """Try everything that people pass to --model."""
    model = resolve_model("smollm2:135m")
    with tempfile.TemporaryDirectory() as name, Hub() as hub:
        folder = Path(name)
        tiny = convert(TINY / "llama", folder / "hub-tiny.gguf", "Q8_0").read_bytes()
        hub.repositories["someone/Tiny-GGUF"] = Repository({"tiny-Q8_0.gguf": tiny, "tiny-Q4_0.gguf": tiny})
        hub.web |= {"page.gguf": (b"<!DOCTYPE html><html>", {}), "tiny.gguf": (tiny, {})}
        environment = {
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_ENDPOINT": hub.url,
            "OLLAMA_MODELS": str(folder / "ollama"),
        }
        print("| `--model` | what happens |\n| --- | --- |")
        for thing in things(folder, model, hub):
            said_of_it = (
                outcome(thing, environment).replace(f"{folder}/", "…/").replace(str(model.parent), "…").replace(hub.url, "https://…")
            )
            print(f"| {thing.said} | {said_of_it.replace('|', chr(92) + '|')} |", flush=True)


if __name__ == "__main__":
    run(model_arguments)
