"""What things in the cluster are called by: plans, lives of shards, Join streams."""

from typing import NamedTuple, NewType

LeaseId = NewType("LeaseId", int)
"""One Join stream. The shell numbers the streams, so that the end of a replaced stream is not taken for the end of its successor."""

Epoch = NewType("Epoch", int)
"""Number of a plan."""
NO_EPOCH = Epoch(0)
"""Before the first plan."""


class Holder(NamedTuple):
    """One life of a shard: after a restart it holds nothing of what it held."""

    name: str
    boot_id: str
