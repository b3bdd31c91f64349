"""Properties of the planner: what every plan has, and that the fastest is the fastest."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dairllm.coordinator.planner import (
    BALANCE_SLACK,
    EXACT_SHARDS,
    HYSTERESIS,
    Infeasible,
    KvDemand,
    LeftOut,
    ModelDemand,
    Plan,
    ShardOffer,
    UnitDemand,
    make_plan,
)
from dairllm.coordinator.planner.problem import PROMPT_ROW_SHARE, PROMPT_TOKENS_PER_ANSWER_TOKEN
from dairllm.model_files.memory import EXPERTS_FEATURE, STREAM_READERS, STREAM_SLOTS, STREAMED_FEATURE, ExpertsSize, Reserve, StreamedSize
from tests.instruments.descriptions import FEATURES, demand_of

MIB = 1 << 20
GIB = 1 << 30
ROUNDING = 1 + 1e-9


def demand(
    layer_sizes: tuple[int, ...], embedding: int = 100, head: int = 100, tied: int = 0, kv_per_token: int = 1, context: int = 32
) -> ModelDemand:
    sizes = (embedding, *layer_sizes, head)
    return demand_of("m", b"d", sizes, tied=tied, kv_per_token=kv_per_token, context=context)


def offer(name: str, memory: int, s_per_byte: float = 1e-9, hop_s: float = 0.0, reserved: int = 0) -> ShardOffer:
    return ShardOffer(name, memory, Reserve(reserved), s_per_byte, hop_s, FEATURES | {"rope"}, frozenset({"Q4_0", "F32"}))


@st.composite
def demands(draw: st.DrawFn, max_layers: int = 6) -> ModelDemand:
    layers = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=max_layers))
    embedding, head = draw(st.integers(0, 1000)), draw(st.integers(1, 1000))
    tied = draw(st.sampled_from([0, min(embedding, head)]))
    return demand(tuple(layers), embedding, head, tied, draw(st.integers(0, 20)), draw(st.integers(1, 100)))


@st.composite
def offer_lists(draw: st.DrawFn, max_shards: int = 5) -> list[ShardOffer]:
    count = draw(st.integers(1, max_shards))
    return [
        offer(
            name,
            draw(st.integers(1, 8000)),
            draw(st.sampled_from([1e-10, 1e-9, 1.05e-9, 4e-9])),
            draw(st.sampled_from([0.0, 1e-8, 1e-7, 1e-6])),
            draw(st.sampled_from([0, 50])),
        )
        for name in "ABCDEFGHIJKL"[:count]
    ]


def fits(model: ModelDemand, shard: ShardOffer, units: range, kv_blocks: int, block_tokens: int = 32) -> bool:
    """The memory rule, written independently of the planner."""
    weights = sum(model.units[u].size_bytes for u in units) - (model.tied_bytes if len(units) == len(model.units) else 0)
    cache = kv_blocks * block_tokens * sum(model.units[u].state_bytes_per_token for u in units)
    return weights + cache + shard.reserve.size_bytes <= shard.memory_budget_bytes


def step_s(model: ModelDemand, shard: ShardOffer, units: range) -> float:
    return shard.hop_s + shard.decode_s_per_byte * sum(model.units[u].step_bytes for u in units)


def brute_force(model: ModelDemand, offers: list[ShardOffer], min_shards: int) -> float | None:
    """The least step of all subsets, orders and cuts; if several must have a part, of those with a layer for each, if there are any."""
    if 1 < min_shards <= model.num_layers:
        best = least_step(model, offers, min_shards, {1, model.num_layers + 1})
        if best is not None:
            return best
    return least_step(model, offers, min_shards, set())


def least_step(model: ModelDemand, offers: list[ShardOffer], min_shards: int, uncut: set[int]) -> float | None:
    num_units = model.num_layers + 2
    blocks = -(-model.context_length // 32)
    best: float | None = None
    for count in range(min_shards, min(len(offers), num_units) + 1):
        for cuts in combinations(sorted(set(range(1, num_units)) - uncut), count - 1):
            runs = [range(a, b) for a, b in pairwise((0, *cuts, num_units))]
            for order in permutations(offers, count):
                if all(fits(model, shard, units, blocks) for shard, units in zip(order, runs, strict=True)):
                    total = sum(step_s(model, shard, units) for shard, units in zip(order, runs, strict=True))
                    best = total if best is None else min(best, total)
    return best


def check_plan(model: ModelDemand, offers: list[ShardOffer], plan: Plan, min_shards: int = 1) -> None:
    by_name = {shard.name: shard for shard in offers}
    assert plan.stages[0].units.start == 0
    assert plan.stages[-1].units.stop == len(model.units)
    assert all(a.units.stop == b.units.start for a, b in pairwise(plan.stages))
    assert all(stage.units for stage in plan.stages)
    assert len({stage.shard for stage in plan.stages}) == len(plan.stages) >= min_shards
    assert plan.num_kv_blocks * 32 >= model.context_length
    for stage in plan.stages:
        assert fits(model, by_name[stage.shard], stage.units, plan.num_kv_blocks)
    total = sum(step_s(model, by_name[stage.shard], stage.units) for stage in plan.stages)
    assert plan.predicted_step_s == pytest.approx(total, abs=1e-10)
    assert set(by_name) == {stage.shard for stage in plan.stages} | {left.shard for left in plan.left_out}


@settings(deadline=None, max_examples=150)
@given(demands(), offer_lists(), st.integers(1, 3))
@example(demand((1,), embedding=0, head=1, kv_per_token=0), [offer("A", 1), offer("B", 1), offer("C", 1, reserved=50)], 3)
def test_the_plan_is_valid_and_its_fastest_step_is_that_of_brute_force(
    model: ModelDemand, offers: list[ShardOffer], min_shards: int
) -> None:
    plan = make_plan(model, offers, min_shards=min_shards)
    best = brute_force(model, offers, min_shards)
    if isinstance(plan, Infeasible):
        assert best is None
        return
    check_plan(model, offers, plan, min_shards)
    assert best is not None
    rounding_s = 1e-12 * (len(model.units) + len(offers) + 2)
    assert plan.fastest_step_s == pytest.approx(best, abs=rounding_s)
    assert plan.predicted_step_s <= plan.fastest_step_s * (1 + BALANCE_SLACK) + rounding_s


@settings(deadline=None, max_examples=100)
@given(demands(20), offer_lists(EXACT_SHARDS))
def test_no_plan_is_slower_than_the_best_single_machine(model: ModelDemand, offers: list[ShardOffer]) -> None:
    alone = [plan.predicted_step_s for one in offers if isinstance(plan := make_plan(model, [one]), Plan)]
    plan = make_plan(model, offers)
    if alone:
        assert isinstance(plan, Plan)
        assert plan.predicted_step_s <= min(alone) * ROUNDING


@settings(deadline=None, max_examples=100)
@given(demands(20), offer_lists(EXACT_SHARDS))
def test_more_shards_never_make_the_fastest_step_slower(model: ModelDemand, offers: list[ShardOffer]) -> None:
    fewer, more = make_plan(model, offers[:-1]), make_plan(model, offers)
    if isinstance(fewer, Plan):
        assert isinstance(more, Plan)
        assert more.fastest_step_s <= fewer.fastest_step_s * ROUNDING


@settings(deadline=None, max_examples=100)
@given(demands(20), offer_lists(12), st.randoms(use_true_random=False))
def test_plans_are_deterministic_and_do_not_depend_on_the_order_of_offers(model: ModelDemand, offers: list[ShardOffer], random) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(offers)
    random.shuffle(shuffled)
    assert make_plan(model, shuffled) == make_plan(model, offers)


@settings(deadline=None, max_examples=200)
@given(demands(20), offer_lists(12), st.data())
def test_a_plan_after_a_loss_is_valid_and_a_previous_plan_costs_at_most_the_hysteresis(
    model: ModelDemand, offers: list[ShardOffer], data: st.DataObject
) -> None:
    before = make_plan(model, offers)
    left = data.draw(st.lists(st.sampled_from(offers), unique=True, min_size=1))
    if isinstance(before, Infeasible):
        return
    after = make_plan(model, left, previous=before)
    fresh = make_plan(model, left)
    if isinstance(after, Plan):
        check_plan(model, left, after)
    if len(left) <= EXACT_SHARDS:
        assert isinstance(after, Infeasible) == isinstance(fresh, Infeasible)
    if isinstance(after, Plan) and isinstance(fresh, Plan) and len(left) <= EXACT_SHARDS:
        most = fresh.fastest_step_s * (1 + HYSTERESIS) * (1 + BALANCE_SLACK) * (1 + HYSTERESIS)
        assert after.predicted_step_s <= most + 1e-10


SIX_LAYERS = demand((100 * MIB,) * 6, 50 * MIB, 50 * MIB)


def placement(plan: Plan | Infeasible) -> Mapping[str, range]:
    assert isinstance(plan, Plan), plan
    return plan.placement


def test_one_machine_is_enough_if_the_model_fits() -> None:
    plan = make_plan(SIX_LAYERS, [offer("A", GIB, hop_s=0.05), offer("B", GIB, 0.999e-9, hop_s=0.05)])
    assert placement(plan) == {"B": range(8)}
    assert isinstance(plan, Plan)
    assert [left.shard for left in plan.left_out] == ["A"]
    assert plan.left_out[0].reason.startswith("would slow the answers down: expected ")
    assert plan.left_out[0].reason.endswith(" tok/s with it, 1.4 without")


def test_equal_machines_that_must_share_share_equally() -> None:
    plan = make_plan(SIX_LAYERS, [offer("A", GIB), offer("B", GIB)], min_shards=2)
    assert placement(plan) == {"A": range(4), "B": range(4, 8)}


def test_nearly_equal_machines_share_too() -> None:
    plan = make_plan(SIX_LAYERS, [offer("A", GIB, 1e-9), offer("B", GIB, 1.03e-9)], min_shards=2)
    assert {len(units) for units in placement(plan).values()} <= {3, 4, 5}


def test_a_head_that_is_a_third_of_a_step_costs_its_machine_few_layers_since_prompts_do_not_pass_it() -> None:
    """By steps alone, A would get 22 layers of 30, and have three quarters of a prompt's work."""
    plan = make_plan(demand((10,) * 30, head=150), [offer("A", GIB), offer("B", GIB)], min_shards=2)
    assert placement(plan) == {"A": range(18), "B": range(18, 32)}


