"""Layers of every kind: right against float64, and the same bits however a sequence is cut, batched, spread over stages or computed."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dairllm.kernels_pyx import (
    ARITHMETIC_VERSION,
    KV_ELEMENT_TYPES,
    WIRE_ENCODINGS,
    DenseBlock,
    SelfAttentionBlock,
    Stage,
    StageActivation,
    StageLayer,
    StageNorm,
    StageRope,
    StageSlice,
    StageSpec,
    round_rows,
)
from dairllm.model_files.attention import Rope, SelfAttention
from dairllm.model_files.feed_forward import Activation, DenseFeedForward
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec, PerLayerEmbedding, PerLayerInput
from tests.kernels.computing import AVAILABLE_ISAS, instruction_set, threads
from tests.kernels.decoder64 import Decoder, Floats, logits64, random_decoder
from tests.kernels.fixed_numbers import FixedNumbers

VOCABULARY, NUM_IDS = 50, 61
RMS, OTHER_RMS, LAYER_NORM = Norm(kind="rms", eps=1e-5), Norm(kind="rms", eps=1e-2), Norm(kind="layer", eps=1e-5)
OFFSET = Norm(kind="rms", eps=1e-6, offset_by_one=True)
ROPE = Rope(theta=10_000.0, dim=16, interleaved=False)
ATTENTION = SelfAttention(num_heads=4, num_kv_heads=2, key_dim=16, value_dim=16, scale=0.25, rope=ROPE)
SILU = Activation(kind="silu")
DENSE = DenseFeedForward(intermediate_size=96, activation=SILU)
GELU = replace(DENSE, activation=Activation(kind="gelu_tanh"))


def attention(**changes: Any) -> SelfAttention:
    return replace(ATTENTION, **changes)


def layer(attention: SelfAttention = ATTENTION, feed_forward: DenseFeedForward = DENSE, **changes: Any) -> LayerSpec:
    plain = LayerSpec(attention_norm=RMS, attention=attention, feed_forward_norm=RMS, feed_forward=feed_forward)
    return replace(plain, **changes)


def model(*layers: LayerSpec, **changes: Any) -> ModelSpec:
    outer = {"architecture": "test", "name": "test", "hidden_size": 64, "vocab_size": VOCABULARY, "context_length": 256}
    return ModelSpec(**{**outer, "layers": layers, "output_norm": RMS, **changes})


WINDOWED = attention(window=16)
ADDED = PerLayerInput(width=8, activation=Activation(kind="gelu_tanh"), post_norm=RMS)
GEMMA_NORMS = {
    "attention_norm": OFFSET,
    "attention_post_norm": OFFSET,
    "feed_forward_norm": OFFSET,
    "feed_forward_post_norm": OFFSET,
}
MODELS = {
    "heads of other shapes": model(
        layer(),
        layer(attention(num_heads=9, num_kv_heads=3, key_dim=24, value_dim=10, rope=replace(ROPE, dim=8))),
        layer(attention(num_heads=1, num_kv_heads=1), replace(DENSE, intermediate_size=40)),
    ),
    "other angles": model(
        layer(),
        layer(attention(rope=replace(ROPE, theta=500.0, interleaved=True))),
        layer(attention(rope=None)),
        layer(attention(rope=replace(ROPE, dim=8, freq_factors=(1.0, 2.0, 8.0, 3.5)))),
        layer(attention(rope=replace(ROPE, magnitude=1.25))),
    ),
    "other norms": model(layer(attention_norm=OTHER_RMS), layer(feed_forward_norm=OTHER_RMS), output_norm=OTHER_RMS),
    "windows": model(layer(WINDOWED), layer(attention(window=1)), layer(attention(window=37)), layer()),
    "softcap": model(layer(attention(softcap=0.5)), layer(attention(softcap=50.0, window=20)), logit_softcap=2.0),
    "sinks": model(layer(attention(sinks=True)), layer(attention(sinks=True, window=7))),
    "norms of queries and keys": model(layer(attention(q_norm=RMS, k_norm=OTHER_RMS)), layer(attention(q_norm=OFFSET, k_norm=OFFSET))),
    "norms without weights": model(
        layer(attention(v_norm=replace(RMS, weighted=False), q_norm=OTHER_RMS)),
        layer(attention(v_norm=RMS), attention_norm=replace(RMS, weighted=False)),
    ),
    "norms of all heads together": model(
        layer(attention(q_norm=RMS, k_norm=OTHER_RMS, norm_spans_heads=True)),
        layer(attention(k_norm=RMS, norm_spans_heads=True, k_bias=True)),
    ),
    "gated output": model(
        layer(attention(output_gate=True)), layer(attention(output_gate=True, q_norm=OFFSET, k_norm=OFFSET, q_bias=True))
    ),
    "gemma2": model(
        layer(attention(window=16, softcap=50.0), GELU, **GEMMA_NORMS),
        layer(attention(softcap=50.0), GELU, **GEMMA_NORMS),
        output_norm=OFFSET,
        embedding_scale=8.0,
        logit_softcap=30.0,
    ),
    "norms behind blocks alone": model(
        layer(attention_norm=None, attention_post_norm=RMS, feed_forward_norm=None, feed_forward_post_norm=OTHER_RMS),
        layer(attention(output_bias=True), attention_post_norm=LAYER_NORM),
    ),
    "layer norms": model(layer(attention_norm=LAYER_NORM, feed_forward_norm=LAYER_NORM), output_norm=LAYER_NORM, hidden_size=50),
    "scales": model(layer(residual_scale=0.22), layer(residual_scale=1.5), embedding_scale=12.0, logit_scale=0.125),
    "clamped silu": model(
        layer(feed_forward=replace(DENSE, activation=Activation(kind="silu_clamped", alpha=1.702, limit=0.7))),
        layer(feed_forward=replace(DENSE, activation=Activation(kind="silu_clamped"))),
    ),
    "gelu": model(layer(feed_forward=GELU), layer(feed_forward=replace(GELU, intermediate_size=33))),
    "biases": model(
        layer(attention(q_bias=True, k_bias=True, v_bias=True, output_bias=True)), layer(feed_forward=replace(DENSE, bias=True))
    ),
    "shared keys": model(
        layer(WINDOWED),
        layer(),
        layer(attention(keys_of=1)),
        layer(attention(keys_of=0, window=16)),
        layer(attention(keys_of=1, q_norm=RMS)),
    ),
    "per-layer inputs": model(
        layer(per_layer_input=ADDED),
        layer(per_layer_input=ADDED, output_scale=True, residual_scale=0.5),
        per_layer_embedding=PerLayerEmbedding(width=8, norm=OTHER_RMS, embedding_scale=2.8, scale=0.7),
        embedding_scale=8.0,
    ),
    "gemma4": model(
        layer(WINDOWED, GELU, per_layer_input=ADDED, output_scale=True, **GEMMA_NORMS),
        layer(attention(key_dim=32, value_dim=32, v_norm=replace(RMS, weighted=False)), GELU, per_layer_input=ADDED, **GEMMA_NORMS),
        layer(attention(keys_of=0, window=16), GELU, per_layer_input=ADDED, **GEMMA_NORMS),
        layer(attention(key_dim=32, value_dim=32, keys_of=1), GELU, per_layer_input=ADDED, output_scale=True, **GEMMA_NORMS),
        per_layer_embedding=PerLayerEmbedding(width=8, norm=RMS, embedding_scale=2.8, scale=0.7),
        logit_softcap=30.0,
    ),
    "heads of 512": model(layer(attention(key_dim=512, value_dim=512, scale=0.04)), layer(attention(key_dim=16, value_dim=300))),
}
DECODERS = {name: random_decoder(spec) for name, spec in MODELS.items()}
IDS = np.random.default_rng(7).integers(0, VOCABULARY, NUM_IDS).astype(np.int32)
LOGITS = {(name, kind): decoder.run(IDS, element_type=kind) for name, decoder in DECODERS.items() for kind in KV_ELEMENT_TYPES}


# ---- right ----


@pytest.mark.parametrize("element_type", KV_ELEMENT_TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_layers_agree_with_float64(name: str, element_type: str, isa: str) -> None:
    tolerance = {"F16": 5e-3, "F32": 1e-4, "Q8_0": 0.1}[element_type]  # keys and values next to a half may round the other way
    logits = DECODERS[name].run(IDS, element_type=element_type)
    np.testing.assert_allclose(logits, logits64(DECODERS[name], IDS, element_type), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["gemma2", "sinks", "gated output"])
def test_quantised_layers_agree_with_float64_of_quantised_activations(name: str, isa: str) -> None:
    decoder = random_decoder(MODELS[name], "Q8_0")
    expected = logits64(decoder, IDS)
    error = np.linalg.norm(decoder.run(IDS) - expected) / np.linalg.norm(expected)
    assert error < 6e-3  # an activation next to a half may round the other way


PARTS_THAT_MATTER = [
    ("windows", lambda spec: replace(spec, layers=(layer(attention(window=15)), *spec.layers[1:]))),
    ("windows", lambda spec: replace(spec, layers=(layer(attention(window=17)), *spec.layers[1:]))),
    ("softcap", lambda spec: replace(spec, layers=(layer(), *spec.layers[1:]))),
    ("softcap", lambda spec: replace(spec, logit_softcap=None)),
    ("scales", lambda spec: replace(spec, embedding_scale=1.0)),
    ("scales", lambda spec: replace(spec, logit_scale=1.0)),
    ("scales", lambda spec: replace(spec, layers=(layer(), layer()))),
    ("other angles", lambda spec: replace(spec, layers=(*spec.layers[:4], layer()))),
    ("clamped silu", lambda spec: replace(spec, layers=(spec.layers[1], spec.layers[1]))),
]


@pytest.mark.parametrize(("name", "without"), PARTS_THAT_MATTER)
def test_what_is_tested_matters(name: str, without: Any) -> None:
    """With the same weights, a model without the part in question has other logits: the comparisons above can fail."""
    other = Decoder(without(MODELS[name]), "F32", DECODERS[name].weights)
    assert np.abs(other.run(IDS) - LOGITS[name, "F16"]).max() > 1e-2


def test_a_window_as_long_as_the_sequence_changes_nothing() -> None:
    decoder = random_decoder(model(layer(attention(window=NUM_IDS)), layer()))
    assert np.array_equal(decoder.run(IDS), Decoder(model(layer(), layer()), "F32", decoder.weights).run(IDS))


def test_what_a_window_has_passed_may_hold_anything() -> None:
    decoder = random_decoder(model(layer(WINDOWED)))
    stage, kv, table = decoder.stage(), decoder.caches(element_type="F32"), np.arange(8, dtype=np.int32)
    stage.run(kv, IDS[:48], [StageSlice(48, 0, table)], np.array([0]))
    for block in (0, 1):
        kv[0].write_block(block, np.full(kv[0].block_bytes // 4, np.nan, np.float32).tobytes())
    logits = stage.run(kv, IDS[48:], [StageSlice(NUM_IDS - 48, 48, table)], np.arange(NUM_IDS - 48))
    assert np.array_equal(logits, decoder.run(IDS, element_type="F32")[48:])


# ---- the same bits ----


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_bits_depend_on_the_sequence_alone(data: st.DataObject) -> None:
    """A sequence in chunks of any sizes beside another one, in scattered blocks of caches, over stages that are cut anywhere."""
    name, kind = data.draw(st.sampled_from(sorted(MODELS))), data.draw(st.sampled_from(KV_ELEMENT_TYPES))
    decoder, num_units = DECODERS[name], MODELS[name].num_units
    cut = data.draw(st.integers(1, num_units - 1))
    spans, layers = (range(cut), range(cut, num_units)), (range(cut - 1), range(cut - 1, num_units - 2))
    blocks = np.array(data.draw(st.permutations(range(16))), np.int32)
    stages = [decoder.stage(span, max_rows=128) for span in spans]
    kv = [decoder.caches(held, element_type=kind) or None for held in layers]
    got: list[Floats] = []
    with instruction_set(data.draw(st.sampled_from(AVAILABLE_ISAS))), threads(data.draw(st.integers(1, 3))):
        done = 0
        while done < NUM_IDS:
            count, other = data.draw(st.integers(1, NUM_IDS - done)), data.draw(st.integers(1, 40))
            ids = np.concatenate([IDS[:other], IDS[done : done + count]])
            slices = [StageSlice(other, 0, blocks[8:]), StageSlice(count, done, blocks[:8])]
            hidden = stages[0].run(kv[0], ids, slices)
            got.append(stages[1].run(kv[1], hidden, slices, np.arange(other, other + count)))
            done += count
    assert np.array_equal(np.concatenate(got), LOGITS[name, kind])


DIGESTS_OF_THE_ARITHMETIC = {
    3: "9c839284accda4477b46e6e63cfd02eee2de90890a7b55706949539822bc60f1",
}


def test_the_arithmetic_is_that_of_its_version() -> None:
    """As in test_stage, of layers of every kind."""
    digest = hashlib.sha256()
    for spec in MODELS.values():
        digest.update(random_decoder(spec, numbers=FixedNumbers()).run(np.arange(40, dtype=np.int32), "Q8_0").tobytes())
    assert DIGESTS_OF_THE_ARITHMETIC.get(ARITHMETIC_VERSION) == digest.hexdigest()


@pytest.mark.parametrize("encoding", WIRE_ENCODINGS)
@pytest.mark.parametrize("name", ["gemma2", "norms behind blocks alone", "gemma4"])
def test_boundaries_are_rounded_whatever_the_norms(name: str, encoding: str) -> None:
    """A layer without a norm in front takes up rounded rows like any other. What rows carry along is the same behind every rounding."""
    decoder, part, head = DECODERS[name], [StageSlice(NUM_IDS, 0, np.arange(8, dtype=np.int32))], MODELS[name].head_index
    stage, kv, carried = decoder.stage(encoding=encoding), decoder.caches(), MODELS[name].carried_width
    rows = stage.run(kv, IDS, part, units=range(1))
    for unit in range(1, head):
        rows = stage.run(kv, round_rows(rows, encoding, carried), part, units=range(unit, unit + 1))
    logits = stage.run(kv, round_rows(rows, encoding, carried), part, np.arange(NUM_IDS), range(head, head + 1))
    assert np.array_equal(logits, decoder.run(IDS, encoding))


# ---- the interface ----

NORM = StageNorm("rms", 1e-5)
BLOCK: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "key_dim": 16, "value_dim": 16, "scale": 0.25}
MISTAKES: list[tuple[Any, str]] = [
    (lambda: SelfAttentionBlock(**{**BLOCK, "num_heads": 3}), "num_heads is 3, expected a multiple of num_kv_heads, which is 2"),
    (lambda: SelfAttentionBlock(**{**BLOCK, "key_dim": 1026}), "key_dim is 1026, expected an integer from 2 to 1024"),
    (lambda: SelfAttentionBlock(**{**BLOCK, "value_dim": 15}), "value_dim is 15, expected an even number"),
    (lambda: SelfAttentionBlock(**{**BLOCK, "scale": 0.0}), "scale is 0.0, expected a positive finite number"),
    (lambda: SelfAttentionBlock(**BLOCK, window=0), "window is 0, expected an integer from 1 to"),
    (lambda: SelfAttentionBlock(**BLOCK, softcap=-1.0), "softcap is -1.0, expected a positive finite number"),
    (lambda: SelfAttentionBlock(**{**BLOCK, "value_dim": 8}, output_gate=True), "expected equal ones where the output is gated"),
    (lambda: SelfAttentionBlock(**BLOCK, q_norm=StageNorm("batch", 1e-5)), "the kind of q_norm is 'batch', expected one of rms, layer"),
    (lambda: SelfAttentionBlock(**BLOCK, rope=StageRope(1e4, 18, False)), "dim of rope is 18, expected an integer from 2 to 16"),
    (lambda: SelfAttentionBlock(**BLOCK, rope=StageRope(1e4, 7, False)), "dim of rope is 7, expected an even number"),
    (lambda: SelfAttentionBlock(**BLOCK, rope=StageRope(1e4, 8, False, (1.0,))), r"freq_factors of rope has shape \(1,\), expected \(4,\)"),
    (lambda: SelfAttentionBlock(**BLOCK, rope=StageRope(1e4, 2, False, (0.0,))), "freq_factors of rope must be positive finite numbers"),
    (lambda: SelfAttentionBlock(**BLOCK, rope=StageRope(1e4, 2, False, (), 0.0)), "magnitude of rope is 0.0"),
    (lambda: DenseBlock(intermediate_size=0), "intermediate_size is 0"),
    (lambda: DenseBlock(intermediate_size=8, activation=StageActivation("relu")), "activation is 'relu', expected one of silu, gelu_tanh"),
    (lambda: DenseBlock(intermediate_size=8, activation=StageActivation("silu_clamped", 0.0)), "alpha of the activation is 0.0"),
    (lambda: StageSpec(hidden_size=0, num_layers=1, output_norm=NORM), "hidden_size is 0"),
    (lambda: StageSpec(hidden_size=8, num_layers=1, output_norm=NORM, logit_softcap=0.0), "logit_softcap is 0.0"),
    (lambda: StageSpec(hidden_size=8, num_layers=1, output_norm=StageNorm("rms", -1.0)), "eps of output_norm is -1.0"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes_in_a_description(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_angles_beyond_their_range_are_refused_before_there_are_weights() -> None:
    stage = Stage(StageSpec(hidden_size=8, num_layers=1, output_norm=NORM), max_rows=1, max_context=1 << 20)
    rope = StageRope(1e4, 16, False)
    turned = StageLayer(attention=SelfAttentionBlock(**BLOCK, rope=rope), feed_forward=DenseBlock(intermediate_size=8))
    with pytest.raises(ValueError, match="max_context is 1048576, expected at most 1000000 for these rope frequencies"):
        stage.check_layer(turned)
    slow = StageLayer(
        attention=SelfAttentionBlock(**BLOCK, rope=rope._replace(freq_factors=(2.0,) * 8)), feed_forward=DenseBlock(intermediate_size=8)
    )
    stage.check_layer(slow)


def test_layers_of_equal_angles_share_them() -> None:
    """Scratch grows by a table for each rotation that differs, not for each layer."""

    def scratch_of(*ropes: Rope) -> int:
        return random_decoder(model(*(layer(attention(rope=rope)) for rope in ropes))).stage(max_rows=64).scratch_bytes

    one, same, other = scratch_of(ROPE), scratch_of(ROPE, replace(ROPE, interleaved=True)), scratch_of(ROPE, replace(ROPE, theta=5e5))
    assert same == one
    assert other == one + 64 * 16 * 4
