"""Clusters on one network are told apart by their names; only a hash of a name leaves the machine."""

import hashlib

from dairllm.mesh.errors import InvalidSetting

DEFAULT_CLUSTER_NAME = "dairllm"


def cluster_hash(name: str) -> str:
    """First 16 hexadecimal digits of SHA-256 over the name in UTF-8. Raises InvalidSetting for an empty name."""
    if not name.strip():
        raise InvalidSetting("the cluster's name is empty; expected at least one character")
    return hashlib.sha256(name.encode()).hexdigest()[:16]
