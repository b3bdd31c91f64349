"""Every reader of files from anywhere under atheris, which looks for inputs that reach new lines:

    make fuzz-files FUZZ_S=600          (each kind of file for its share of the seconds)

Whatever the bytes are: a model, or one sentence; within MOST_SECONDS; in no more memory than a multiple of the file and an amount. An input
that breaks one of these is left in build/, and the run ends with a traceback.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.instruments.processes import status_bytes

KINDS = ("gguf", "distributed_llama", "safetensors", "index", "config", "tokenizer", "template")
MOST_SECONDS = 2.0
MIB = 1 << 20
MEMORY_OF_TOKENIZERS = (8, 128 * MIB)
"""Times the file, and beside it: what the library `tokenizers` takes for published vocabularies is half of that (docs/models.md)."""
MEMORY = (4, 64 * MIB)
LONGEST_INPUT = 64 << 10
FOUND = Path("build") / "fuzz-files"


class Reader(NamedTuple):
    """seeds: inputs to begin with. read: raises a ModelFileError that is a sentence, or nothing."""

    seeds: list[bytes]
    read: Callable[[bytes], None]


def reader_of(kind: str, folder: Path) -> Reader:
    """Imports here what is to be watched: atheris must know before."""
    from dairllm.model_files.architectures import architecture_of
    from dairllm.model_files.chat_template import ChatTemplate
    from dairllm.model_files.containers import open_container
    from dairllm.model_files.template_process import TemplateProcesses
    from dairllm.model_files.tokenizer_sources import load_tokenizer
    from tests.instruments.golden import TINY
    from tests.instruments.stored_models import safetensors_bytes, stored, write_distributed_llama
    from tests.instruments.tokenizer_files import MAKERS, trained
    from tests.model_files.chat_formats import CHAT_FORMATS
    from tests.tiny_gguf import write_tiny_llama

    def read_model(path: Path) -> None:
        container = open_container(path)
        architecture = architecture_of(container)
        spec = architecture.read_spec(container)
        for _ in architecture.unit_tensors(container, spec):
            pass

    def file_reader(name: str, seeds: list[bytes], opened: str = "") -> Reader:
        def read(data: bytes) -> None:
            (folder / name).write_bytes(data)
            read_model(folder / (opened or name))

        return Reader(seeds, read)

    weights = safetensors_bytes({"model.norm.weight": stored(np.zeros(4, np.float32))})
    if kind == "gguf":
        shape: dict[str, Any] = {
            "num_layers": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
            "vocab_size": 32,
        }
        return file_reader("model.gguf", [write_tiny_llama(folder / "seed.gguf", **shape).read_bytes()[:LONGEST_INPUT]])
    if kind == "distributed_llama":
        return file_reader("model.m", [write_distributed_llama(folder / "seed.m", TINY / "llama").read_bytes()[:LONGEST_INPUT]])
    if kind == "safetensors":
        (folder / "config.json").write_bytes((TINY / "llama" / "config.json").read_bytes())
        return file_reader("model.safetensors", [weights], ".")
    if kind == "index":
        (folder / "config.json").write_bytes((TINY / "llama" / "config.json").read_bytes())
        (folder / "model-00001-of-00001.safetensors").write_bytes(weights)
        seed = b'{"metadata": {"total_size": 16}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}'
        return file_reader("model.safetensors.index.json", [seed], ".")
    if kind == "config":
        (folder / "model.safetensors").write_bytes(weights)
        return file_reader("config.json", [path.read_bytes() for path in sorted(TINY.glob("*/config.json"))], ".")
    if kind == "tokenizer":
        (folder / "config.json").write_bytes((TINY / "llama" / "config.json").read_bytes())
        (folder / "model.safetensors").write_bytes(weights)

        def read_tokenizer(data: bytes) -> None:
            (folder / "tokenizer.json").write_bytes(data)
            tokenizer = load_tokenizer(open_container(folder))
            ids = tokenizer.encode("It's 12 o'clock.\n\nnaïve, \U0001f642", add_special=True, parse_special=True)
            tokenizer.decode(ids, skip_special=False)

        return Reader([trained(name).encode() for name in sorted(MAKERS)], read_tokenizer)
    processes = TemplateProcesses(1)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]

    def read_template(data: bytes) -> None:
        template = ChatTemplate(data.decode(errors="replace"), special_texts={"bos_token": "<s>", "eos_token": "</s>"}, processes=processes)
        template.render(messages)

    return Reader([one.source.encode() for one in CHAT_FORMATS.values()], read_template)


def peak_bytes() -> int:
    return status_bytes(os.getpid(), "VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def judged(kind: str, reader: Reader) -> Callable[[bytes], None]:
    from dairllm.model_files.errors import ModelFileError

    times, beside = MEMORY_OF_TOKENIZERS if kind == "tokenizer" else MEMORY

    def judge(data: bytes) -> None:
        forget_peak()
        before, started = peak_bytes(), time.monotonic()
        try:
            reader.read(data)
        except ModelFileError as error:
            text = str(error)
            assert text, "an error without a sentence"
            assert text.isprintable(), f"not printable: {text!r}"
        seconds, taken = time.monotonic() - started, peak_bytes() - before
        assert seconds < MOST_SECONDS, f"{seconds:.1f} s for {len(data)} bytes"
        assert taken <= times * len(data) + beside, f"{taken >> 20} MiB for {len(data)} bytes"

    return judge


def fuzz(kind: str, seconds: int) -> None:
    """In this process, which ends with it."""
    atheris: Any = importlib.import_module("atheris")
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder, corpus = Path(name) / "files", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        with atheris.instrument_imports(include=["dairllm.model_files"]):
            reader = reader_of(kind, folder)
        for number, seed in enumerate(reader.seeds):
            (corpus / str(number)).write_bytes(seed[:LONGEST_INPUT])
        options = (
            f"-max_total_time={seconds}",
            f"-max_len={LONGEST_INPUT}",
            f"-artifact_prefix={FOUND}/{kind}-",
            "-timeout=30",
            "-rss_limit_mb=0",
        )
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", "-verbosity=0", str(corpus)], judged(kind, reader))
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="for all kinds together")
    parser.add_argument("--kind", choices=KINDS, help="only this one, in this process")
    arguments = parser.parse_args()
    if arguments.kind:
        fuzz(arguments.kind, arguments.seconds)
        return 0
    failed = []
    for kind in KINDS:
        share = max(1, arguments.seconds // len(KINDS))
        command = [sys.executable, "-m", "tests.endurance.readers", "--kind", kind, "--seconds", str(share)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * share + 120, check=False)
        lines = done.stderr.strip().splitlines()
        runs = next((line.split(":")[1].strip() for line in lines if line.startswith("stat::number_of_executed_units")), "?")
        print(f"{kind}: {runs} inputs in {share} s" if done.returncode == 0 else "\n".join([f"{kind} failed:", *lines[-30:]]), flush=True)
        failed += [kind] if done.returncode else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
