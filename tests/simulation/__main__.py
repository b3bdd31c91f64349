"""`python -m tests.simulation --seeds N [--first S]`: many seeds, one line per failure; `--seed S`: one, with its whole log."""

import argparse
import sys
import time

from tests.simulation.simulation import Simulation, run
from tests.simulation.world import Wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    return show(arguments.seed) if arguments.seed is not None else run_many(arguments.first, arguments.seeds)


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


def run_many(first: int, count: int) -> int:
    begin_s, failures = time.perf_counter(), 0
    for seed in range(first, first + count):
        try:
            run(seed)
        except Wrong as error:
            failures += 1
            print(str(error).split("\n", 1)[0])
    spent_s = time.perf_counter() - begin_s
    print(f"{count} seeds in {spent_s:.1f} s, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
