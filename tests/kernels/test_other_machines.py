"""Instruction sets that this machine does not have give the bits of scalar, too: those of Arm under qemu, AVX-VNNI by AVX2.

The first is skipped without Debian's packages gcc-aarch64-linux-gnu and qemu-user.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kernels.computing import AVAILABLE_ISAS

SOURCES = Path(__file__).parent.parent.parent / "kernels_pyx" / "c"
MACHINES = Path(__file__).parent / "machines"
PROGRAM = "compare_tables.c"
FLAGS = ("-O1", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi", f"-I{SOURCES}")
NEEDED = ("activations.c", "deterministic_math.c", "dequantize.c", "isa_scalar.c", "kv_cache.c", "packing.c", "wire.c")
COMPILE_S, RUN_S = 600, 300


def call(command: Sequence[str], timeout_s: float) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
    return result.stdout


def build(folder: Path, compiler: str, flags: Mapping[str, Sequence[str]]) -> Path:
    """The program that compares instruction sets with plain C. flags: of what it needs beside NEEDED."""

    def compiled(path: Path) -> str:
        target = str(folder / f"{path.stem}.o")
        call([compiler, *FLAGS, *flags.get(path.name, ()), "-c", str(path), "-o", target], COMPILE_S)
        return target

    paths = [SOURCES / name for name in (*flags, *NEEDED) if name != PROGRAM] + [MACHINES / PROGRAM]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        objects = list(compilers.map(compiled, paths))
    program = folder / "compare_tables"
    call([compiler, *objects, "-o", str(program), "-lm", "-lpthread"], COMPILE_S)
    return program


@pytest.fixture(scope="module")
def arm_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs gcc-aarch64-linux-gnu and qemu-user")
    flags = {
        "dispatch.c": [],
        "isa_neon.c": [],
        "isa_neondot.c": ["-march=armv8.2-a+dotprod"],
        "isa_neoni8mm.c": ["-march=armv8.2-a+dotprod+i8mm"],
    }
    return build(tmp_path_factory.mktemp("arm"), compiler, flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cpu", "isas"), [("cortex-a72", ["neon"]), ("cortex-a76", ["neon", "neondot"]), ("max", ["neon", "neondot", "neoni8mm"])]
)
def test_arm_gives_the_bits_of_scalar(arm_program: Path, cpu: str, isas: list[str]) -> None:
    """A Raspberry Pi 4, a Raspberry Pi 5, and what newer ones can do."""
    output = call(["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu, str(arm_program)], RUN_S)
    assert output.splitlines() == [f"{isa}: 0 differences" for isa in isas]


@pytest.mark.slow
def test_avxvnni_gives_the_bits_of_scalar(tmp_path: Path) -> None:
    if "avx2" not in AVAILABLE_ISAS:
        pytest.skip("needs AVX2")
    flags = {"isa_avxvnni.c": ["-mavx2", "-mfma", "-mf16c", "-include", str(MACHINES / "dpbusd.h")], PROGRAM: ["-DTABLES=&kernels_avxvnni"]}
    assert call([str(build(tmp_path, "gcc", flags))], RUN_S) == "avxvnni: 0 differences\n"
