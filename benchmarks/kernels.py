"""How fast the matrix kernels are: one row against weights that no cache holds, and many rows.

    python benchmarks/kernels.py [--isa avx2] [--formats Q4_0,Q8_0] [--rows 1,8,480] [--threads 1]

One row is bound by memory bandwidth (GB/s of weights), many rows by arithmetic (GOP/s, two per multiplication). Medians; other programs on
the machine show up in them, so compare only runs that alternate.
"""

import argparse
import statistics
import time

import numpy as np

from dairllm.kernels_pyx import BLOCK_FORMATS, PackedMatrix, _kernels, get_num_threads, set_num_threads

INPUTS = 2048
COLD_BYTES = 256 << 20
WARM_OUTPUTS = 8192
ROWS_IN_CACHE = 16


def fill_matrix(block_format: str, outputs: int) -> PackedMatrix:
    """Random quants with scales that are ordinary numbers; the same 512 rows repeated, since only their size matters."""
    matrix = PackedMatrix(block_format, outputs, INPUTS)
    layout = BLOCK_FORMATS[block_format]
    generator = np.random.default_rng(1)
    if layout.block_size > 1:  # two such bytes are an ordinary number wherever a scale may stand
        blocks = generator.integers(0x28, 0x34, (512 * INPUTS // layout.block_size, layout.block_bytes), dtype=np.uint8)
    else:
        numbers = generator.standard_normal(512 * INPUTS).astype(np.float32)
        stored = {
            "F32": numbers.view(np.uint8),
            "F16": numbers.astype(np.float16).view(np.uint8),
            "BF16": (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8),
        }
        blocks = stored[block_format]
    data = blocks.tobytes()
    for first_row in range(0, outputs, 512):
        matrix.pack_rows(first_row, data)
    return matrix


def median_seconds(matrix: PackedMatrix, rows: int, repeats: int) -> float:
    x = np.random.default_rng(2).standard_normal((rows, INPUTS)).astype(np.float32)
    matrix.matmul(x)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        matrix.matmul(x)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def report(block_format: str, rows: int, repeats: int) -> str:
    row_bytes = INPUTS // BLOCK_FORMATS[block_format].block_size * BLOCK_FORMATS[block_format].block_bytes
    cold = rows < ROWS_IN_CACHE
    outputs = COLD_BYTES // row_bytes // 512 * 512 if cold else WARM_OUTPUTS
    matrix = fill_matrix(block_format, outputs)
    seconds = median_seconds(matrix, rows, repeats)
    gop = 2 * rows * outputs * INPUTS / seconds / 1e9
    weights = f"{matrix.size_bytes >> 20:4} MiB: {matrix.size_bytes / seconds / 1e9:6.1f} GB/s"
    return f"{block_format:6} {rows:4} rows, {weights} {gop:7.0f} GOP/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="cap on the instruction set: scalar, avx2, avxvnni, avx512vnni, neon, neondot or neoni8mm")
    parser.add_argument("--formats", default=",".join(BLOCK_FORMATS))
    parser.add_argument("--rows", default="1,8,480")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    arguments = parser.parse_args()
    set_num_threads(arguments.threads)
    print(f"instruction set: {_kernels._set_isa(arguments.isa)}, {arguments.threads} threads, {INPUTS} inputs")
    for block_format in arguments.formats.split(","):
        for rows in map(int, arguments.rows.split(",")):
            print(report(block_format, rows, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
