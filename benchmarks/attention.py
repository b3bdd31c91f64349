"""How fast attention is at several depths, as a share of what the arithmetic unit can do, and of the bytes that it reads.

    python benchmarks/attention.py [--isa avx2] [--shape 9,3,64] [--depths 512,2048,7900] [--cache F16] [--threads 1]

A shape is heads, heads of keys and values, numbers of a head; the default is that of SmolLM2-135M. A prompt goes through one layer in
chunks of 512 rows; a token goes through layers that no cache holds together. Layers have next to nothing but attention in them. The peak is
measured between the runs. Medians; with several threads other programs on the machine show up in them.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    KV_ELEMENT_TYPES,
    DenseBlock,
    KvCache,
    PackedMatrix,
    SelfAttentionBlock,
    Stage,
    StageLayer,
    StageNorm,
    StageSlice,
    StageSpec,
    _kernels,
    get_num_threads,
    set_num_threads,
)

HIDDEN_SIZE = 16
CHUNK_ROWS = 512
BLOCK_TOKENS = 32
COLD_BYTES = 96 << 20
FMA_ROUNDS = 300_000


def clock() -> float:
    """Of one thread what it computes counts, not what other programs take of its core."""
    return time.perf_counter() if get_num_threads() > 1 else time.thread_time()


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int

    def layer(self) -> StageLayer:
        attention = SelfAttentionBlock(
            num_heads=self.heads, num_kv_heads=self.kv_heads, key_dim=self.head_dim, value_dim=self.head_dim, scale=self.head_dim**-0.5
        )
        return StageLayer(attention=attention, feed_forward=DenseBlock(intermediate_size=HIDDEN_SIZE))

    def weights(self) -> dict[str, PackedMatrix]:
        q, k = self.heads * self.head_dim, self.kv_heads * self.head_dim
        outputs = {"q": q, "k": k, "v": k, "gate": HIDDEN_SIZE, "up": HIDDEN_SIZE}
        into = {name: random_matrix(count, HIDDEN_SIZE) for name, count in outputs.items()}
        return into | {"attention_output": random_matrix(HIDDEN_SIZE, q), "down": random_matrix(HIDDEN_SIZE, HIDDEN_SIZE)}

    def multiplications(self, first_position: int, num_rows: int) -> int:
        """With addition, of the scores and of the outputs that these rows need."""
        positions = sum(range(first_position + 1, first_position + num_rows + 1))
        return positions * self.heads * 2 * self.head_dim


def random_matrix(outputs: int, inputs: int) -> PackedMatrix:
    matrix = PackedMatrix("F32", outputs, inputs)
    matrix.pack_rows(0, np.random.default_rng(1).standard_normal((outputs, inputs)).astype(np.float32).tobytes())
    return matrix


class Bench:
    """Layers and their caches, filled with random numbers up to `depth`."""

    def __init__(self, shape: Shape, depth: int, element_type: str) -> None:
        self.shape, self.depth = shape, depth
        num_blocks = -(-(depth + 1) // BLOCK_TOKENS)
        first = KvCache(num_blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim, shape.head_dim, element_type)
        self.num_layers = -(-COLD_BYTES // first.size_bytes)
        spec = StageSpec(hidden_size=HIDDEN_SIZE, num_layers=self.num_layers, output_norm=StageNorm("rms", 1e-5), boundary_encoding="F32")
        self.stage = Stage(spec, max_rows=CHUNK_ROWS, max_context=depth + 1)
        layer, weights = shape.layer(), shape.weights()
        self.caches = [first]
        for index in range(self.num_layers):
            self.stage.add_layer(index, layer, weights)
        for _ in range(1, self.num_layers):
            self.caches.append(KvCache(num_blocks, BLOCK_TOKENS, shape.kv_heads, shape.head_dim, shape.head_dim, element_type))
        data = np.random.default_rng(2).standard_normal(first.block_bytes // 2 + 1).astype(np.float16).tobytes()
        for cache in self.caches:
            for block in range(num_blocks):
                cache.write_block(block, data[: cache.block_bytes])
        self.table = np.random.default_rng(3).permutation(num_blocks).astype(np.int32)

    def seconds(self, first_position: int, num_rows: int, num_layers: int) -> float:
        x: NDArray[np.float32] = np.random.default_rng(4).standard_normal((num_rows, HIDDEN_SIZE)).astype(np.float32)
        rows = [StageSlice(num_rows, first_position, self.table)]
        start = clock()
        self.stage.run(self.caches, x, rows, units=range(1, 1 + num_layers))
        return clock() - start

    def prompt(self) -> float:
        """Multiplications per second."""
        chunks = [(first, min(CHUNK_ROWS, self.depth - first)) for first in range(0, self.depth, CHUNK_ROWS)]
        seconds = sum(self.seconds(first, count, 1) for first, count in chunks)
        return self.shape.multiplications(0, self.depth) / seconds

    def token(self) -> float:
        """Multiplications per second."""
        return self.num_layers * self.shape.multiplications(self.depth, 1) / self.seconds(self.depth, 1, self.num_layers)


def peak() -> float:
    """Multiplications with addition per second of one thread."""
    start = clock()
    count = _kernels._run_fmas(FMA_ROUNDS)
    return count / (clock() - start)


def report(shape: Shape, depth: int, element_type: str, threads: int, repeats: int) -> str:
    bench = Bench(shape, depth, element_type)
    bench.prompt()
    bench.token()
    runs = [(peak(), bench.prompt(), bench.token()) for _ in range(repeats)]
    prompt, token = (statistics.median(run[which] / (run[0] * threads) for run in runs) for which in (1, 2))
    tokens = [run[2] / shape.multiplications(depth, 1) for run in runs]
    cache = bench.caches[0]
    gigabytes = statistics.median(tokens) * cache.block_bytes / BLOCK_TOKENS * (depth + 1) / 1e9
    return f"{depth:6} positions, {element_type:4}: prompt {prompt:4.0%} of the peak, token {token:4.0%} of it and {gigabytes:5.1f} GB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="cap on the instruction set: scalar, avx2, avxvnni, avx512vnni, neon, neondot or neoni8mm")
    parser.add_argument("--shape", default="9,3,64")
    parser.add_argument("--depths", default="512,2048,7900")
    parser.add_argument("--cache", choices=KV_ELEMENT_TYPES, default="F16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    arguments = parser.parse_args()
    set_num_threads(arguments.threads)
    shape = Shape(*map(int, arguments.shape.split(",")))
    isa = _kernels._set_isa(arguments.isa)
    highest = max(peak() for _ in range(arguments.repeats))
    print(f"instruction set: {isa}, {arguments.threads} threads, peak of one {highest / 1e9:.1f} billion multiplications a second")
    for depth in map(int, arguments.depths.split(",")):
        print(report(shape, depth, arguments.cache, arguments.threads, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
