"""Every test of this folder gives back what it took."""

from collections.abc import Iterator

import pytest

from tests.instruments.processes import leaving_nothing_behind


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    with leaving_nothing_behind():
        yield
