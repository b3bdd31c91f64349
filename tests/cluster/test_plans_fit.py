"""What the planner gives to a shard, that shard can load: both count memory alike, for any model and any budgets."""

import math
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dairllm.coordinator.model import demand_of
from dairllm.coordinator.planner import KvDemand, ModelDemand, Plan, ShardOffer, Stage, make_plan
from dairllm.kernels_pyx import KV_ELEMENT_TYPES, PackedMatrix, PackedStack, get_num_threads
from dairllm.mesh.peers import Peer
from dairllm.mesh.system_memory import MIB
from dairllm.model_files.attention import LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.block_formats import BLOCK_FORMATS, VECTOR_FORMATS
from dairllm.model_files.dense_decoder import dense_decoder
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, Router
from dairllm.model_files.manifest import Manifest, ModelFile, TensorInfo, TensorPiece, Unit, compute_model_digest
from dairllm.model_files.memory import EXPERTS_FEATURE, STREAMED_FEATURE
from dairllm.model_files.norm import Norm
from dairllm.model_files.roles import is_numbers, unit_shapes
from dairllm.model_files.spec import LayerSpec, ModelSpec, PerLayerEmbedding, PerLayerInput
from dairllm.shard_service.assignment import AssignmentFacts, CacheGeometry
from dairllm.shard_service.epochs.preparer import demand_of as demand_of_assignment
from dairllm.shard_service.forward.building import build_stage
from dairllm.shard_service.machine.memory import MemoryBudget
from dairllm.shard_service.weights.assembler import LoadedUnit

BLOCK_TOKENS = 32
HEAD_DIMS = st.sampled_from([2, 20, 64, 128, 512])
NORM = Norm(kind="rms", eps=1e-5)
SILU = Activation(kind="silu")


@st.composite
def self_attentions(draw: st.DrawFn) -> SelfAttention:
    key_dim, value_dim, num_kv_heads = draw(HEAD_DIMS), draw(HEAD_DIMS), draw(st.integers(1, 8))
    return SelfAttention(
        num_heads=num_kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        scale=1.0,
        rope=draw(st.sampled_from([None, *(Rope(theta=theta, dim=dim, interleaved=True) for theta in (1e4, 1e6) for dim in (2, key_dim))])),
        window=draw(st.none() | st.integers(1, 5000)),
    )


@st.composite
def latent_attentions(draw: st.DrawFn) -> LatentAttention:
    return LatentAttention(
        num_heads=draw(st.integers(1, 32)),
        query_rank=draw(st.none() | st.integers(1, 500)),
        kv_rank=draw(st.integers(1, 512)),
        key_dim=draw(st.integers(1, 128)),
        value_dim=draw(st.integers(1, 128)),
        scale=1.0,
        rope=Rope(theta=1e4, dim=2 * draw(st.integers(1, 32)), interleaved=True),
        latent_norm=NORM,
    )


@st.composite
def linear_attentions(draw: st.DrawFn) -> LinearAttention:
    num_key_heads = draw(st.integers(1, 16))
    return LinearAttention(
        num_key_heads=num_key_heads,
        num_value_heads=num_key_heads * draw(st.integers(1, 4)),
        key_dim=draw(st.integers(1, 128)),
        value_dim=draw(st.integers(1, 128)),
        conv_width=draw(st.integers(1, 5)),
        output_norm=NORM,
    )


@st.composite
def layers(draw: st.DrawFn) -> LayerSpec:
    attention = draw(st.one_of(self_attentions(), latent_attentions(), linear_attentions()))
    dense = st.builds(DenseFeedForward, intermediate_size=st.integers(1, 900).map(lambda n: 32 * n), activation=st.just(SILU))
    feed_forward = draw(dense | experts())
    return LayerSpec(attention_norm=NORM, attention=attention, feed_forward_norm=NORM, feed_forward=feed_forward)


