"""What this machine can do, measured with the real kernels in about a second and remembered for a week.

Decoding reads every weight once per token, so it is measured on a matrix larger than the caches; prefill is bound by arithmetic and
measured with many rows on a small one.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from dairllm.kernels_pyx import PackedMatrix, get_num_threads, optimization_info, quantize_q4_0
from dairllm.mesh.protocol import software_version
from dairllm.mesh.telemetry import fields
from dairllm.model_files.cache_folder import try_lock

LOCK_DEADLINE_S = 10.0
_LOCK_POLL_S = 0.05
TTL_S = 7 * 24 * 3600.0
_BLOCK_FORMAT = "Q4_0"
_INPUTS = 4096
_LARGE_OUTPUTS = 20480  # 45 MiB
_SMALL_OUTPUTS = 1024
_PREFILL_ROWS = 64
_DECODE_S = 0.6
_PREFILL_S = 0.4
_MAX_REPEATS = 50
_DISK_BYTES = 16 * 1024**2
_DISK_PIECE_BYTES = 1024**2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Speed:
    """As ShardCapabilities in cluster.proto. disk_bytes_per_s: 0 if unknown."""

    decode_s_per_byte: float
    prefill_s_per_byte_row: float
    disk_bytes_per_s: float = 0.0


def measure_or_recall(model_dirs: Iterable[Path], cache_folder: Path, now_s: float) -> Speed:
    """now_s: seconds since the epoch. What can't be written or read in the cache folder is measured again the next time.

    Processes of this machine measure one after the other, as far as nobody waits longer than LOCK_DEADLINE_S: at once, they would measure
    each other's load.
    """
    path = probe_path(cache_folder)
    speed = recall(path, now_s)
    if speed is not None:
        return speed
    with alone(cache_folder / "probe.lock", LOCK_DEADLINE_S):
        speed = recall(path, now_s)
        if speed is None:
            started_s = time.perf_counter()
            speed = Speed(*_measure_kernels(), _measure_disk(model_dirs))
            remember(path, speed, now_s)
            log.info("speed measured", extra=fields(seconds=f"{time.perf_counter() - started_s:.2f}", **_for_people(speed)))
    return speed


def scaled(speed: Speed, old_threads: int, new_threads: int) -> Speed:
    """What another number of threads likely gives, until it is measured: no more than in proportion."""
    ratio = old_threads / new_threads
    return replace(speed, decode_s_per_byte=speed.decode_s_per_byte * ratio, prefill_s_per_byte_row=speed.prefill_s_per_byte_row * ratio)


def probe_path(cache_folder: Path) -> Path:
    """Where the result for the present number of threads and kernels is kept."""
    return cache_folder / f"probe-{_fingerprint()}.json"


@contextlib.contextmanager
def alone(path: Path, deadline_s: float) -> Iterator[None]:
    """While no other process is in such a block with this file; without that when the deadline has passed or there can be no such file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.debug("the probe can't be locked: %s", error)
        yield
        return
    try:
        _lock(descriptor, deadline_s)
        yield
    finally:
        os.close(descriptor)  # which unlocks it


def _lock(descriptor: int, deadline_s: float) -> None:
    end_s = time.monotonic() + deadline_s
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            if try_lock(descriptor):
                return
        time.sleep(_LOCK_POLL_S)


def recall(path: Path, now_s: float) -> Speed | None:
    try:
        content = json.loads(path.read_text())
        if not 0 <= now_s - float(content["measured_s"]) < TTL_S:
            return None
        speed = Speed(**{name: float(value) for name, value in content["speed"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return speed if speed.decode_s_per_byte > 0 and speed.prefill_s_per_byte_row > 0 else None


def remember(path: Path, speed: Speed, now_s: float) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"measured_s": now_s, "speed": asdict(speed)}))
        partial.replace(path)
    except OSError as error:
        log.debug("the probe's result can't be kept: %s", error)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _fingerprint() -> str:
    facts = (cpu_model(), optimization_info()["isa"], get_num_threads(), software_version())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _measure_kernels() -> tuple[float, float]:
    decode = _seconds_per_byte(_random_matrix(_LARGE_OUTPUTS), rows=1, within_s=_DECODE_S)
    prefill = _seconds_per_byte(_random_matrix(_SMALL_OUTPUTS), rows=_PREFILL_ROWS, within_s=_PREFILL_S)
    return decode, prefill / _PREFILL_ROWS


def _random_matrix(outputs: int) -> PackedMatrix:
    matrix = PackedMatrix(_BLOCK_FORMAT, outputs, _INPUTS)
    rows = quantize_q4_0(np.random.default_rng(0).standard_normal(16 * _INPUTS, dtype=np.float32))
    for first_row in range(0, outputs, 16):
        matrix.pack_rows(first_row, rows)
    return matrix


def _seconds_per_byte(matrix: PackedMatrix, *, rows: int, within_s: float) -> float:
    x = np.random.default_rng(1).standard_normal((rows, _INPUTS), dtype=np.float32)
    return _typical_seconds(lambda: matrix.matmul(x), within_s) / matrix.size_bytes


def _typical_seconds(work: Callable[[], object], within_s: float) -> float:
    """Median over as many repetitions as there is time for, at least one after the first."""
    work()
    times: list[float] = []
    while len(times) < _MAX_REPEATS and (not times or sum(times) + times[-1] < within_s):
        started_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_s)
    return median(times)


def _measure_disk(model_dirs: Iterable[Path]) -> float:
    """Bytes per second from the largest file there, past the page cache as far as the system allows; 0 without a file."""
    try:
        files = [path for folder in model_dirs for path in sorted(folder.rglob("*"))[:1000] if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size, default=None)
        return 0.0 if largest is None else _read_speed(largest)
    except OSError:
        return 0.0


def _read_speed(path: Path) -> float:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, _DISK_BYTES, os.POSIX_FADV_DONTNEED)
        started_s = time.perf_counter()
        read_bytes = sum(len(os.pread(descriptor, _DISK_PIECE_BYTES, offset)) for offset in range(0, _DISK_BYTES, _DISK_PIECE_BYTES))
        return read_bytes / max(time.perf_counter() - started_s, 1e-9)
    finally:
        os.close(descriptor)


def _for_people(speed: Speed) -> dict[str, str]:
    return {
        "decode": f"{1e-9 / speed.decode_s_per_byte:.1f} GB/s",
        "prefill": f"{1e-9 / speed.prefill_s_per_byte_row:.0f} GB/s x rows",
        "disk": f"{speed.disk_bytes_per_s * 1e-9:.1f} GB/s",
    }
