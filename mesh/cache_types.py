"""Element types of the KV cache: names as people and the kernels write them, and `CacheType` in cluster.proto."""

from dairllm.kernels_pyx import KV_ELEMENT_TYPES
from dairllm.mesh.errors import InvalidSetting, Unsupported
from dairllm.v1 import cluster_pb2

DEFAULT_CACHE_TYPE = "F16"

_PREFIX = "CACHE_TYPE_"
_NAMES = {int(cluster_pb2.CacheType.Value(_PREFIX + name)): name for name in KV_ELEMENT_TYPES} | {
    int(cluster_pb2.CACHE_TYPE_UNSPECIFIED): DEFAULT_CACHE_TYPE
}


def cache_type_name(cache_type: int) -> str:
    """The element type that a message asks for. Raises Unsupported for a value that this version does not know."""
    name = _NAMES.get(cache_type)
    if name is None:
        raise Unsupported(f"element type {cache_type} of the KV cache is unknown; expected {', '.join(KV_ELEMENT_TYPES)}")
    return name


def cache_features(name: str) -> frozenset[str]:
    """What shards must offer to keep keys and values in this type. Every shard knows those that were there from the beginning."""
    return frozenset() if name in ("F16", "F32") else frozenset({f"kv_cache:{name}"})


CACHE_FEATURES = tuple(sorted(frozenset().union(*map(cache_features, KV_ELEMENT_TYPES))))
"""Those of these kernels."""


def parse_cache_type(text: str) -> str:
    """The name of an element type, written in any case. Raises InvalidSetting."""
    name = text.upper()
    if name not in KV_ELEMENT_TYPES:
        raise InvalidSetting(f"element type {text!r} of the KV cache is unknown; expected one of {', '.join(KV_ELEMENT_TYPES)}")
    return name


def cache_type_to_proto(name: str) -> cluster_pb2.CacheType:
    cache_type: cluster_pb2.CacheType = getattr(cluster_pb2, _PREFIX + name)
    return cache_type
