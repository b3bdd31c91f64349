"""Many seeds, with one line per failure: `python -m tests.simulation --seeds N [--first S] [--limit-s T]`.

One seed with its whole log: `--seed S`.
"""

import argparse
import math
import sys
import time
from collections import Counter

from tests.simulation.simulation import Simulation, run
from tests.simulation.world import Wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no seed after so many seconds")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    return show(arguments.seed) if arguments.seed is not None else run_many(arguments.first, arguments.seeds, arguments.limit_s)


def show(seed: int) -> int:
    simulation = Simulation(seed)
    try:
        simulation.run()
    except Wrong as error:
        print("\n".join(simulation.world.log))
        print(str(error).split("\n", 1)[0])
        return 1
    print("\n".join(simulation.world.log))
    return 0


def run_many(first: int, count: int, limit_s: float) -> int:
    begin_s, done, failures = time.perf_counter(), 0, 0
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        if time.perf_counter() - begin_s > limit_s:
            break
        done += 1
        try:
            counts += run(seed).counts
        except Wrong as error:
            failures += 1
            print(str(error).split("\n", 1)[0], flush=True)
    print(f"{done} seeds in {time.perf_counter() - begin_s:.1f} s, {failures} failed")
    print(", ".join(f"{counts[name]} {name}" for name in sorted(counts)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
