import pytest

from dairllm.kernels_pyx import KV_ELEMENT_TYPES
from dairllm.mesh.cache_types import (
    CACHE_FEATURES,
    DEFAULT_CACHE_TYPE,
    cache_features,
    cache_type_name,
    cache_type_to_proto,
    parse_cache_type,
)
from dairllm.mesh.errors import InvalidSetting, Unsupported
from dairllm.v1 import cluster_pb2


def test_every_type_of_the_protocol_has_a_kernel() -> None:
    known = {value for value in cluster_pb2.CacheType.values() if value != cluster_pb2.CACHE_TYPE_UNSPECIFIED}
    assert {cache_type_to_proto(name) for name in KV_ELEMENT_TYPES} == known
    assert [cache_type_name(cache_type_to_proto(name)) for name in KV_ELEMENT_TYPES] == list(KV_ELEMENT_TYPES)


def test_a_coordinator_that_names_no_type_means_the_default() -> None:
    assert cache_type_name(cluster_pb2.Assignment().kv_cache_type) == DEFAULT_CACHE_TYPE


def test_a_type_of_a_later_version_is_refused() -> None:
    with pytest.raises(Unsupported, match="element type 7 of the KV cache is unknown; expected F16, F32, Q8_0"):
        cache_type_name(7)


@pytest.mark.parametrize(("text", "name"), [("f32", "F32"), ("F16", "F16"), ("q8_0", "Q8_0")])
def test_names_are_read_in_any_case(text: str, name: str) -> None:
    assert parse_cache_type(text) == name


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="element type 'Q4_0' of the KV cache is unknown; expected one of F16, F32, Q8_0"):
        parse_cache_type("Q4_0")


def test_only_types_that_came_later_must_be_offered() -> None:
    assert cache_features("F16") == cache_features("F32") == frozenset()
    assert set(CACHE_FEATURES) == cache_features("Q8_0") == {"kv_cache:Q8_0"}
