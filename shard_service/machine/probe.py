"""What this machine can do, measured with the real kernels in under a second: seconds per byte of weights for one row, as in
ShardCapabilities of cluster.proto.

Decoding reads every weight once per token, so it is measured on a matrix larger than the caches. A measurement that was disturbed is no
worse than its fastest repetition, and is remembered as one: it is soon taken again. One that was not is good for a week.
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
from typing import NamedTuple

import numpy as np

from dairllm.kernels_pyx import PackedMatrix, get_num_threads, optimization_info, quantize_q4_0
from dairllm.mesh.protocol import software_version
from dairllm.mesh.telemetry import fields
from dairllm.model_files.cache_folder import try_lock
from dairllm.shard_service.machine.disturbance import CpuTimes, Load, was_disturbed

LOCK_DEADLINE_S = 10.0
_LOCK_POLL_S = 0.05
TTL_S = 7 * 24 * 3600.0
DISTURBED_TTL_S = 600.0
_BLOCK_FORMAT = "Q4_0"
_INPUTS = 4096
_OUTPUTS = 20480  # 45 MiB
_DECODE_S = 0.6
_MAX_REPEATS = 50
_LEAST_REPEATS = 5
NOTICEABLE = 0.15
"""Speeds that differ by less are the same."""

log = logging.getLogger(__name__)


class Speed(NamedTuple):
    """measured_s: when, in seconds since the epoch. is_undisturbed: the machine did nothing else meanwhile."""

    decode_s_per_byte: float
    measured_s: float
    is_undisturbed: bool

    def or_better(self, before: "Speed | None") -> "Speed":
        """What to believe after this one. Disturbances make a machine slower, never faster."""
        if self.is_undisturbed or before is None:
            return self
        if before.is_undisturbed or before.decode_s_per_byte < self.decode_s_per_byte:
            return before
        return self

    def differs_from(self, other_s_per_byte: float) -> bool:
        faster, slower = sorted((self.decode_s_per_byte, other_s_per_byte))
        return slower > faster * (1 + NOTICEABLE)


def measure_or_recall(cache_folder: Path, now_s: float) -> Speed:
    """now_s: seconds since the epoch. What can't be written or read in the cache folder is measured again the next time.

    Processes of this machine measure one after the other, as far as nobody waits longer than LOCK_DEADLINE_S: at once, they would measure
    each other's load.
    """
    return recall(probe_path(cache_folder), now_s) or measure_again(cache_folder, now_s, None, LOCK_DEADLINE_S)


def measure_again(cache_folder: Path, now_s: float, known: Speed | None, deadline_s: float = 0.0) -> Speed:
    """known: what is believed so far. deadline_s: how long to wait while another process measures, which does it for this one, too."""
    path = probe_path(cache_folder)
    with alone(cache_folder / "probe.lock", deadline_s):
        latest = recall(path, now_s)
        if latest is not None and (known is None or latest.measured_s > known.measured_s):
            return latest
        measured = _measure_decode(now_s)
        speed = measured.or_better(latest or known)
        remember(path, speed)
        figure = f"{1e-9 / measured.decode_s_per_byte:.1f} GB/s"
        log.info("speed measured", extra=fields(decode=figure, disturbed=not measured.is_undisturbed))
        return speed


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
    while True:
        with contextlib.suppress(OSError):
            if try_lock(descriptor):
                return
        if time.monotonic() >= end_s:
            return
        time.sleep(_LOCK_POLL_S)


def recall(path: Path, now_s: float) -> Speed | None:
    """None for a file that is absent, too old or anything but what `remember` writes."""
    try:
        content = json.loads(path.read_text())
        speed = Speed(float(content["decode_s_per_byte"]), float(content["measured_s"]), content["is_undisturbed"] is True)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    is_speed = math.isfinite(speed.decode_s_per_byte) and speed.decode_s_per_byte > 0
    ttl_s = TTL_S if speed.is_undisturbed else DISTURBED_TTL_S
    return speed if is_speed and 0 <= now_s - speed.measured_s < ttl_s else None


def remember(path: Path, speed: Speed) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(speed._asdict()))
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


def _measure_decode(now_s: float) -> Speed:
    """As many repetitions as there is time for."""
    matrix = _random_matrix()
    x = np.random.default_rng(1).standard_normal((1, _INPUTS), dtype=np.float32)
    matrix.matmul(x)
    before, times_s = CpuTimes.now(), list[float]()
    while len(times_s) < _LEAST_REPEATS or (len(times_s) < _MAX_REPEATS and sum(times_s) < _DECODE_S):
        started_s = time.perf_counter()
        matrix.matmul(x)
        times_s.append(time.perf_counter() - started_s)
    is_disturbed = was_disturbed(times_s, Load.between(before, CpuTimes.now()), get_num_threads(), os.cpu_count() or 1)
    taken_s = min(times_s) if is_disturbed else median(times_s)
    return Speed(taken_s / matrix.size_bytes, now_s, not is_disturbed)


def _random_matrix() -> PackedMatrix:
    matrix = PackedMatrix(_BLOCK_FORMAT, _OUTPUTS, _INPUTS)
    rows = quantize_q4_0(np.random.default_rng(0).standard_normal(16 * _INPUTS, dtype=np.float32))
    for first_row in range(0, _OUTPUTS, 16):
        matrix.pack_rows(first_row, rows)
    return matrix
