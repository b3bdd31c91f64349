"""Runs a test once for every instruction set of this machine."""

from collections.abc import Iterator

import pytest

from dairllm.kernels_pyx import _kernels, optimization_info

AVAILABLE_ISAS = [str(name) for name in optimization_info()["isa_available"]]  # type: ignore[attr-defined]


@pytest.fixture(params=AVAILABLE_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set that is in use during the test."""
    previous = str(optimization_info()["isa"])
    yield _kernels._set_isa(request.param)
    _kernels._set_isa(previous)
