"""Checks of `dairllm doctor` that need a shard's knowledge: memory, cores, model files. Entry points of the group `dairllm.doctor`."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from dairllm.mesh.diagnosis import Finding, ModelIdentity, Status, Subject
from dairllm.mesh.settings import format_size
from dairllm.mesh.system_memory import MIB, detect_available_bytes
from dairllm.model_files.architectures import architecture_of
from dairllm.model_files.cache_folder import cache_folder
from dairllm.model_files.containers import open_container
from dairllm.model_files.errors import ModelFileError, NoCacheFolder
from dairllm.model_files.getting.known_models import known_models
from dairllm.model_files.manifest_builder import build_manifest, read_spec
from dairllm.shard_service.machine.memory import default_budget_bytes

MACHINE, MODELS = "This machine", "Model files"
_SMALL_BUDGET_BYTES = 256 * MIB
_BUSY_SHARE = 0.5
_MOST_FILES = 200


def check_machine(subject: Subject) -> Sequence[Finding]:
    """Memory and cores that a shard on this machine would use."""
    from dairllm.kernels_pyx import get_num_threads

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = Cores(os.cpu_count() or 1, psutil.cpu_count(logical=False) or 0, usable, get_num_threads(), os.getloadavg()[0])
    return [judge_memory(psutil.virtual_memory().total, detect_available_bytes()), *judge_cores(cores)]


def judge_memory(total_bytes: int, available_bytes: int) -> Finding:
    """available_bytes: what the machine and its control groups leave."""
    budget_bytes = default_budget_bytes(available_bytes)
    seen = f"memory: {format_size(total_bytes)}, of which {format_size(available_bytes)} are available to this process"
    if budget_bytes >= _SMALL_BUDGET_BYTES:
        return Finding(MACHINE, "memory", Status.OK, f"{seen}; a shard takes {format_size(budget_bytes)} unless --memory says otherwise")
    matters = f"a shard would take {format_size(budget_bytes)}, which holds hardly a layer"
    advice = "end other programs, or raise the memory limit of the container or service"
    return Finding(MACHINE, "memory", Status.WARNING, seen, matters, advice)


class Cores(NamedTuple):
    """logical: with hyper-threads; physical: 0 if unknown; usable: by affinity; threads: of a shard; load: average of a minute."""

    logical: int
    physical: int
    usable: int
    threads: int
    load: float


def judge_cores(cores: Cores) -> list[Finding]:
    physical = f" ({cores.physical} physical)" if cores.physical and cores.physical != cores.logical else ""
    seen = f"cores: {cores.logical}{physical}, usable by this process: {cores.usable}; a shard computes with {cores.threads} threads"
    findings = [Finding(MACHINE, "cores", Status.OK, seen)]
    if cores.threads < cores.usable <= cores.logical and not physical:
        matters, advice = "a CPU quota of the container or service allows no more", "raise it if all cores are to help"
        findings = [Finding(MACHINE, "cores", Status.WARNING, seen, matters, advice)]
    if cores.load > _BUSY_SHARE * cores.usable:
        seen = f"the load of this machine is {cores.load:.1f} with {cores.usable} cores: other programs compute here"
        advice = "end them, or give the shard fewer --threads"
        findings.append(Finding(MACHINE, "load", Status.WARNING, seen, "a shard here would be slow, and the answers with it", advice))
    return findings


def check_models(subject: Subject) -> Sequence[Finding]:
    """Compare model files of this machine with the model that is served."""
    if subject.model is None:
        return []
    findings = [_compare(path, subject.model, subject.deadline_s) for path in model_files(subject.model_dirs)]
    told = [finding for finding in findings if finding is not None]
    if told:
        return told
    seen = f"no file of {subject.model.name} in the folders looked at; a shard here gets its weights over the network"
    return [Finding(MODELS, "model_file", Status.OK, seen)]


def model_files(model_dirs: Sequence[Path]) -> list[Path]:
    """GGUF files under the folders, and among the models that were fetched before."""
    found = {path.resolve(): path for folder in (*model_dirs, *_fetched_models()) for path in _files_under(folder)}
    return sorted(found.values())[:_MOST_FILES]


def _files_under(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if name.endswith(".gguf"))


def has_name(path: Path, model: str) -> bool:
    """Whether a file is what people would take for the model, by its name."""
    known = known_models().get(model.lower())
    names = {model.lower(), known.file_name.lower()} if known else {model.lower()}
    return path.name.lower() in names or path.stem.lower() in names


def _fetched_models() -> tuple[Path, ...]:
    try:
        return (cache_folder() / "models",)
    except NoCacheFolder:
        return ()


def _compare(path: Path, model: ModelIdentity, deadline_s: float) -> Finding | None:
    """None for a file that neither has the model's name nor could be it by its size."""
    same_name = has_name(path, model.name)
    try:
        size_bytes = units_size_bytes(path)
        if size_bytes != model.size_bytes:
            return _other_size(path, model, size_bytes) if same_name else None
        digest = build_manifest(path, _Limit(deadline_s)).model_digest.hex()
    except ModelFileError as error:
        return _unreadable(path, model, error) if same_name else None
    except _LimitReached:
        seen = f"{path} has the size of {model.name}, but there was no time to compare all of it ({format_size(size_bytes)})"
        return Finding(MODELS, "model_file", Status.WARNING, seen, "", "start the shard: it compares every part that it loads")
    return judge_digest(path, model, digest, same_name)


def judge_digest(path: Path, model: ModelIdentity, digest: str, same_name: bool) -> Finding:
    if digest == model.digest:
        seen = f"{path} has the content of {model.name}: a shard here reads it (with --model-dir {path.parent})"
        return Finding(MODELS, "model_file", Status.OK, seen)
    seen = f"{path} has another content than {model.name} that is served (digest {digest[:12]}…, served {model.digest[:12]}…)"
    if same_name:
        return _differs(path, seen)
    advice = "nothing, if it is meant to be another model, such as a fine-tuned one"
    return Finding(MODELS, "model_file", Status.WARNING, f"{seen}, though the same size", "a shard here does not use it", advice)


def _other_size(path: Path, model: ModelIdentity, size_bytes: int) -> Finding:
    sizes = f"its weights are {format_size(size_bytes)}, those served {format_size(model.size_bytes)}"
    return _differs(path, f"{path} is another file than {model.name} that is served: {sizes}")


def _unreadable(path: Path, model: ModelIdentity, error: ModelFileError) -> Finding:
    return _differs(path, f"{path} has the name of {model.name}, but can't be used: {error}")


def _differs(path: Path, seen: str) -> Finding:
    matters = "two machines have different files of one name; a shard here does not use its own, and fetches weights over the network"
    advice = f"copy the coordinator's file over {path}, or remove it"
    return Finding(MODELS, "model_file", Status.PROBLEM, seen, matters, advice)


def units_size_bytes(path: Path) -> int:
    """Bytes of all weights, from the file's header alone; a tensor that two units share counts once. Raises ModelFileError."""
    container = open_container(path)
    spec = read_spec(container)
    units = architecture_of(container).unit_tensors(container, spec)
    return sum({tensor.place: tensor.size_bytes for unit in units for tensor in unit}.values())


class _LimitReached(Exception):
    pass


class _Limit:
    """Ends the reading of a file that takes too long: called with every piece."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s

    def __call__(self, description: str, done_bytes: int, total_bytes: int) -> None:
        if time.monotonic() > self._deadline_s:
            raise _LimitReached
