"""Folder X at the root is the package dairllm.X; `dairllm` itself is a namespace (docs/architecture.md, 'Folders')."""

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
TOP_LEVEL = {
    "v1": "protos/dairllm/v1",
    **{name: name for name in ("kernels_pyx", "model_files", "mesh", "shard_service", "coordinator", "client")},
}


def find_package_dirs() -> dict[str, str]:
    """Map every package, nested ones too, to its folder: a list kept by hand silently loses new subpackages."""
    found = {}
    for name, folder in TOP_LEVEL.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            relative = init.parent.relative_to(ROOT / folder)
            package = ".".join(("dairllm", name, *relative.parts))
            found[package] = str(Path(folder) / relative)
    return found


# One file per instruction set, each with its own flags: the CPU is asked at run time, so that a wheel runs anywhere.
# No -ffast-math, no contraction: all instruction sets give the same bits.
C_FLAGS = ["-O3", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
ISA_FLAGS: dict[str, list[str]] = {"isa_scalar.c": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["isa_avx2.c"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["isa_avxvnni.c"] = ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]
    ISA_FLAGS["isa_avx512vnni.c"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
elif platform.machine() in ("aarch64", "arm64"):
    ISA_FLAGS["isa_neon.c"] = []
    ISA_FLAGS["isa_neondot.c"] = ["-march=armv8.2-a+dotprod"]
    ISA_FLAGS["isa_neoni8mm.c"] = ["-march=armv8.2-a+dotprod+i8mm"]


class BuildKernels(build_ext):
    """Compiles the files of ISA_FLAGS apart, since an extension has only one set of flags for all of its sources.

    Takes what lies in the checkout already if it is newer than all that it is made of, so that `make wheel` compiles nothing twice.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        built = Path("kernels_pyx", target.name)
        if not self.force and built.is_file() and not newer_group([*ext.sources, *ext.depends], str(built)):
            print(f"{built} is current")
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built), str(target))
            return
        with ThreadPoolExecutor(os.cpu_count()) as compilers:
            for objects in compilers.map(self._compile_isa, ISA_FLAGS, repeat(ext)):
                ext.extra_objects += objects
        super().build_extension(ext)

    def _compile_isa(self, name: str, ext: Extension) -> list[str]:
        flags = C_FLAGS + ISA_FLAGS[name]
        objects: list[str] = self.compiler.compile(
            [f"kernels_pyx/c/{name}"], output_dir=self.build_temp, depends=ext.depends, extra_postargs=flags
        )
        return objects


def kernels_extension() -> Extension:
    folder = Path("kernels_pyx")
    sources = sorted(str(path) for path in folder.glob("c/*.c") if not path.name.startswith("isa_"))
    others = [Path("setup.py"), *folder.glob("c/*.h"), *folder.glob("c/isa_*.c"), *folder.glob("*.pxi")]
    return Extension(
        "dairllm.kernels_pyx._kernels",
        ["kernels_pyx/_kernels.pyx", *sources],
        include_dirs=["kernels_pyx"],
        depends=sorted(map(str, others)),
        extra_compile_args=C_FLAGS,
        libraries=["m", "pthread"],
    )


PACKAGE_DIRS = find_package_dirs()

setup(
    packages=list(PACKAGE_DIRS),
    package_dir=PACKAGE_DIRS,
    package_data={"": ["*.pyi", "*.proto", "py.typed", "*.html", "*.css", "*.js", "*.svg", "*.json"]},
    include_package_data=False,
    ext_modules=cythonize([kernels_extension()]),
    cmdclass={"build_ext": BuildKernels},
)