def busiest_s(model: ModelDemand, offers: Mapping[str, ShardOffer], placement: Mapping[str, range]) -> float:
    """Of the stages, for a token of an answer with its share of the prompt."""
    shares = [1.0, *[1 + PROMPT_TOKENS_PER_ANSWER_TOKEN * PROMPT_ROW_SHARE] * model.num_layers, 1.0]
    loads = [unit.step_bytes * share for unit, share in zip(model.units, shares, strict=True)]
    return max(offers[name].decode_s_per_byte * sum(loads[units.start : units.stop]) for name, units in placement.items())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=20), st.integers(0, 20_000))
def test_of_equal_machines_none_is_kept_busy_for_longer_than_the_best_cut_demands(layers: list[int], head: int) -> None:
    model, offers = demand(tuple(layers), head=head), [offer("A", GIB), offer("B", GIB)]
    by_name = {one.name: one for one in offers}
    plan = make_plan(model, offers, min_shards=2)
    cuts = ({"A": range(cut), "B": range(cut, model.num_units)} for cut in range(2, model.num_units - 1))
    assert busiest_s(model, by_name, placement(plan)) <= 1.02 * min(busiest_s(model, by_name, cut) for cut in cuts)


def test_the_fast_machine_gets_what_fits_and_the_slow_one_the_rest() -> None:
    plan = make_plan(SIX_LAYERS, [offer("slow", GIB, 4e-9), offer("fast", 470 * MIB, 1e-9)])
    spans = placement(plan)
    assert SIX_LAYERS.weights_bytes(spans["fast"]) > 400 * MIB