@st.composite
def experts(draw: st.DrawFn) -> ExpertFeedForward:
    num_experts, shared = draw(st.integers(1, 40)), draw(st.sampled_from([0, 32, 960]))
    return ExpertFeedForward(
        num_experts=num_experts,
        num_experts_used=draw(st.integers(1, num_experts)),
        intermediate_size=draw(st.sampled_from([32, 64, 416])),
        activation=SILU,
        router=Router(kind="sigmoid", bias=draw(st.booleans()), selection_bias=draw(st.booleans())),
        shared_intermediate_size=shared,
        shared_gate=shared > 0 and draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Models whose layers differ, in any order, with numbers that rows carry along or without."""
    kinds = st.sampled_from(draw(st.lists(layers(), min_size=1, max_size=3)))
    found = draw(st.lists(kinds, min_size=1, max_size=8))
    attention = found[0].attention
    if isinstance(attention, SelfAttention) and draw(st.booleans()):
        found.append(replace(found[0], attention=replace(attention, keys_of=0)))
    width = draw(st.sampled_from([0, 0, 32, 256]))
    added = PerLayerInput(width=width, activation=Activation(kind="silu"), post_norm=NORM) if width else None
    spec = dense_decoder(
        tuple(found),
        architecture="llama",
        name="any",
        hidden_size=32 * draw(st.integers(1, 256)),
        vocab_size=draw(st.integers(1, 200_000)),
        context_length=1 << 17,
    )
    if added is None:
        return spec
    own = tuple(replace(layer, per_layer_input=added) for layer in spec.layers)
    return replace(spec, layers=own, per_layer_embedding=PerLayerEmbedding(width=width, norm=NORM))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Matrices of one role and shape have any one format; embedding and head may be one tensor."""
    spec, tied = draw(specs()), draw(st.booleans())
    formats: dict[tuple[str, tuple[int, ...]], str] = {}
    units: list[Unit] = []
    offset = 0
    for index in range(spec.num_units):
        tensors = []
        for role, shape in unit_shapes(spec, index).items():
            matrix_formats = tuple(n for n, f in BLOCK_FORMATS.items() if shape[-1] % f.block_size == 0)
            possible = VECTOR_FORMATS if is_numbers(role, shape) else matrix_formats
            name = "token_embedding" if tied and role == "output" else role
            block_format = formats[name, shape] = formats.get((name, shape)) or draw(st.sampled_from(possible))
            row_bytes = shape[-1] // BLOCK_FORMATS[block_format].block_size * BLOCK_FORMATS[block_format].block_bytes
            size_bytes = row_bytes * math.prod(shape[:-1])
            place = units[0].tensors[0].pieces[0].offset_bytes if name != role else offset
            offset = max(offset, place + size_bytes)
            pieces = (TensorPiece(offset_bytes=place, size_bytes=size_bytes),)
            tensors.append(TensorInfo(name=role, role=role, block_format=block_format, shape=shape, pieces=pieces))
        units.append(Unit(index=index, tensors=tuple(tensors), size_bytes=sum(t.size_bytes for t in tensors), digest=index.to_bytes(32)))
    return Manifest(
        spec=spec,
        units=tuple(units),
        files=(ModelFile(name="any.gguf", size_bytes=offset),),
        model_digest=compute_model_digest(spec, units),
    )


def offer_of(name: str, budget: MemoryBudget, demand: ModelDemand, *, streams: bool = True) -> ShardOffer:
    features = demand.features | ({STREAMED_FEATURE, EXPERTS_FEATURE} if streams else set())
    return ShardOffer(name, budget.total_bytes, budget.reserve, 0.0, 0.0, features, demand.block_formats, get_num_threads())


def assignment_of(manifest: Manifest, stage: Stage, geometry: CacheGeometry) -> AssignmentFacts:
    units = tuple(manifest.units[index] for index in stage.units)
    facts = AssignmentFacts(1, manifest.model_digest, manifest.spec, units, "", manifest.files, Peer("next", ()), geometry, "F32")
    return replace(facts, streamed=frozenset(stage.streamed), expert_places=stage.expert_places)


@settings(deadline=None, max_examples=150)
@given(
    manifests(),
    st.lists(st.integers(128, 3000), min_size=1, max_size=4),
    st.integers(1, 20_000),
    st.sampled_from([1, 64, 512]),
    st.sampled_from(KV_ELEMENT_TYPES),
    st.integers(1, 3),
)
def test_a_plan_that_is_made_can_be_loaded(
    manifest: Manifest, sizes_mib: list[int], context_length: int, max_rows: int, kv_cache: str, min_shards: int
) -> None:
    budgets = {f"shard-{number}": MemoryBudget(size * MIB) for number, size in zip(count(), sizes_mib, strict=False)}
    demand = demand_of(manifest, "any", context_length, kv_cache, max_rows)
    offers = [offer_of(name, budget, demand) for name, budget in budgets.items()]
    plan = make_plan(demand, offers, min_shards=min_shards, kv=KvDemand(BLOCK_TOKENS, 4 * context_length))
    if not isinstance(plan, Plan):
        return
    for stage in plan.stages:
        geometry = CacheGeometry(plan.num_kv_blocks, BLOCK_TOKENS, context_length, max_rows, kv_cache)
        needed = demand_of_assignment(assignment_of(manifest, stage, geometry))
        budgets[stage.shard].require(needed)
        assert (stage.weights_bytes, stage.kv_cache_bytes) == (needed.weights_bytes, needed.kv_cache_bytes)
    in_memory = make_plan(
        demand,
        [offer_of(name, budget, demand, streams=False) for name, budget in budgets.items()],
        min_shards=min_shards,
        kv=KvDemand(BLOCK_TOKENS, 4 * context_length),
    )
    assert plan == in_memory if isinstance(in_memory, Plan) else plan.streamed_bytes > 0 or 0 in plan.stages[0].streamed


@settings(deadline=None, max_examples=100)
@given(manifests(), st.integers(1, 3), st.integers(1, 8000))
def test_what_one_shard_can_load_alone_is_planned(manifest: Manifest, spare_mib: int, context_length: int) -> None:
    """The planner is no more cautious than the shard."""
    demand = demand_of(manifest, "any", context_length, "F16", 512)
    num_blocks = -(-context_length // BLOCK_TOKENS)
    whole = Stage("A", range(demand.num_units), 0, 0, 0.0)
    needed = demand_of_assignment(assignment_of(manifest, whole, CacheGeometry(num_blocks, BLOCK_TOKENS, context_length, 512)))
    total = needed.weights_bytes + needed.kv_cache_bytes
    while MemoryBudget(total).missing_bytes(needed):
        total += spare_mib * MIB
    assert isinstance(make_plan(demand, [offer_of("A", MemoryBudget(total), demand, streams=False)]), Plan)


def loaded(manifest: Manifest, unit: Unit) -> LoadedUnit:
    """Of zeros."""
    return LoadedUnit(unit, manifest.model_digest, {tensor.role: _zeros(tensor) for tensor in unit.tensors})


def _zeros(tensor: TensorInfo) -> Any:
    if is_numbers(tensor.role, tensor.shape):
        return np.zeros(tensor.shape, np.float32)
    kind = PackedMatrix if len(tensor.shape) == 2 else PackedStack
    return kind(tensor.block_format, *tensor.shape)


@settings(deadline=None, max_examples=40)
@given(manifests(), st.integers(1, 512), st.integers(1, 8000), st.data())
def test_the_kernels_take_no_more_than_is_counted(manifest: Manifest, max_rows: int, context_length: int, data: st.DataObject) -> None:
    assume(sum(unit.size_bytes for unit in manifest.units) < 1 << 29)
    first = data.draw(st.integers(0, manifest.spec.num_units - 1))
    stage = Stage("A", range(first, data.draw(st.integers(first + 1, manifest.spec.num_units))), 0, 0, 0.0)
    assignment = assignment_of(manifest, stage, CacheGeometry(1, BLOCK_TOKENS, context_length, max_rows))
    parts = build_stage(assignment, [loaded(manifest, unit) for unit in assignment.units])
    taken = sum(part.scratch_bytes for part in parts if part is not None)
    assert taken <= demand_of_assignment(assignment).scratch_bytes
