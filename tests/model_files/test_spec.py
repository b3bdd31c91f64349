"""Descriptions: what they refuse, what they ask of the kernels, and what they say of memory and time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dairllm.kernels_pyx import STAGE_FEATURES
from dairllm.model_files.attention import Attention, LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.errors import CorruptModelFile, UnsupportedModel
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, FeedForward, Router
from dairllm.model_files.manifest import TensorInfo, TensorPiece, Unit
from dairllm.model_files.norm import Norm
from dairllm.model_files.roles import is_numbers, unit_shapes
from dairllm.model_files.spec import LayerSpec, ModelSpec, PerLayerEmbedding, PerLayerInput, require_features
from tests.instruments.descriptions import layer_of, spec_of

NORM = Norm(kind="rms", eps=1e-6)
SILU = Activation(kind="silu")
ROPE = Rope(theta=1e4, dim=16, interleaved=False)
FULL = SelfAttention(num_heads=4, num_kv_heads=2, key_dim=32, value_dim=32, scale=0.2, rope=ROPE)
LATENT = LatentAttention(num_heads=4, query_rank=48, kv_rank=32, key_dim=32, value_dim=32, scale=0.1, rope=ROPE, latent_norm=NORM)
LINEAR = LinearAttention(num_key_heads=2, num_value_heads=4, key_dim=32, value_dim=32, conv_width=4, output_norm=NORM)
ADDED = PerLayerInput(width=8, activation=SILU, post_norm=NORM)
DENSE = DenseFeedForward(intermediate_size=128, activation=SILU)
EXPERTS = ExpertFeedForward(
    num_experts=8, num_experts_used=2, intermediate_size=32, activation=SILU, router=Router(kind="softmax", normalised=True)
)


def layer(attention: Attention = FULL, feed_forward: FeedForward = DENSE, **changes: Any) -> LayerSpec:
    parts = {"attention_norm": NORM, "attention": attention, "feed_forward_norm": NORM, "feed_forward": feed_forward}
    return LayerSpec(**{**parts, **changes})


def changed(part: Any, **wrong: Any) -> Any:
    """With values that no checked program could give."""
    return dataclasses.replace(part, **wrong)


def model(*layers: LayerSpec, **changes: Any) -> ModelSpec:
    outer = {"architecture": "any", "name": "x", "hidden_size": 64, "vocab_size": 256, "context_length": 256, "output_norm": NORM}
    return ModelSpec(**{**outer, "layers": layers, **changes})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: model(), "0 layers"),
        (lambda: model(*[layer()] * 1025), "1025 layers"),
        (lambda: model(layer(), vocab_size=1 << 40), "vocab_size is 1099511627776"),
        (lambda: model(layer(), hidden_size=True), "hidden_size is True"),
        (lambda: model(layer(), hidden_size=3.0), "hidden_size is 3.0"),
        (lambda: model(layer(), name=""), "name is ''"),
        (lambda: model(layer(), architecture="x" * 300), "architecture"),
        (lambda: model(layer(), logit_softcap=float("nan")), "logit_softcap is nan"),
        (lambda: dataclasses.replace(FULL, num_kv_heads=3), "multiple of num_kv_heads"),
        (lambda: dataclasses.replace(FULL, key_dim=31), "even"),
        (lambda: dataclasses.replace(FULL, key_dim=8), "at most key_dim"),
        (lambda: changed(FULL, scale="1"), "scale is '1'"),
        (lambda: dataclasses.replace(FULL, window=0), "window is 0"),
        (lambda: changed(FULL, sinks=1), "sinks is 1; expected true or false"),
        (lambda: dataclasses.replace(ROPE, dim=31), "even"),
        (lambda: dataclasses.replace(ROPE, theta=float("inf")), "theta is inf"),
        (lambda: changed(ROPE, interleaved=1), "interleaved"),
        (lambda: dataclasses.replace(ROPE, freq_factors=(1.0,)), "has 1 values"),
        (lambda: dataclasses.replace(ROPE, freq_factors=(1e31,) * 8), "contains 1e+31"),
        (lambda: dataclasses.replace(ROPE, long_freq_factors=(2.0,) * 8), "original_context is None"),
        (lambda: dataclasses.replace(FULL, keys_of=0, k_norm=NORM), "expected no norm"),
        (lambda: model(layer(dataclasses.replace(FULL, keys_of=0))), "layer 0 has the keys of layer 0"),
        (lambda: model(layer(), layer(dataclasses.replace(FULL, keys_of=0, window=16))), "heads like its own"),
        (lambda: model(layer(per_layer_input=ADDED)), "layer 0 has the width 8"),
        (lambda: dataclasses.replace(EXPERTS, router=Router(kind="sigmoid", num_groups=4, group_best=3)), "group_best is 3"),
        (lambda: dataclasses.replace(ROPE, freq_factors=(0.0,) * 8), "contains 0.0"),
        (lambda: Norm(kind="mean", eps=1e-6), "kind is 'mean'; expected one of rms, layer"),
        (lambda: Norm(kind="rms", eps=float("nan")), "eps is nan"),
        (lambda: dataclasses.replace(LINEAR, num_value_heads=3), "multiple of num_key_heads"),
        (lambda: dataclasses.replace(EXPERTS, num_experts_used=9), "at most num_experts"),
        (lambda: dataclasses.replace(EXPERTS, router=Router(kind="sigmoid", num_groups=3)), "multiple of num_groups"),
        (lambda: dataclasses.replace(EXPERTS, router=Router(kind="sigmoid", num_groups=8)), "at most the 1 of the groups used"),
        (lambda: dataclasses.replace(EXPERTS, shared_gate=True), "no shared expert"),
        (lambda: Router(kind="sigmoid", num_groups_used=2), "at most num_groups"),
        (lambda: Activation(kind="silu", limit=7.0), "expected neither"),
    ],
)
def test_impossible_descriptions_are_refused(make: Callable[[], object], expected: str) -> None:
    with pytest.raises(CorruptModelFile) as caught:
        make()
    assert expected in str(caught.value)


PLAIN = {"attention:full", "attention:bias", "rope", "norm:rms", "feed_forward:dense", "activation:silu"}


def test_what_the_kernels_do_is_all_that_a_plain_decoder_asks_for() -> None:
    assert spec_of(2, layer=layer_of()).needed_features() < PLAIN < set(STAGE_FEATURES)
    biased = layer(dataclasses.replace(FULL, q_bias=True, output_bias=True))
    assert "layers:unequal" not in model(biased, layer()).needed_features(), "biases may differ from layer to layer, nothing else"
    require_features(model(biased, layer()), STAGE_FEATURES)


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        (model(layer(dataclasses.replace(FULL, window=16))), "attention:sliding_window"),
        (model(layer(LATENT)), "attention:latent"),
        (model(layer(LINEAR)), "attention:linear"),
        (model(layer(dataclasses.replace(FULL, q_norm=NORM))), "attention:qk_norm"),
        (model(layer(dataclasses.replace(FULL, value_dim=16))), "attention:unequal_head_dims"),
        (model(layer(dataclasses.replace(FULL, sinks=True))), "attention:sinks"),
        (model(layer(dataclasses.replace(FULL, softcap=50.0))), "attention:softcap"),
        (model(layer(dataclasses.replace(FULL, output_gate=True))), "attention:output_gate"),
        (model(layer(dataclasses.replace(FULL, rope=None))), "rope:none"),
        (model(layer(dataclasses.replace(FULL, rope=dataclasses.replace(ROPE, magnitude=1.3)))), "rope:magnitude"),
        (model(layer(feed_forward=EXPERTS)), "feed_forward:experts, router:softmax"),
        (
            model(layer(feed_forward=dataclasses.replace(EXPERTS, shared_intermediate_size=32))),
            "feed_forward:experts, feed_forward:shared_expert, router:softmax",
        ),
        (model(layer(feed_forward=DenseFeedForward(intermediate_size=8, activation=Activation(kind="gelu_tanh")))), "activation:gelu_tanh"),
        (model(layer(attention_norm=Norm(kind="layer", eps=1e-6))), "norm:layer, norm:unequal"),
        (model(layer(attention_norm=None)), "norm:none_before"),
        (model(layer(attention_post_norm=NORM)), "norm:after"),
        (model(layer(), output_norm=Norm(kind="rms", eps=1e-6, offset_by_one=True)), "norm:offset_by_one, norm:unequal"),
        (model(layer(residual_scale=0.5)), "scale:residual"),
        (model(layer(), embedding_scale=8.0), "scale:embedding"),
        (model(layer(), logit_scale=0.1), "scale:logits"),
        (model(layer(), logit_softcap=30.0), "softcap:logits"),
        (model(layer(dataclasses.replace(FULL, v_norm=Norm(kind="rms", eps=1e-6, weighted=False)))), "attention:v_norm, norm:unweighted"),
        (model(layer(), layer(dataclasses.replace(FULL, keys_of=0))), "attention:shared_keys, layers:unequal"),
        (model(layer(per_layer_input=ADDED), per_layer_embedding=PerLayerEmbedding(width=8, norm=NORM)), "per_layer_input"),
        (model(layer(output_scale=True)), "scale:layer"),
        (model(layer(), layer(feed_forward=DenseFeedForward(intermediate_size=64, activation=SILU))), "layers:unequal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_offered_is_refused_by_name(spec: ModelSpec, missing: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        require_features(spec, PLAIN)
    assert str(caught.value) == f"x (any) needs {missing}, which is not supported here"
    require_features(spec, spec.needed_features())


def test_what_a_layer_keeps_of_a_sequence() -> None:
    spec = model(layer(), layer(dataclasses.replace(FULL, value_dim=16)), layer(LATENT), layer(LINEAR))
    kept = [(spec.state_bytes_per_token(unit, "F16"), spec.state_bytes_per_sequence(unit)) for unit in range(spec.num_units)]
    recurrent = 4 * (4 * 32 * 32 + 3 * (2 * 2 * 32 + 4 * 32))
    assert kept == [(0, 0), (2 * 2 * 2 * 32, 0), (2 * (2 * 32 + 2 * 16), 0), (2 * (32 + 16), 0), (0, recurrent), (0, 0)]


def unit_of(spec: ModelSpec, index: int) -> Unit:
    tensors = []
    for role, shape in unit_shapes(spec, index).items():
        size_bytes = 4
        for length in shape:
            size_bytes *= length
        pieces = (TensorPiece(offset_bytes=0, size_bytes=size_bytes),)
        tensors.append(TensorInfo(name=role, role=role, block_format="F32", shape=shape, pieces=pieces))
    return Unit(index=index, tensors=tuple(tensors), size_bytes=sum(tensor.size_bytes for tensor in tensors), digest=bytes(32))


def test_a_step_reads_the_experts_that_are_chosen() -> None:
    spec = model(layer(), layer(feed_forward=dataclasses.replace(EXPERTS, shared_intermediate_size=48, shared_gate=True)))
    embedding, dense, experts, head = (unit_of(spec, index) for index in range(4))
    assert embedding.bytes_read_per_step(spec) == 0
    assert dense.bytes_read_per_step(spec) == dense.size_bytes
    assert head.bytes_read_per_step(spec) == head.size_bytes == 4 * (64 + 256 * 64)
    stacks = 4 * 3 * 8 * 32 * 64
    assert sum(tensor.size_bytes for tensor in experts.tensors if tensor.is_expert_stack) == stacks
    assert experts.bytes_read_per_step(spec) == experts.size_bytes - stacks + stacks * 2 // 8
    read_by_two_rows = 8 * (1 - (6 / 8) ** 2)
    assert experts.bytes_read_per_step(spec, 2) == experts.size_bytes - stacks + round(stacks * read_by_two_rows / 8)
    assert experts.bytes_read_per_step(spec, 1000) == experts.size_bytes
    assert dense.bytes_read_per_step(spec, 2) == dense.size_bytes


def test_how_many_experts_a_step_reads() -> None:
    """Each row chooses its experts without putting them back; rows choose alike but know nothing of each other."""
    random = np.random.default_rng(0)
    for experts, used, rows in ((8, 2, 1), (8, 2, 3), (32, 4, 8), (128, 8, 16)):
        block = dataclasses.replace(EXPERTS, num_experts=experts, num_experts_used=used)
        seen = [len({int(one) for _ in range(rows) for one in random.permutation(experts)[:used]}) for _ in range(300)]
        assert np.mean(seen) == pytest.approx(block.experts_read(rows), rel=0.03)


def test_tensors_of_a_layer_are_what_the_description_asks_for() -> None:
    everything = SelfAttention(
        num_heads=4,
        num_kv_heads=2,
        key_dim=32,
        value_dim=16,
        scale=0.2,
        q_norm=NORM,
        k_norm=NORM,
        v_bias=True,
        sinks=True,
        output_gate=True,
    )
    spec = model(layer(everything, dataclasses.replace(EXPERTS, bias=True), attention_post_norm=NORM, feed_forward_post_norm=NORM))
    assert unit_shapes(spec, 0) == {"token_embedding": (256, 64)}
    assert unit_shapes(spec, 2) == {"output_norm": (64,), "output": (256, 64)}
    assert unit_shapes(spec, 1) == {
        "attention_norm": (64,),
        "q": (256, 64),
        "k": (64, 64),
        "v": (32, 64),
        "attention_output": (64, 64),
        "v_bias": (32,),
        "q_norm": (32,),
        "k_norm": (32,),
        "attention_sinks": (4,),
        "attention_post_norm": (64,),
        "ffn_norm": (64,),
        "router": (8, 64),
        "expert_gate": (8, 32, 64),
        "expert_up": (8, 32, 64),
        "expert_down": (8, 64, 32),
        "expert_gate_bias": (8, 32),
        "expert_up_bias": (8, 32),
        "expert_down_bias": (8, 64),
        "ffn_post_norm": (64,),
    }


def test_tensors_of_other_kinds_of_attention() -> None:
    latent, plain = unit_shapes(model(layer(LATENT)), 1), unit_shapes(model(layer(dataclasses.replace(LATENT, query_rank=None))), 1)
    assert (latent["q_b"], latent["kv_a"], latent["k_b"], latent["v_b"]) == ((192, 48), (48, 64), (4, 32, 32), (4, 32, 32))
    assert (plain["q"], "q_b" in plain) == ((192, 64), False)
    linear = unit_shapes(model(layer(LINEAR)), 1)
    assert (linear["qkv"], linear["conv"], linear["attention_output"]) == ((256, 64), (256, 4), (64, 128))
    assert [is_numbers(role, linear[role]) for role in ("conv", "alpha", "decay")] == [True, False, True]


def test_tensors_of_layers_that_share_and_add() -> None:
    spec = model(
        layer(per_layer_input=ADDED),
        layer(dataclasses.replace(FULL, keys_of=0), per_layer_input=ADDED, output_scale=True),
        per_layer_embedding=PerLayerEmbedding(width=8, norm=NORM),
    )
    assert unit_shapes(spec, 0)["per_layer_embedding"] == (256, 16)
    shared = unit_shapes(spec, 2)
    assert {"k", "v"}.isdisjoint(shared)
    assert (shared["per_layer_gate"], shared["per_layer_output"], shared["layer_scale"]) == ((8, 64), (64, 8), (1,))
    assert [spec.state_bytes_per_token(unit, "F16") for unit in (1, 2)] == [256, 256], "each layer keeps what it looks at"
    assert (spec.carried_width, spec.row_width) == (2 * 8 + 128, 64 + 144)
    assert [spec.carried_keys(layer) for layer in (0, 1)] == [16, 16]
