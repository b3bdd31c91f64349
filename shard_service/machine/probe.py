"""What this machine can do, measured with the real kernels in under a second and remembered for a week: seconds per byte of weights for one
row, as in ShardCapabilities of cluster.proto.

Decoding reads every weight once per token, so it is measured on a matrix larger than the caches.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
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
_OUTPUTS = 20480  # 45 MiB
_DECODE_S = 0.6
_MAX_REPEATS = 50

log = logging.getLogger(__name__)


def measure_or_recall(cache_folder: Path, now_s: float) -> float:
    """now_s: seconds since the epoch. What can't be written or read in the cache folder is measured again the next time.

    Processes of this machine measure one after the other, as far as nobody waits longer than LOCK_DEADLINE_S: at once, they would measure
    each other's load.
    """
    path = probe_path(cache_folder)
    known = recall(path, now_s)
    if known is not None:
        return known
    with alone(cache_folder / "probe.lock", LOCK_DEADLINE_S):
        known = recall(path, now_s)
        if known is not None:
            return known
        started_s = time.perf_counter()
        decode_s_per_byte = _measure_decode()
        remember(path, decode_s_per_byte, now_s)
        took_s = time.perf_counter() - started_s
        log.info("speed measured", extra=fields(seconds=f"{took_s:.2f}", decode=f"{1e-9 / decode_s_per_byte:.1f} GB/s"))
        return decode_s_per_byte


def scaled(decode_s_per_byte: float, old_threads: int, new_threads: int) -> float:
    """What another number of threads likely gives, until it is measured: no more than in proportion."""
    return decode_s_per_byte * old_threads / new_threads


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


def recall(path: Path, now_s: float) -> float | None:
    """None for a file that is absent, too old or anything but what `remember` writes."""
    try:
        content = json.loads(path.read_text())
        if not 0 <= now_s - float(content["measured_s"]) < TTL_S:
            return None
        decode_s_per_byte = float(content["decode_s_per_byte"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return decode_s_per_byte if math.isfinite(decode_s_per_byte) and decode_s_per_byte > 0 else None


def remember(path: Path, decode_s_per_byte: float, now_s: float) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"measured_s": now_s, "decode_s_per_byte": decode_s_per_byte}))
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


def _measure_decode() -> float:
    """Median over as many repetitions as there is time for, at least one after the first."""
    matrix = _random_matrix()
    x = np.random.default_rng(1).standard_normal((1, _INPUTS), dtype=np.float32)
    matrix.matmul(x)
    times: list[float] = []
    while len(times) < _MAX_REPEATS and (not times or sum(times) + times[-1] < _DECODE_S):
        started_s = time.perf_counter()
        matrix.matmul(x)
        times.append(time.perf_counter() - started_s)
    return median(times) / matrix.size_bytes


def _random_matrix() -> PackedMatrix:
    matrix = PackedMatrix(_BLOCK_FORMAT, _OUTPUTS, _INPUTS)
    rows = quantize_q4_0(np.random.default_rng(0).standard_normal(16 * _INPUTS, dtype=np.float32))
    for first_row in range(0, _OUTPUTS, 16):
        matrix.pack_rows(first_row, rows)
    return matrix
