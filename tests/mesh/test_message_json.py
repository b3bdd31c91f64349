"""Messages as JSON: nobody who reads it must know protobuf."""

import json
from typing import Any

from dairllm.mesh.message_json import enum_to_json, message_schema, message_to_json
from dairllm.v1 import cluster_pb2, model_pb2


def test_numbers_are_numbers_and_absent_values_null() -> None:
    state = cluster_pb2.ClusterState(model_digest=b"\xab\x01", model_size_bytes=2**53, phase=cluster_pb2.CLUSTER_PHASE_LOADING)
    state.shards.add(name="x", phase=cluster_pb2.SHARD_PHASE_READY)
    state.shards.add(stage=0)
    as_json = message_to_json(state)
    assert as_json["model_digest"] == "ab01"
    assert as_json["model_size_bytes"] == 2**53
    assert as_json["phase"] == "loading"
    assert [shard["stage"] for shard in as_json["shards"]] == [None, 0]
    assert as_json["shards"][0]["phase"] == "ready"
    assert as_json["shards"][0]["usage"] is None
    assert json.loads(json.dumps(as_json)) == as_json


def test_times_are_text_and_durations_are_not() -> None:
    event = cluster_pb2.ClusterEvent(time_s=0.25, kind="joined", shard="b", text="shard b has joined", duration_s=1.5)
    expected = {"time": "1970-01-01T00:00:00.250+00:00", "kind": "joined", "shard": "b", "text": "shard b has joined", "duration_s": 1.5}
    assert message_to_json(event) == expected | {"number": 0, "times": 0}


def test_encodings_are_written_as_people_write_them() -> None:
    assert message_to_json(cluster_pb2.ClusterState(wire=model_pb2.ENCODING_Q8_0_OUTLIERS))["wire"] == "Q8_0_OUTLIERS"


def test_a_value_of_a_later_version_is_its_number() -> None:
    assert enum_to_json(cluster_pb2.ClusterPhase.DESCRIPTOR, 99) == "99"


def test_the_schema_describes_what_is_written() -> None:
    state = cluster_pb2.ClusterState(phase=cluster_pb2.CLUSTER_PHASE_SERVING)
    state.shards.add(name="x", addresses=["a:1"], stage=0).capabilities.SetInParent()
    state.events.add(time_s=1.0, kind="shard_joined")
    check(message_schema(cluster_pb2.ClusterState), message_to_json(state))


def check(schema: dict[str, Any], value: object) -> None:
    match schema.get("type"):
        case "object":
            assert isinstance(value, dict)
            assert list(value) == schema["required"] == list(schema["properties"])
            for name, one in schema["properties"].items():
                check(one, value[name])
        case "array":
            assert isinstance(value, list)
            for item in value:
                check(schema["items"], item)
        case None:
            assert schema["anyOf"][1] == {"type": "null"}
            if value is not None:
                check(schema["anyOf"][0], value)
        case kind:
            assert isinstance(value, {"string": str, "boolean": bool, "number": float, "integer": int}[kind])
