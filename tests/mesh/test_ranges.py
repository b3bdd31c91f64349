"""The range of every field: none is without, and what is out of range is refused in one sentence, wherever it stands."""

import time

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.mesh.ranges.checks import is_in_range, out_of_range, rule_of
from dairllm.mesh.ranges.decoding import Refused, checked_decoder
from dairllm.mesh.ranges.rules import Several
from dairllm.mesh.ranges.table import RULES
from dairllm.v1 import cluster_pb2, ring_pb2
from tests.mesh.random_messages import TYPES, Wrong, messages, owner_of, put, wrong_values

WRONG = [wrong for kind in TYPES for wrong in wrong_values(kind)]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_field_has_a_rule(kind: Descriptor) -> None:
    for field in kind.fields:
        rule = rule_of(field)
        assert rule is None or isinstance(rule, Several) or not field.is_repeated or field.message_type is not None, field.full_name
        if field.is_repeated and field.message_type is None:
            assert isinstance(rule, Several)
            assert rule.each is not None, f"entries of {field.full_name} have no rule"


def test_every_rule_has_a_field() -> None:
    fields = {kind.name: set(kind.fields_by_name) for kind in TYPES}
    assert {name: set(rows) - fields.get(name, set()) for name, rows in RULES.items() if set(rows) - fields.get(name, set())} == {}


def test_a_field_that_the_table_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Credit", {})
    with pytest.raises(KeyError):
        is_in_range.__wrapped__(ring_pb2.Credit.DESCRIPTOR)


def test_no_message_holds_itself() -> None:
    """So what is nested is as deep as it is described, whatever comes in."""

    def depth(kind: Descriptor, above: tuple[Descriptor, ...] = ()) -> int:
        assert kind not in above, f"{kind.name} holds itself"
        within = [field.message_type for field in kind.fields if field.message_type is not None]
        return 1 + max((depth(one, (*above, kind)) for one in within), default=0)

    assert max(map(depth, TYPES)) < 10


@settings(max_examples=300)
@given(st.sampled_from(TYPES).flatmap(messages))
def test_what_is_in_range_is_accepted(message: Message) -> None:
    assert out_of_range(message) is None
    decode = checked_decoder(type(message).FromString)
    assert decode is not None
    assert not isinstance(decode(message.SerializeToString()), Refused)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_the_ends_of_each_range(kind: Descriptor) -> None:
    for wrong in wrong_values(kind):
        message = GetMessageClass(kind)()
        put(message, wrong.field, wrong.value)
        found = out_of_range(message)
        assert found is not None, str(wrong)
        assert found.field == wrong.field.name
        assert found.words.startswith(f"{kind.name}.{wrong.field.name} is ")
        assert "; expected " in found.words
        assert found.words.isprintable()
        assert len(found.words) < 400


PARENTS: dict[str, list[FieldDescriptor]] = {}
for parent in TYPES:
    for held in parent.fields:
        if held.message_type is not None:
            PARENTS.setdefault(held.message_type.name, []).append(held)


@settings(max_examples=300)
@given(st.sampled_from(WRONG), st.data())
def test_what_is_out_of_range_is_refused_however_deep_it_stands(wrong: Wrong, data: st.DataObject) -> None:
    """In a message that is otherwise right, which stands in another such message, and so on."""
    message = data.draw(messages(owner_of(wrong.field)))
    message.ClearField(wrong.field.name)
    put(message, wrong.field, wrong.value)
    while parents := PARENTS.get(message.DESCRIPTOR.name):
        field = data.draw(st.sampled_from(parents))
        outer = data.draw(messages(owner_of(field)))
        outer.ClearField(field.name)
        put(outer, field, [message] if field.is_repeated else message)
        message = outer
    found = out_of_range(message)
    assert found is not None
    assert (found.field, found.words.split(" ")[0]) == (wrong.field.name, f"{owner_of(wrong.field).name}.{wrong.field.name}")


@settings(max_examples=300)
@given(st.sampled_from(TYPES), st.binary(max_size=60))
def test_bytes_of_any_kind_are_a_message_or_are_refused(kind: Descriptor, data: bytes) -> None:
    decode = checked_decoder(GetMessageClass(kind).FromString)
    assert decode is not None
    found = decode(data)
    assert isinstance(found, Refused) or is_in_range(kind)(found)


def test_the_values_that_ended_a_coordinator() -> None:
    assert out_of_range(cluster_pb2.Hello(last_epoch=2**64 - 1)) is None, "shards that were told so may join: nobody believes it"
    for epoch in (2**64 - 1, 2**64 - 2, 2**63, 2**53):
        assert out_of_range(cluster_pb2.JoinResponse(assignment=cluster_pb2.Assignment(epoch=epoch))) is not None
    result = ring_pb2.SequenceResult(sampled=[ring_pb2.TokenLogprobs(token_id=2**32 - 1)])
    assert out_of_range(ring_pb2.ForwardRequest(result=ring_pb2.MicroBatchResult(results=[result]))) is not None


def test_a_frame_is_checked_within_microseconds() -> None:
    """Of a prompt of 512 tokens at the width of an 8B, beside which computing takes seconds; of one token, a hundredth of a millisecond."""
    rows = 512
    piece = ring_pb2.SequenceSlice(sequence_id=3, token_ids=range(rows), new_block_ids=range(16), activations=bytes(4352 * rows))
    timing = ring_pb2.StageTiming(shard="a", queue_us=1, compute_us=2, num_rows=rows)
    frame = ring_pb2.ForwardRequest(
        micro_batch=ring_pb2.MicroBatch(epoch=1, batch_id=7, encoding="ENCODING_Q8_0_OUTLIERS", slices=[piece], timings=[timing])
    )
    best_s = min(_time_of_check(frame) for _ in range(50))
    print(f"a frame of {rows} rows: {best_s * 1e6:.0f} us")
    assert best_s < 2e-3


def _time_of_check(frame: ring_pb2.ForwardRequest) -> float:
    started_s = time.perf_counter()
    assert out_of_range(frame) is None
    return time.perf_counter() - started_s
