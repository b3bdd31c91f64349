"""How fast a block of experts is, and how many experts its steps really read beside how many the plan expects.

    python benchmarks/experts.py [--shape 128,8,2048,768] [--format Q4_0] [--rows 1,8,512] [--threads 1]

A shape is experts, experts used, hidden size, size of an expert; the default is that of Qwen3-30B-A3B. Rows are random, so that each expert
is as likely as the others and every step reads other ones. Medians; other programs on the machine show up in them.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    BLOCK_FORMATS,
    ExpertBlock,
    PackedMatrix,
    PackedStack,
    StageRouter,
    _kernels,
    get_num_threads,
    set_num_threads,
)
from dairllm.model_files.feed_forward import Activation, ExpertFeedForward, Router

ROUTER = StageRouter("softmax", normalised=True)


class Shape(NamedTuple):
    experts: int
    used: int
    hidden: int
    intermediate: int

    @property
    def feed_forward(self) -> ExpertFeedForward:
        return ExpertFeedForward(
            num_experts=self.experts,
            num_experts_used=self.used,
            intermediate_size=self.intermediate,
            activation=Activation(kind="silu"),
            router=Router(kind="softmax", normalised=True),
        )


Weights = dict[str, PackedMatrix | PackedStack | NDArray[np.float32]]


def random_stack(block_format: str, count: int, outputs: int, inputs: int) -> PackedStack:
    """Random quants with scales that are ordinary numbers; every matrix the same, since only their size matters."""
    layout = BLOCK_FORMATS[block_format]
    blocks = np.random.default_rng(1).integers(0, 256, (outputs * inputs // layout.block_size, layout.block_bytes), dtype=np.uint8)
    blocks[:, :2] = np.array([0.01], np.float16).view(np.uint8)
    stack = PackedStack(block_format, count, outputs, inputs)
    for index in range(count):
        stack.pack_rows(index, 0, blocks.tobytes())
    return stack


def random_weights(shape: Shape, block_format: str) -> Weights:
    router = PackedMatrix("F32", shape.experts, shape.hidden)
    router.pack_rows(
        0, (np.random.default_rng(2).standard_normal((shape.experts, shape.hidden)) / shape.hidden**0.5).astype(np.float32).tobytes()
    )
    return {
        "router": router,
        "expert_gate": random_stack(block_format, shape.experts, shape.intermediate, shape.hidden),
        "expert_up": random_stack(block_format, shape.experts, shape.intermediate, shape.hidden),
        "expert_down": random_stack(block_format, shape.experts, shape.hidden, shape.intermediate),
    }


def count_read(shape: Shape, weights: Weights, x: NDArray[np.float32]) -> int:
    router = weights["router"]
    assert isinstance(router, PackedMatrix)
    chosen, _ = _kernels._choose_experts(ROUTER, shape.used, router.matmul(x))
    return len(set(chosen.reshape(-1).tolist()))


def report(shape: Shape, weights: Weights, rows: int, repeats: int) -> str:
    block = ExpertBlock(num_experts=shape.experts, num_experts_used=shape.used, intermediate_size=shape.intermediate, router=ROUTER)
    random = np.random.default_rng((3, rows))
    seconds, read = [], []
    for _ in range(repeats):
        x = random.standard_normal((rows, shape.hidden)).astype(np.float32)
        start = time.perf_counter()
        block._run(weights, x)
        seconds.append(time.perf_counter() - start)
        read.append(count_read(shape, weights, x))
    step_s = statistics.median(seconds)
    stacks = [one for one in weights.values() if isinstance(one, PackedStack)]
    expert_bytes = sum(stack.size_bytes for stack in stacks) / shape.experts
    step_bytes = statistics.mean(read) * expert_bytes
    gop = 2 * rows * shape.used * 3 * shape.hidden * shape.intermediate / step_s / 1e9
    expected = shape.feed_forward.experts_read(rows)
    experts = f"{statistics.mean(read):6.1f} experts read, {expected:6.1f} expected"
    speed = f"{step_bytes / 1e6:7.1f} MB: {step_bytes / step_s / 1e9:6.1f} GB/s {gop:7.0f} GOP/s"
    return f"{rows:4} rows: {step_s * 1e3:8.3f} ms, {experts}, {speed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="128,8,2048,768")
    parser.add_argument("--format", default="Q4_0", choices=("Q4_0", "Q8_0"))
    parser.add_argument("--rows", default="1,2,4,8,16,64,512")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    arguments = parser.parse_args()
    shape = Shape(*map(int, arguments.shape.split(",")))
    set_num_threads(arguments.threads)
    about = f"{shape.experts} experts of {shape.hidden} x {shape.intermediate}, {shape.used} used, {arguments.format}"
    print(f"{about}, {arguments.threads} threads")
    weights = random_weights(shape, arguments.format)
    for rows in map(int, arguments.rows.split(",")):
        print(report(shape, weights, rows, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
