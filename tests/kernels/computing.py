"""What computes, chosen for a while: the instruction set and the number of threads; and runs whose results may not depend on it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import _kernels, get_num_threads, optimization_info, round_rows, set_num_threads

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
AVAILABLE_ISAS = [str(name) for name in optimization_info()["isa_available"]]  # type: ignore[attr-defined]
KV_NUMPY_TYPES: dict[str, type[np.floating[Any]]] = {"F16": np.float16, "F32": np.float32}


def as_in_cache(x: Doubles, element_type: str) -> Doubles:
    """Keys or values [positions, heads, numbers] as a cache of this type gives them back."""
    if element_type != "Q8_0":
        return x.astype(KV_NUMPY_TYPES[element_type]).astype(np.float64)
    rows = x.reshape(-1, x.shape[-1]).astype(np.float32)
    return round_rows(rows, "Q8_0").astype(np.float64).reshape(x.shape)


class Part(NamedTuple):
    """Rows [begin, end) of a sequence."""

    sequence: int
    begin: int
    end: int


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = str(optimization_info()["isa"])
    _kernels._set_isa(name)
    try:
        yield
    finally:
        _kernels._set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def assert_same_bits_on_every_isa(compute: Callable[[], Floats]) -> None:
    results = []
    for isa in AVAILABLE_ISAS:
        with instruction_set(isa):
            results.append(compute())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def run_in_company(data: st.DataObject, sequences: Sequence[Floats], run: Callable[[list[Part], Floats], Floats]) -> list[Floats]:
    """What `run` gives for sequences that come in chunks, each in a run with whatever the others are at, by any number of threads.

    run: of parts, in any order, and their rows one part after the other.
    """
    cuts = [sorted(data.draw(st.sets(st.integers(1, len(x) - 1), max_size=5))) for x in sequences]
    chunks = [list(pairwise([0, *cut, len(x)])) for cut, x in zip(cuts, sequences, strict=True)]
    found = [np.empty_like(x) for x in sequences]
    while any(chunks):
        waiting = [i for i, left in enumerate(chunks) if left]
        running = data.draw(st.permutations(waiting))[: data.draw(st.integers(1, len(sequences)))]
        parts = [Part(i, *chunks[i].pop(0)) for i in running]
        with threads(data.draw(st.integers(1, 3))):
            result = run(parts, np.concatenate([sequences[i][begin:end] for i, begin, end in parts]))
        first = 0
        for i, begin, end in parts:
            found[i][begin:end] = result[first : first + end - begin]
            first += end - begin
    return found
