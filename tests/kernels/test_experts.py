"""Experts: chosen as defined, right against float64, the same bits in every batch; only what is chosen is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dairllm.kernels_pyx import (
    ExpertBlock,
    ExpertPlaces,
    PackedMatrix,
    PackedStack,
    StageActivation,
    StageRouter,
    WeightMemory,
    _kernels,
    dequantize,
    quantize_q4_0,
    quantize_q8_0,
)
from tests.kernels.computing import AVAILABLE_ISAS, Floats, instruction_set, threads

Doubles = NDArray[np.float64]
Numbers = Floats | Doubles
Weights = Mapping[str, PackedMatrix | PackedStack | Floats]
NORMALISED = StageRouter("softmax", normalised=True)
SILU = StageActivation("silu")
CLAMPED = StageActivation("silu_clamped", alpha=1.702, limit=0.7)


# ---- choosing, by its definition ----


def softmax64(x: Doubles) -> Doubles:
    powers = np.exp(x - x.max())
    return np.asarray(powers / powers.sum())


def scores64(kind: str, logits: Doubles) -> Doubles:
    if kind == "softmax":
        return softmax64(logits)
    return np.asarray(1 / (1 + np.exp(-logits))) if kind == "sigmoid" else logits


def best(numbers: Numbers, count: int) -> list[int]:
    """Indexes of the largest, best first; of equals the lower one."""
    return sorted(range(len(numbers)), key=lambda index: (-numbers[index], index))[:count]


def choose(router: StageRouter, used: int, scores: Numbers, bias: Numbers | None = None) -> list[int]:
    """With sums in the precision of the scores."""
    by = scores if bias is None else scores + bias
    groups = by.reshape(router.num_groups, -1)
    summed = [group[best(group, router.group_best)] for group in groups]
    group_scores = np.array([sum(numbers[1:], start=numbers[0]) for numbers in summed])
    allowed = np.zeros(groups.shape, bool)
    allowed[best(group_scores, router.num_groups_used)] = True
    candidates = np.flatnonzero(allowed)
    return [int(candidates[index]) for index in best(by[candidates], used)]


def weigh64(router: StageRouter, scores: Doubles) -> Doubles:
    """Of the chosen."""
    weights = softmax64(scores) if router.kind == "softmax_of_chosen" else scores
    return np.asarray(weights / (weights.sum() if router.normalised else 1) * router.scale)


def scores_of(kind: str, logits: Floats) -> Floats:
    """As the kernels have them: a row that goes to all experts is weighed by them."""
    if kind == "softmax_of_chosen":
        return logits
    chosen, weights = _kernels._choose_experts(StageRouter(kind), len(logits), logits[None])
    scores = np.empty_like(logits)
    scores[chosen[0]] = weights[0]
    return scores


@st.composite
def choices(draw: st.DrawFn) -> tuple[StageRouter, int, Floats, Floats | None]:
    """Logits and biases on a grid, so that there are ties."""
    num_groups, group_size = draw(st.integers(1, 5)), draw(st.integers(1, 20))
    groups_used = draw(st.integers(1, num_groups))
    experts = num_groups * group_size
    router = StageRouter(
        draw(st.sampled_from(["softmax", "sigmoid", "softmax_of_chosen"])),
        draw(st.booleans()),
        draw(st.sampled_from([1.0, 2.5])),
        num_groups,
        groups_used,
        draw(st.integers(1, min(3, group_size))),
    )
    grid = st.integers(-16, 16).map(lambda number: number / 4)
    logits = draw(st.lists(grid, min_size=experts, max_size=experts))
    biases = st.one_of(grid, st.just(-np.inf))
    bias = draw(st.none() | st.lists(biases, min_size=experts, max_size=experts))
    used = draw(st.integers(1, groups_used * group_size))
    return router, used, np.array(logits, np.float32), None if bias is None else np.array(bias, np.float32)


@settings(deadline=None, max_examples=300)
@given(choices())
def test_experts_are_chosen_as_defined(case: tuple[StageRouter, int, Floats, Floats | None]) -> None:
    router, used, logits, bias = case
    scores = scores_of(router.kind, logits)
    np.testing.assert_allclose(scores, scores64(router.kind, logits.astype(np.float64)), rtol=1e-6)
    expected = choose(router, used, scores, bias)
    weights = weigh64(router, scores[expected].astype(np.float64))
    results = set()
    for isa in AVAILABLE_ISAS:
        with instruction_set(isa):
            chosen, weighed = _kernels._choose_experts(router, used, logits[None], bias)
        assert chosen[0].tolist() == expected
        np.testing.assert_allclose(weighed[0], weights, rtol=2e-6)
        results.add(weighed.tobytes())
    assert len(results) == 1


def chosen_of(router: StageRouter, used: int, logits: list[float], bias: list[float] | None = None) -> list[int]:
    selection_bias = None if bias is None else np.array(bias, np.float32)
    return _kernels._choose_experts(router, used, np.array([logits], np.float32), selection_bias)[0][0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "softmax_of_chosen"])
def test_of_equals_the_lower_index_is_chosen(kind: str) -> None:
    assert chosen_of(StageRouter(kind), 3, [0.0] * 8) == [0, 1, 2]
    assert chosen_of(StageRouter(kind), 3, [1.0, 2.0, 1.0, 2.0]) == [1, 3, 0]
    assert chosen_of(StageRouter(kind, num_groups=2, num_groups_used=1), 2, [0.0] * 4) == [0, 1]
    assert chosen_of(StageRouter(kind, num_groups=2, num_groups_used=2), 3, [0.0, 0.0, 1.0, 0.0]) == [2, 0, 1]


def test_an_expert_with_a_bias_of_minus_infinity_is_the_last_choice() -> None:
    inf = float("inf")
    assert chosen_of(StageRouter("sigmoid"), 2, [9.0, 1.0, 2.0], [-inf, 0.0, 0.0]) == [2, 1]
    assert chosen_of(StageRouter("sigmoid"), 3, [9.0, 1.0, 2.0], [-inf, 0.0, -inf]) == [1, 0, 2]
    assert chosen_of(StageRouter("sigmoid", num_groups=2, num_groups_used=1), 1, [9.0, 9.0, 1.0, 2.0], [-inf, 0.0, 0.0, 0.0]) == [3]
    best_one = StageRouter("sigmoid", num_groups=2, num_groups_used=1, group_best=1)
    assert chosen_of(best_one, 2, [9.0, 9.0, 1.0, 2.0], [-inf, 0, 0, 0]) == [1, 0]


def test_a_selection_bias_chooses_but_does_not_weigh() -> None:
    logits, bias = np.array([[0.0, 1.0, 2.0]], np.float32), np.array([9.0, 0.0, 0.0], np.float32)
    chosen, weights = _kernels._choose_experts(StageRouter("sigmoid"), 1, logits, bias)
    assert chosen.tolist() == [[0]]
    assert weights.tolist() == [[0.5]]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_group_is_as_good_as_its_best_ones(kind: str) -> None:
    """DeepSeek-V2 looks at the best, DeepSeek-V3 adds the two best."""
    logits = [3.0, -9.0, 2.9, 2.9]
    assert chosen_of(StageRouter(kind, num_groups=2, num_groups_used=1, group_best=1), 1, logits) == [0]
    assert chosen_of(StageRouter(kind, num_groups=2, num_groups_used=1, group_best=2), 1, logits) == [2]


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "softmax_of_chosen"])
@pytest.mark.parametrize("place", [0, 5, 17])
def test_nan_among_the_logits_shows(isa: str, kind: str, place: int) -> None:
    logits = np.zeros((1, 20), np.float32)
    logits[0, place] = np.nan
    chosen, weights = _kernels._choose_experts(StageRouter(kind, normalised=True), 4, logits)
    assert len(set(chosen[0].tolist())) == 4
    assert np.isnan(weights).all()


def test_weights_that_are_all_nothing_do_not_become_nan(isa: str) -> None:
    logits = np.full((1, 4), -200, np.float32)
    assert _kernels._choose_experts(StageRouter("sigmoid", normalised=True), 2, logits)[1].tolist() == [[0.0, 0.0]]


# ---- whole blocks ----


@dataclass(frozen=True, slots=True)
class Shape:
    experts: int = 8
    used: int = 2
    hidden: int = 64
    intermediate: int = 32
    router: StageRouter = NORMALISED
    activation: StageActivation = SILU
    shared: int = 0
    shared_gate: bool = False
    biases: bool = False
    selection_bias: bool = False
    block_format: str = "F32"
    up_format: str | None = None

    def block(self) -> ExpertBlock:
        return ExpertBlock(
            num_experts=self.experts, num_experts_used=self.used, intermediate_size=self.intermediate, router=self.router,
            activation=self.activation, shared_intermediate_size=self.shared, shared_gate=self.shared_gate,
        )  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {
            "router": (self.experts, self.hidden),
            "expert_gate": (self.experts, self.intermediate, self.hidden),
            "expert_up": (self.experts, self.intermediate, self.hidden),
            "expert_down": (self.experts, self.hidden, self.intermediate),
        }
        if self.biases:
            found |= {"router_bias": (self.experts,), "expert_gate_bias": (self.experts, self.intermediate)}
            found |= {"expert_up_bias": (self.experts, self.intermediate), "expert_down_bias": (self.experts, self.hidden)}
        if self.selection_bias:
            found |= {"router_selection_bias": (self.experts,)}
        if self.shared:
            found |= {"shared_gate": (self.shared, self.hidden), "shared_up": (self.shared, self.hidden)}
            found |= {"shared_down": (self.hidden, self.shared)}
        return found | ({"shared_router": (1, self.hidden)} if self.shared_gate else {})

    def format_of(self, role: str) -> str:
        if "router" in role:
            return "F32"
        return self.up_format if self.up_format and role.endswith("_up") else self.block_format


DEEPSEEK_V2 = StageRouter("softmax", scale=16.0, num_groups=4, num_groups_used=2, group_best=1)
DEEPSEEK_V3 = StageRouter("sigmoid", normalised=True, scale=2.5, num_groups=4, num_groups_used=2)
SHAPES = {
    "mixtral": Shape(experts=4),
    "qwen3moe": Shape(experts=24, used=5, hidden=48, intermediate=20),
    "gpt-oss": Shape(router=StageRouter("softmax_of_chosen"), activation=CLAMPED, biases=True, used=3),
    "glm4moe": Shape(router=StageRouter("sigmoid", normalised=True), shared=40, selection_bias=True),
    "deepseek-v2": Shape(router=DEEPSEEK_V2, shared=64, experts=16, used=3),
    "deepseek-v3": Shape(experts=16, used=4, router=DEEPSEEK_V3, shared=32, selection_bias=True),
    "qwen3.5-moe": Shape(shared=32, shared_gate=True),
    "one expert": Shape(experts=1, used=1, hidden=17, intermediate=5, router=StageRouter("sigmoid")),
    "all experts": Shape(experts=5, used=5, router=StageRouter("softmax")),
    "Q8_0": Shape(block_format="Q8_0", shared=32, shared_gate=True, hidden=96, intermediate=64),
    "Q4_0, up Q8_0": Shape(block_format="Q4_0", up_format="Q8_0", hidden=128, intermediate=96, experts=6),
}


def in_format(values: Floats, block_format: str) -> bytes:
    if block_format == "F32":
        return values.tobytes()
    return (quantize_q8_0 if block_format == "Q8_0" else quantize_q4_0)(values.reshape(-1))


@dataclass(frozen=True, slots=True)
class Experts:
    """Weights as the kernels hold them, as the numbers that they stand for, and as they were packed from."""

    shape: Shape
    packed: Weights
    dense: Mapping[str, Floats]
    stored: Mapping[str, Floats]

    def run(self, x: Floats) -> Floats:
        return self.shape.block()._run(self.packed, x)


def random_experts(shape: Shape, seed: int = 0) -> Experts:
    random = np.random.default_rng(seed)
    packed: dict[str, PackedMatrix | PackedStack | Floats] = {}
    dense, stored = dict[str, Floats](), dict[str, Floats]()
    for role, dimensions in shape.shapes().items():
        values = (random.standard_normal(dimensions) / np.sqrt(dimensions[-1])).astype(np.float32)
        if role == "router":
            values *= 3
        if len(dimensions) == 1 or role.endswith("_bias"):
            packed[role] = dense[role] = values
            continue
        block_format, stored[role] = shape.format_of(role), values
        dense[role] = dequantize(block_format, in_format(values, block_format), values.size).reshape(dimensions)
        packed[role] = pack(values, block_format)
    return Experts(shape, packed, dense, stored)


def pack(values: Floats, block_format: str) -> PackedMatrix | PackedStack:
    if values.ndim == 2:
        matrix = PackedMatrix(block_format, *values.shape)
        matrix.pack_rows(0, in_format(values, block_format))
        return matrix
    stack = PackedStack(block_format, *values.shape)
    for expert, one in enumerate(values):
        stack.pack_rows(expert, 0, in_format(one, block_format))
    return stack


def multiply64(x: Doubles, weights: Floats, block_format: str) -> Doubles:
    """Quantised weights see x as int8 in blocks of 32."""
    if block_format != "F32":
        blocks = x.reshape(x.shape[0], -1, 32)
        scale = np.abs(blocks).max(-1, keepdims=True) / 127
        x = (np.round(blocks / scale) * scale).reshape(x.shape)
    return np.asarray(x @ weights.astype(np.float64).T)


def activate64(activation: StageActivation, gate: Doubles, up: Doubles) -> Doubles:
    if activation.kind == "silu":
        return np.asarray(gate / (1 + np.exp(-gate)) * up)
    assert activation.limit is not None
    gate, up = np.minimum(gate, activation.limit), np.clip(up, -activation.limit, activation.limit)
    return np.asarray(gate / (1 + np.exp(-activation.alpha * gate)) * (up + 1))


def expert64(experts: Experts, x: Doubles, prefix: str, index: int | None) -> Doubles:
    shape, dense = experts.shape, experts.dense

    def product(y: Doubles, name: str) -> Doubles:
        role = f"{prefix}_{name}"
        weights, bias = dense[role], dense.get(f"{role}_bias")
        product = multiply64(y, weights if index is None else weights[index], shape.format_of(role))
        return product if bias is None or index is None else product + bias[index]

    return product(activate64(shape.activation, product(x, "gate"), product(x, "up")), "down")


def run64(experts: Experts, rows: Floats) -> Doubles:
    shape, dense = experts.shape, experts.dense
    x = rows.astype(np.float64)
    logits = x @ dense["router"].astype(np.float64).T + dense.get("router_bias", np.float32(0))
    bias = dense.get("router_selection_bias")
    out = np.zeros_like(x)
    for row in range(len(x)):
        scores = scores64(shape.router.kind, logits[row])
        chosen = choose(shape.router, shape.used, scores, None if bias is None else bias.astype(np.float64))
        for expert, weight in zip(chosen, weigh64(shape.router, scores[chosen]), strict=True):
            out[row] += weight * expert64(experts, x[row : row + 1], "expert", expert)[0]
    if shape.shared:
        gates = 1 / (1 + np.exp(-(x @ dense["shared_router"].astype(np.float64).T))) if shape.shared_gate else 1.0
        out += gates * expert64(experts, x, "shared", None)
    return out


def random_rows(shape: Shape, count: int, seed: int = 5) -> Floats:
    return np.random.default_rng(seed).standard_normal((count, shape.hidden)).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_a_block_equals_its_float64_reference(isa: str, name: str) -> None:
    experts = random_experts(SHAPES[name])
    for count in (1, 2, 9, 40):
        x = random_rows(experts.shape, count)
        expected = run64(experts, x)
        tolerance = 2e-6 if experts.shape.block_format == "F32" else 2e-3  # a rounding to int8 may fall to the other side
        np.testing.assert_allclose(experts.run(x), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", SHAPES)
def test_the_same_bits_with_every_instruction_set_and_number_of_threads(name: str) -> None:
    experts = random_experts(SHAPES[name])
    for rows in (1, 3, 37):
        x = random_rows(experts.shape, rows)
        results = set()
        for isa in AVAILABLE_ISAS:
            for count in (1, 2, 5):
                with instruction_set(isa), threads(count):
                    results.add(experts.run(x).tobytes())
        assert len(results) == 1


ALL_EXPERTS = {name: random_experts(shape) for name, shape in SHAPES.items()}


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(sorted(SHAPES)), st.permutations(range(30)), st.lists(st.integers(1, 30), max_size=8))
def test_a_row_does_not_depend_on_its_batch(name: str, order: list[int], sizes: list[int]) -> None:
    experts = ALL_EXPERTS[name]
    x = random_rows(experts.shape, 30)
    together = experts.run(x)
    begin = 0
    for size in [*sizes, 30]:
        rows = order[begin : begin + size]
        begin += size
        if rows:
            assert experts.run(x[rows]).tobytes() == together[rows].tobytes()


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "Q8_0"])
def test_a_broken_row_shows_in_itself_only(isa: str, name: str) -> None:
    experts = random_experts(SHAPES[name])
    x = random_rows(experts.shape, 7)
    clean = experts.run(x)
    x[3, 1] = np.nan
    result = experts.run(x)
    assert np.isnan(result[3]).all()
    others = [0, 1, 2, 4, 5, 6]
    assert result[others].tobytes() == clean[others].tobytes()


def test_only_the_chosen_experts_are_read() -> None:
    """Pages of a stack that nothing was written to come into memory when they are first read."""
    shape = Shape(experts=16, used=2, hidden=256, intermediate=64, router=StageRouter("softmax_of_chosen"), block_format="F16")
    router, rows = np.zeros((16, 256), np.float32), np.zeros((3, 256), np.float32)
    rows[0, 0] = rows[1, 1] = rows[2, 0] = 1.0
    router[[3, 7], 0] = router[[7, 12], 1] = 1.0
    stacks = {role: PackedStack("F16", *shape.shapes()[role]) for role in ("expert_gate", "expert_up", "expert_down")}
    weights = {"router": pack(router, "F32"), **stacks}
    assert [stack.resident_bytes for stack in stacks.values()] == [0, 0, 0]
    shape.block()._run(weights, rows[:1])
    assert [stack.resident_bytes for stack in stacks.values()] == [stack.size_bytes * 2 // 16 for stack in stacks.values()]
    shape.block()._run(weights, rows)
    assert [stack.resident_bytes for stack in stacks.values()] == [stack.size_bytes * 3 // 16 for stack in stacks.values()]


@pytest.mark.parametrize(
    ("router", "experts", "used", "message"),
    [
        (StageRouter("best"), 4, 2, "router is 'best'"),
        (StageRouter("softmax"), 4, 5, "num_experts_used is 5"),
        (StageRouter("softmax"), 0, 1, "num_experts is 0"),
        (StageRouter("softmax", scale=0.0), 4, 2, "scale of the router is 0.0"),
        (StageRouter("softmax", num_groups=3), 4, 2, "multiple of num_groups, 3"),
        (StageRouter("softmax", num_groups=2, num_groups_used=3), 4, 2, "num_groups_used is 3"),
        (StageRouter("softmax", num_groups=2, num_groups_used=1), 4, 3, "at most the 2 of the groups used"),
        (StageRouter("softmax", num_groups=4), 4, 1, "group_best is 2"),
    ],
)
def test_impossible_routers_are_refused(router: StageRouter, experts: int, used: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertBlock(num_experts=experts, num_experts_used=used, intermediate_size=32, router=router)


@pytest.mark.parametrize(
    ("role", "weight", "message"),
    [
        ("router", None, "lacks the weights \\['router'\\]"),
        ("expert_gate", PackedMatrix("F32", 32, 64), "expert_gate of the experts is a PackedMatrix, expected a PackedStack"),
        ("expert_gate", PackedStack("F32", 8, 32, 32), "8 x 32 x 32, expected 8 x 32 x 64"),
        ("expert_up_bias", np.zeros((8, 31), np.float32), "expert_up_bias of the experts has the shape \\(8, 31\\), expected \\(8, 32\\)"),
        ("shared_gate", PackedMatrix("F32", 32, 64), "unknown weights \\['shared_gate'\\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(role: str, weight: PackedMatrix | PackedStack | Floats | None, message: str) -> None:
    experts = random_experts(Shape())
    weights = {name: one for name, one in {**experts.packed, role: weight}.items() if one is not None}
    with pytest.raises(ValueError, match=message):
        experts.shape.block()._run(weights, random_rows(experts.shape, 1))


# ---- experts that come into memory when they are chosen ----


class Coming:
    """A keeper with so many places. What is in none comes as late as it may: gate and up when they are waited for, then down."""

    def __init__(self, experts: Experts, num_places: int, seed: int) -> None:
        self._experts, self._random = experts, np.random.default_rng(seed)
        self._of_place: list[int | None] = [None] * num_places
        self._wanted: list[tuple[int, bool]] = []
        shape = experts.shape
        rows = {"expert_gate": shape.intermediate, "expert_up": shape.intermediate, "expert_down": shape.hidden}
        sizes = {
            role: PackedStack(shape.format_of(role), 1, count, experts.stored[role].shape[2]).size_bytes for role, count in rows.items()
        }
        offsets = np.cumsum([0, *(-(-size // 64) * 64 for size in sizes.values())]).tolist()
        memory = WeightMemory(num_places * offsets[-1])
        self._places = ExpertPlaces(shape.experts, memory, offsets[-1], num_places, self)
        self.stacks = {
            role: PackedStack(shape.format_of(role), *experts.stored[role].shape, places=self._places, offset_bytes=offset)
            for role, offset in zip(sizes, offsets, strict=False)
        }
        self.num_read = 0

    def want(self, experts: list[int]) -> list[bool]:
        assert experts == sorted(set(experts))
        self._wanted = [(expert, expert in self._of_place) for expert in experts]
        free = [place for place, expert in enumerate(self._of_place) if expert not in experts]
        self._random.shuffle(free)
        free.sort(key=lambda place: self._of_place[place] is None)
        for expert, is_there in self._wanted:
            if not is_there:
                place = free.pop()
                if (before := self._of_place[place]) is not None:
                    self._places.put(before, None)
                self._of_place[place] = expert
                self._places.put(expert, place)
                for role in ("expert_gate", "expert_up", "expert_down"):
                    self._fill(role, expert, np.full_like(self._experts.stored[role][expert], 7))
        return [is_there for _, is_there in self._wanted]

    def wait(self, whole: bool) -> None:
        for expert, is_there in self._wanted:
            for role in () if is_there else ("expert_down",) if whole else ("expert_gate", "expert_up"):
                self._fill(role, expert, self._experts.stored[role][expert])
        self.num_read += 0 if whole else sum(not is_there for _, is_there in self._wanted)

    def _fill(self, role: str, expert: int, values: Floats) -> None:
        self.stacks[role].pack_rows(expert, 0, in_format(values, self._experts.shape.format_of(role)))


@pytest.mark.parametrize("name", SHAPES)
def test_experts_that_come_when_they_are_chosen_give_the_same_bits(isa: str, name: str) -> None:
    """With places for all, for some, and for one: then one is computed after the other."""
    shape = SHAPES[name]
    experts = random_experts(shape)
    for num_places in sorted({1, 2, shape.used, shape.experts}):
        coming = Coming(experts, num_places, seed=num_places)
        in_places = Experts(shape, {**experts.packed, **coming.stacks}, experts.dense, experts.stored)
        for rows in (1, 1, 3, 40):
            x = random_rows(shape, rows, seed=rows)
            for count in (1, 3):
                with threads(count):
                    np.testing.assert_array_equal(in_places.run(x), experts.run(x))
        if num_places == shape.experts:
            assert coming.num_read <= shape.experts, "each once"


def test_why_experts_do_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    experts = random_experts(SHAPES["mixtral"])
    x = random_rows(experts.shape, 3)
    for name in ("want", "wait"):
        coming = Coming(experts, 2, seed=1)
        in_places = Experts(experts.shape, {**experts.packed, **coming.stacks}, experts.dense, experts.stored)
        with monkeypatch.context() as patch:
            patch.setattr(coming, name, lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                in_places.run(x)
        assert len(in_places.run(x)) == 3, "the next time they do"


def test_places_are_checked() -> None:
    experts = random_experts(SHAPES["mixtral"])
    coming = Coming(experts, 2, seed=1)
    with pytest.raises(ValueError, match="matrix 3 is in no place"):
        coming.stacks["expert_up"].dequantize_rows(3)
    with pytest.raises(ValueError, match="place_bytes is 65, expected a multiple of 64"):
        ExpertPlaces(4, WeightMemory(128), 65, 1, coming)
    places = ExpertPlaces(4, WeightMemory(128), 64, 1, coming)
    with pytest.raises(ValueError, match="place is 2, expected an integer from 0 to 1"):
        places.put(0, 2)
    with pytest.raises(ValueError, match="the places are for 4 experts, expected 3"):
        PackedStack("F32", 3, 16, 1, places=places)
    with pytest.raises(ValueError, match="expected a multiple of 64 with 128 bytes behind it in a place of 64"):
        PackedStack("F32", 4, 16, 2, places=places)