def test_a_shared_table_counts_once_on_one_shard_and_twice_on_two() -> None:
    model = demand((10,) * 2, embedding=1000, head=1005, tied=1000, kv_per_token=0)
    assert placement(make_plan(model, [offer("A", 1025)])) == {"A": range(4)}
    lack = make_plan(model, [offer("A", 1024)])
    assert isinstance(lack, Infeasible)
    assert lack.missing_bytes == 1
    apart = make_plan(model, [offer("A", 1024), offer("B", 1005)])
    assert {len(units) for units in placement(apart).values()} == {1, 3}


def test_lack_of_memory_is_told_in_numbers() -> None:
    model = demand((GIB,) * 4, 0, GIB, kv_per_token=0)
    lack = make_plan(model, [offer("A", 2 * GIB), offer("B", GIB + GIB // 2)])
    assert isinstance(lack, Infeasible)
    assert lack.missing_bytes == GIB + GIB // 2
    assert lack.reason == (
        "1.5 GiB of memory are missing (the model needs 5.0 GiB, 2 shards offer 3.5 GiB: A 2.0 GiB of 2.0 GiB, B 1.5 GiB of 1.5 GiB); "
        "what helps: more --memory (`dairllm set NAME --memory SIZE`) or a further machine"
    )


def test_a_shorter_context_is_proposed_if_it_fits() -> None:
    model = demand((1000,) * 2, 0, 0, kv_per_token=1, context=4096)
    offers = [offer("A", 1600), offer("B", 1700), offer("C", 60, reserved=50)]
    lack = make_plan(model, offers)
    assert isinstance(lack, Infeasible)
    assert "--context-length 576" in lack.reason
    assert isinstance(make_plan(replace(model, context_length=576), offers), Plan)
    assert isinstance(make_plan(replace(model, context_length=577), offers), Infeasible)


def test_with_several_machines_wanted_each_gets_a_layer_if_it_can() -> None:
    slow = [offer(name, GIB, 1e-8) for name in "BC"]
    plan = make_plan(demand((100,) * 4, 100, 100), [offer("A", GIB), *slow], min_shards=3)
    assert isinstance(plan, Plan)
    assert all(set(stage.units) - {0, 5} for stage in plan.stages)
    few = make_plan(demand((100,), 100, 100), [offer("A", GIB), *slow], min_shards=3)
    assert isinstance(few, Plan)
    assert len(few.stages) == 3


def test_any_numbers_of_a_shard_make_a_plan_or_a_reason() -> None:
    boaster = ShardOffer("B", 1 << 50, Reserve(0, (1 << 63) - 1), 1e-9, 0.0, FEATURES, frozenset({"Q4_0"}), (1 << 32) - 1)
    plan = make_plan(SIX_LAYERS, [offer("A", GIB), boaster])
    assert isinstance(plan, Plan)
    assert list(plan.placement) == ["A"]
    assert isinstance(make_plan(SIX_LAYERS, [boaster]), Infeasible)


def test_memory_in_pieces_is_told_too() -> None:
    model = demand((GIB,) * 2, 0, 0, kv_per_token=0)
    lack = make_plan(model, [offer(name, GIB * 3 // 4) for name in "ABC"])
    assert isinstance(lack, Infeasible)
    assert "missing in one piece" in lack.reason


def test_a_shard_that_cannot_compute_the_model_is_named() -> None:
    model = replace(SIX_LAYERS, features=frozenset({"attention:full", "rope"}))
    weak = ShardOffer("weak", GIB, Reserve(), 1e-9, 0.0, frozenset({"rope", "attention:latent"}), frozenset({"Q4_0"}))
    poor = ShardOffer("poor", GIB, Reserve(), 1e-9, 0.0, model.features, frozenset({"F32"}))
    plan = make_plan(model, [weak, poor, offer("A", GIB)])
    assert isinstance(plan, Plan)
    assert LeftOut("weak", "cannot do attention:full") in plan.left_out
    assert LeftOut("poor", "cannot compute with Q4_0") in plan.left_out


def test_min_shards_must_not_exceed_the_units() -> None:
    lack = make_plan(demand((1,)), [offer(name, GIB) for name in "ABCD"], min_shards=4)
    assert isinstance(lack, Infeasible)
    assert "3 parts" in lack.reason


def test_kv_blocks_take_what_is_left_up_to_the_target() -> None:
    model = demand((100,) * 2, 100, 100, kv_per_token=1, context=64)
    kv = KvDemand(block_tokens=32, target_tokens=640)
    blocks = [plan.num_kv_blocks for room in (528, 592, 10_000) if isinstance(plan := make_plan(model, [offer("A", room)], kv=kv), Plan)]
    assert blocks == [2, 3, 20]


def test_a_previous_plan_stays_for_a_small_gain_and_goes_for_a_large_one() -> None:
    before = make_plan(SIX_LAYERS, [offer("A", GIB, 1e-9)])
    assert isinstance(before, Plan)
    little = make_plan(SIX_LAYERS, [offer("A", GIB, 1e-9), offer("B", GIB, 0.9e-9)], previous=before)
    assert placement(little) == {"A": range(8)}
    assert isinstance(little, Plan)
    assert little.left_out == (
        LeftOut("B", "would gain less than the 20% for which layers are moved: expected 1.6 tok/s with it, 1.5 without"),
    )
    much = make_plan(SIX_LAYERS, [offer("A", GIB, 1e-9), offer("B", GIB, 0.5e-9)], previous=before)
    assert placement(much) == {"B": range(8)}


def test_the_survivors_of_a_loss_keep_their_units() -> None:
    offers = [offer(name, 320 * MIB) for name in "ABC"]
    before = make_plan(SIX_LAYERS, offers)
    assert len(placement(before)) == 3
    lost = list(placement(before))[1]
    assert isinstance(before, Plan)
    after = placement(make_plan(SIX_LAYERS, [*(o for o in offers if o.name != lost), offer("D", 320 * MIB)], previous=before))
    for name in placement(before):
        if name != lost:
            assert set(before.placement[name]) & set(after[name]) == set(before.placement[name])
    assert after["D"] == before.placement[lost]


def test_what_was_computed_stays_where_it_is_when_another_still_holds_the_weights() -> None:
    """D lost the units of all others a moment ago and has them in memory, but only what is computed with them counts for the answers."""
    offers = [offer(name, GIB, hop_s=1e-4) for name in "ABD"]
    before = Plan.of_placement({"A": range(3), "B": range(3, 6), "C": range(6, 8)})
    held = {"A": set(range(3)), "B": set(range(3, 6)), "D": set(range(8))}
    after = make_plan(SIX_LAYERS, offers, previous=before, held=held, min_shards=3, urgent=True)
    assert placement(after) == {"A": range(3), "B": range(3, 6), "D": range(6, 8)}


def test_the_survivors_of_a_loss_in_a_large_cluster_keep_their_units() -> None:
    model = demand((100 * MIB,) * 40, 50 * MIB, 50 * MIB)
    offers = [offer(f"s{i:02}", 420 * MIB) for i in range(14)]
    before = make_plan(model, offers)
    assert isinstance(before, Plan)
    lost = before.stages[4].shard
    after = placement(make_plan(model, [o for o in offers if o.name != lost], previous=before))
    kept = sum(len(set(units) & set(after.get(name, range(0)))) for name, units in before.placement.items())
    assert kept >= model.num_units - len(before.placement[lost])


@pytest.mark.parametrize("memory", [300 * MIB, 2 * GIB, 64 * GIB])
@pytest.mark.parametrize("num_layers", [32, 80])
def test_a_thousand_shards_are_planned_at_once(memory: int, num_layers: int) -> None:
    model = demand((200 * MIB,) * num_layers, 250 * MIB, 250 * MIB, tied=250 * MIB)
    offers = [offer(f"s{i:04}", memory + i * 100_000, 1e-9 * (1 + i * 37 % 101 / 50), 5e-4 + i % 7 * 1e-5) for i in range(1000)]
    begin_s = time.perf_counter()
    plan = make_plan(model, offers)
    spent_s = time.perf_counter() - begin_s
    assert isinstance(plan, Plan)
    check_plan(model, offers, plan)
    print(f"\n1000 shards of {memory / GIB:.1f} GiB, {num_layers} layers: {spent_s * 1e3:.0f} ms, {len(plan.stages)} stages")
    assert spent_s < 20, "seconds where it should be one or two: the search has become another one"
    before_s = time.perf_counter()
    again = make_plan(model, offers[1:], previous=plan)
    print(f"again without one: {(time.perf_counter() - before_s) * 1e3:.0f} ms")
    assert isinstance(again, Plan)
    check_plan(model, offers[1:], again)


def test_rows_that_choose_experts_alike_read_them_once() -> None:
    dense, experts = UnitDemand(1000, 1000, 1), UnitDemand(9000, 1000 + 8000 // 4, 1, 8000, 1 / 4)
    model = ModelDemand("m", b"d", (UnitDemand(10, 0, 0), dense, experts, UnitDemand(10, 10, 0)), 0, FEATURES, frozenset(), 32)
    assert model.bytes_read_per_step(range(4)) == 1000 + 3000 + 10
    assert model.bytes_read_per_step(range(1, 3), 2) == 1000 + 1000 + 8000 * (1 - 9 / 16)
    assert model.bytes_read_per_step(range(1, 3), 1000) == 1000 + 9000


STREAMED_LAYER = StreamedSize(slot_bytes=1000, numbers_bytes=0, reading_bytes=10)
BUFFERS = STREAM_SLOTS * STREAMED_LAYER.slot_bytes + STREAM_READERS * STREAMED_LAYER.reading_bytes


def deep(num_layers: int) -> ModelDemand:
    """Layers of 1000 bytes each, which can be streamed, and 1 byte of cache for each token."""
    model = demand((1000,) * num_layers, context=32)
    layers = tuple(unit._replace(streamed=STREAMED_LAYER) for unit in model.units[1:-1])
    return replace(model, units=(model.units[0], *layers, model.units[-1]))


def streaming_offer(name: str, memory: int, s_per_byte: float = 1e-10) -> ShardOffer:
    plain = offer(name, memory, s_per_byte)
    return replace(plain, features=plain.features | {STREAMED_FEATURE})


@settings(deadline=None)
@given(st.integers(4, 40), st.lists(st.integers(3000, 30_000), min_size=1, max_size=4), st.integers(1, 3))
def test_as_few_layers_as_possible_are_streamed(num_layers: int, memories: list[int], min_shards: int) -> None:
    model, offers = deep(num_layers), [streaming_offer(f"s{i}", memory) for i, memory in enumerate(memories)]
    plan = make_plan(model, offers, min_shards=min_shards)
    if isinstance(plan, Infeasible):
        return
    by_name = {one.name: one for one in offers}
    for stage in plan.stages:
        room = by_name[stage.shard].memory_budget_bytes
        needed = stage.weights_bytes + stage.kv_cache_bytes
        assert needed <= room
        assert stage.weights_bytes == model.resident_bytes(stage.units, stage.streamed)
        assert set(stage.streamed) <= {unit for unit in stage.units if 0 < unit < model.num_units - 1}
        assert stage.streamed_bytes == 1000 * len(stage.streamed)
        if stage.streamed:
            least_cache = model.state_bytes_per_token(stage.units) * 32
            assert model.resident_bytes(stage.units, stage.streamed[1:]) + least_cache > room, "one less has no room"
            gaps = [b - a for a, b in pairwise(stage.streamed)]
            assert max(gaps, default=1) - min(gaps, default=1) <= 1, "spread evenly"


def test_nothing_is_streamed_where_everything_has_room() -> None:
    model = deep(10)
    enough = 10 * 1000 + 200 + 10 * 32
    (stage,) = planned(model, [streaming_offer("A", enough)]).stages
    assert stage.streamed == ()
    plan = planned(model, [streaming_offer("A", enough - 1)])
    assert plan.streamed_bytes == 4000, "three are in memory to be computed with or to be read"
    assert plan.predicted_step_s > planned(model, [streaming_offer("A", enough)]).predicted_step_s
    assert isinstance(make_plan(model, [offer("A", enough - 1)]), Infeasible), "it can't stream"
    assert isinstance(make_plan(model, [streaming_offer("A", BUFFERS)]), Infeasible), "embedding and head stay in memory"
    assert planned(model, [offer("A", enough - 1), streaming_offer("B", enough // 2)]).streamed_bytes == 0, "two have the memory together"
    alone = planned(model, [offer("A", 50), streaming_offer("B", enough - 1)])
    assert ([stage.shard for stage in alone.stages], alone.left_out) == (["B"], (LeftOut("A", "cannot do weights:streamed"),))


def test_a_plan_that_streams_stays_as_it_is() -> None:
    model, offers = deep(20), [streaming_offer("A", 9000), streaming_offer("B", 9000)]
    plan = planned(model, offers)
    assert plan.streamed_bytes > 0
    again = make_plan(model, offers, previous=plan)
    assert isinstance(again, Plan)
    assert again.same_work_as(plan)
    more = make_plan(model, [offers[0], streaming_offer("B", 12_000)], previous=plan)
    assert isinstance(more, Plan)
    assert not more.same_work_as(plan)
    assert more.streamed_bytes < plan.streamed_bytes


def with_large_head(num_layers: int, *, tied: bool = False) -> ModelDemand:
    """The same with a head of 3000 bytes, which comes in parts of 100, and an embedding as large, of which rows are read."""
    model = deep(num_layers)
    embedding = UnitDemand(3000, 0, 0, streamed=StreamedSize(slot_bytes=0, numbers_bytes=50, reading_bytes=0))
    head = UnitDemand(3000, 3000, 0, streamed=StreamedSize(slot_bytes=100, numbers_bytes=0, reading_bytes=10, most_slots=STREAM_SLOTS))
    return replace(model, units=(embedding, *model.units[1:-1], head), tied_bytes=3000 if tied else 0)


@pytest.mark.parametrize("tied", [False, True])
def test_a_large_head_is_streamed_where_that_reads_less_or_must_be(tied: bool) -> None:
    model, cache = with_large_head(10, tied=tied), 10 * 32
    head, slots = model.num_units - 1, STREAM_SLOTS * 100 + STREAM_READERS * 10
    whole = 10_000 + 3000 + (0 if tied else 3000) + cache
    assert planned(model, [streaming_offer("A", whole)]).stages[0].streamed == ()
    (little,) = planned(model, [streaming_offer("A", 10_000 + cache + 50 + slots)]).stages
    assert (little.streamed, little.streamed_bytes) == ((0, head), 3000), "rather than four layers or more"
    (much,) = planned(model, [streaming_offer("A", 50 + cache + BUFFERS)]).stages
    assert much.streamed == tuple(range(model.num_units)), "so much is needed whatever the model's size"
    assert much.streamed_bytes == 10_000 + 3000
    assert isinstance(make_plan(model, [streaming_offer("A", 50 + cache + BUFFERS - 1)]), Infeasible)
    half = planned(model, [streaming_offer(name, 3000 + BUFFERS) for name in "AB"])
    assert half.streamed_bytes <= 7000


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 30), st.booleans(), st.integers(0, 40_000))
def test_with_a_head_that_may_be_streamed_no_more_is_read(num_layers: int, tied: bool, memory: int) -> None:
    model, offers = with_large_head(num_layers, tied=tied), [streaming_offer("A", memory)]
    stays = replace(model, units=(*model.units[:-1], model.units[-1]._replace(streamed=None)))
    with_it, without = make_plan(model, offers), make_plan(stays, offers)
    if isinstance(without, Plan):
        assert isinstance(with_it, Plan)
        assert with_it.streamed_bytes <= without.streamed_bytes
    if isinstance(with_it, Plan):
        (stage,) = with_it.stages
        assert stage.weights_bytes + stage.kv_cache_bytes <= memory
        assert stage.weights_bytes == model.resident_bytes(stage.units, stage.streamed)


def with_disk(shard: ShardOffer, s_per_byte: float) -> ShardOffer:
    return replace(shard, stream_s_per_byte=s_per_byte)


def test_where_a_little_is_missing_all_disks_read_for_equally_long() -> None:
    """All that is read is read ahead, while the others compute."""
    model, machine = deep(20), streaming_offer("A", 9000)
    streamed = [stage.streamed_bytes for stage in planned(model, [machine, replace(machine, name="B")]).stages]
    assert max(streamed) - min(streamed) <= 1000, "to a layer"
    slow = with_disk(replace(machine, name="B"), 1e-8)
    assert {stage.shard: stage.streamed_bytes > 0 for stage in planned(model, [machine, slow]).stages} == {"A": True, "B": False}


def test_what_is_waited_for_anyway_is_read_from_the_fastest_disk() -> None:
    """Much more is missing than can be read ahead."""
    model = deep(60)
    offers = [with_disk(streaming_offer("A", 9000), 3e-8), with_disk(streaming_offer("B", 9000), 1e-8)]
    streamed = {stage.shard: stage.streamed_bytes for stage in planned(model, offers).stages}
    assert streamed["B"] > 10 * streamed.get("A", 0)


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 40), st.lists(st.tuples(st.integers(4000, 12_000), st.sampled_from([1e-9, 2e-9, 5e-9])), min_size=1, max_size=3))
def test_streaming_is_no_slower_than_from_any_one_disk(num_layers: int, machines: list[tuple[int, float]]) -> None:
    model = deep(num_layers)
    offers = [with_disk(streaming_offer(f"s{i}", memory), disk_s) for i, (memory, disk_s) in enumerate(machines)]
    plan = make_plan(model, offers)
    if isinstance(plan, Infeasible) or plan.in_memory is None:
        return
    assert plan.in_memory.missing_bytes > 0
    alone = [make_plan(model, [one]) for one in offers]
    assert plan.predicted_step_s <= min([one.predicted_step_s for one in alone if isinstance(one, Plan)], default=math.inf)


def with_experts(num_layers: int) -> ModelDemand:
    """Layers of 100 bytes and 10 experts of 100, of which a row uses 2."""
    model = demand((1100,) * num_layers, context=32)
    size = ExpertsSize(num_experts=10, num_used=2, place_bytes=100, others_bytes=100, reading_bytes=10)
    layers = tuple(unit._replace(expert_bytes=1000, expert_share=0.2, step_bytes=300, experts=size) for unit in model.units[1:-1])
    return replace(model, units=(model.units[0], *layers, model.units[-1]))


def reading_offer(name: str, memory: int) -> ShardOffer:
    plain = offer(name, memory)
    return replace(plain, features=plain.features | {EXPERTS_FEATURE})


def test_as_many_experts_as_there_is_room_for_are_in_memory() -> None:
    model = with_experts(5)
    whole = 200 + 5 * 32 + 5 * 1100
    assert planned(model, [reading_offer("A", whole)]).stages[0].expert_places == 0
    (stage,) = planned(model, [reading_offer("A", whole - 1)]).stages
    assert (stage.expert_places, stage.experts_touched, stage.is_below_cliff) == (49, 10, False)
    assert stage.streamed_bytes == 20, "one in 50 of the ten that a row chooses"
    besides = whole - 5000 + STREAM_READERS * 10
    assert planned(model, [reading_offer("A", besides + 1000)]).stages[0].is_below_cliff is False
    (few,) = planned(model, [reading_offer("A", besides + 999)]).stages
    assert (few.expert_places, few.is_below_cliff, few.streamed_bytes) == (9, True, 860), "two take turns, seven of 50 stay"
    assert isinstance(make_plan(model, [reading_offer("A", besides + 199)]), Infeasible), "a row uses two"


def test_what_is_read_of_experts_takes_its_time_and_as_many_as_were_measured_are() -> None:
    model, machine = with_experts(5), replace(reading_offer("A", 3000), stream_s_per_byte=1e-6)
    plan = planned(model, [machine])
    (stage,) = plan.stages
    assert plan.predicted_step_s == pytest.approx(stage.predicted_step_s + stage.streamed_bytes * 1e-6)
    (kind,) = planned(model, [replace(machine, expert_misses=0.5)]).stages
    assert kind.streamed_bytes == stage.streamed_bytes / 2
    assert (kind.expert_places, kind.missed_share) == (stage.expert_places, stage.missed_share)


def planned(model: ModelDemand, offers: list[ShardOffer]) -> Plan:
    plan = make_plan(model, offers)
    assert isinstance(plan, Plan), plan
    return plan
