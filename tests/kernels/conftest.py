"""Runs a test once for every instruction set of this machine."""

from collections.abc import Iterator

import pytest

from tests.kernels.computing import AVAILABLE_ISAS, instruction_set


@pytest.fixture(params=AVAILABLE_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the instruction set that is in use during the test."""
    name = str(request.param)
    with instruction_set(name):
        yield name
