"""The forward pass that a ModelSpec describes, in double precision: what kernels must compute, as plainly as it can be said.

Weights are arrays by role for each unit (`model_files.roles`): matrices [outputs, inputs], stacks [count, outputs, inputs], numbers of
their shape. Rows are the positions of one sequence from 0 on. Nothing is cached, rounded or fast.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dairllm.model_files.attention import LatentAttention, LinearAttention, Rope, SelfAttention
from dairllm.model_files.feed_forward import Activation, DenseFeedForward, ExpertFeedForward, Router
from dairllm.model_files.norm import Norm
from dairllm.model_files.spec import LayerSpec, ModelSpec

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]
Stored = Mapping[str, npt.NDArray[np.float32]]


def logits(spec: ModelSpec, units: Sequence[Stored], token_ids: Sequence[int]) -> Array:
    """[rows, tokens of the vocabulary] of one sequence. units: embedding, layers, head."""
    return Reference(spec, units).logits(token_ids)


def greedy(spec: ModelSpec, units: Sequence[Stored], token_ids: Sequence[int], count: int) -> list[int]:
    """The next `count` tokens, each of them the one with the largest logit."""
    reference, tokens = Reference(spec, units), list(token_ids)
    for _ in range(count):
        tokens.append(int(np.argmax(reference.logits(tokens)[-1])))
    return tokens[len(token_ids) :]


class Reference:
    """A model whose sequences have at most spec.context_length tokens."""

    def __init__(self, spec: ModelSpec, units: Sequence[Stored]) -> None:
        self._spec = spec
        self._units = [{role: np.asarray(values, np.float64) for role, values in unit.items()} for unit in units]
        self._keys: dict[int, tuple[Array, Array]] = {}

    def logits(self, token_ids: Sequence[int]) -> Array:
        spec = self._spec.for_context(len(token_ids))
        embedding, *layers, head = self._units
        self._keys = {}
        x = embedding["token_embedding"][list(token_ids)] * spec.embedding_scale
        added = self._per_layer_inputs(spec, embedding, token_ids, x)
        for index, (layer, weights) in enumerate(zip(spec.layers, layers, strict=True)):
            x = self._layer(index, layer, weights, x, None if added is None else added[:, index])
        found = norm(spec.output_norm, x, head["output_norm"]) @ head["output"].T * spec.logit_scale
        return softcapped(found, spec.logit_softcap)[:, : spec.num_tokens]

    def _per_layer_inputs(self, spec: ModelSpec, weights: Weights, token_ids: Sequence[int], x: Array) -> Array | None:
        """[rows, layers, width] of a model that has them."""
        described = spec.per_layer_embedding
        if described is None:
            return None
        shape = len(token_ids), spec.num_layers, described.width
        projected = norm(described.norm, (x @ weights["per_layer_projection"].T).reshape(shape), weights["per_layer_norm"])
        own = weights["per_layer_embedding"][list(token_ids)].reshape(shape) * described.embedding_scale
        return (projected + own) * described.scale

    def _layer(self, index: int, layer: LayerSpec, weights: Weights, x: Array, added: Array | None) -> Array:
        attended = self._attention(index, layer, weights, norm(layer.attention_norm, x, weights.get("attention_norm")))
        x = x + layer.residual_scale * norm(layer.attention_post_norm, attended, weights.get("attention_post_norm"))
        fed = feed_forward(layer.feed_forward, weights, norm(layer.feed_forward_norm, x, weights.get("ffn_norm")))
        x = x + layer.residual_scale * norm(layer.feed_forward_post_norm, fed, weights.get("ffn_post_norm"))
        if layer.per_layer_input is not None and added is not None:
            gate = activated(layer.per_layer_input.activation, x @ weights["per_layer_gate"].T)
            x = x + norm(layer.per_layer_input.post_norm, gate * added @ weights["per_layer_output"].T, weights["per_layer_post_norm"])
        return x * weights["layer_scale"] if layer.output_scale else x

    def _attention(self, index: int, layer: LayerSpec, weights: Weights, x: Array) -> Array:
        match layer.attention:
            case SelfAttention():
                return self._self_attention(index, layer.attention, weights, x)
            case LatentAttention():
                return latent_attention(layer.attention, weights, x)
            case LinearAttention():
                return linear_attention(layer.attention, weights, x)

    def _self_attention(self, index: int, a: SelfAttention, weights: Weights, x: Array) -> Array:
        q = product(weights, "q", x)
        gate = None
        if a.output_gate:
            q, gate = np.split(q.reshape(len(x), a.num_heads, 2 * a.key_dim), 2, axis=2)
        q = rotated(a.rope, head_normed(a, a.q_norm, q, weights.get("q_norm"), a.num_heads, a.key_dim))
        if a.keys_of is None:
            k = head_normed(a, a.k_norm, product(weights, "k", x), weights.get("k_norm"), a.num_kv_heads, a.key_dim)
            v = head_normed(a, a.v_norm, product(weights, "v", x), weights.get("v_norm"), a.num_kv_heads, a.value_dim)
            self._keys[index] = rotated(a.rope, k), v
        k, v = self._keys[index if a.keys_of is None else a.keys_of]
        group = a.num_heads // a.num_kv_heads
        scores = np.einsum("qhd,khd->hqk", q, np.repeat(k, group, axis=1)) * a.scale
        weight = attention_weights(softcapped(scores, a.softcap), a.window, weights.get("attention_sinks"))
        out = np.einsum("hqk,khd->qhd", weight, np.repeat(v, group, axis=1))
        if gate is not None:
            out = out * sigmoid(gate)
        return product(weights, "attention_output", out.reshape(len(x), a.output_width))


def product(weights: Weights, role: str, x: Array) -> Array:
    return x @ weights[role].T + weights.get(f"{role}_bias", 0.0)


def norm(described: Norm | None, x: Array, factor: Array | None) -> Array:
    """Over the last axis. None: there is none."""
    if described is None:
        return x
    if described.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + described.eps)
    scaled: Array = x if factor is None else x * (factor + described.offset_by_one)
    return scaled


def head_normed(a: SelfAttention, described: Norm | None, x: Array, factor: Array | None, heads: int, dim: int) -> Array:
    """[rows, heads, dim]. The norm is of each head, or of all of them together."""
    if a.norm_spans_heads:
        x = norm(described, x.reshape(len(x), heads * dim), factor)
        described = None
    return norm(described, x.reshape(len(x), heads, dim), factor)


def rotated(rope: Rope | None, x: Array) -> Array:
    """x: [rows, heads, dim], of which the first rope.dim numbers are rotated by pairs."""
    if rope is None:
        return x
    pairs = np.arange(rope.dim // 2)
    frequencies = rope.theta ** (-2.0 * pairs / rope.dim) / np.array(rope.freq_factors or (1.0,) * len(pairs))
    angles = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angles) * rope.magnitude, np.sin(angles) * rope.magnitude
    first, second = (2 * pairs, 2 * pairs + 1) if rope.interleaved else (pairs, pairs + rope.dim // 2)
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def attention_weights(scores: Array, window: int | None, sinks: Array | None) -> Array:
    """A softmax of [heads, queries, keys] over positions up to each query's own, or over the last `window` of them. A sink takes its share
    of the whole and gives nothing."""
    query, key = np.indices(scores.shape[1:])
    is_seen = (key <= query) & (True if window is None else key > query - window)
    scores = np.where(is_seen, scores, -np.inf)
    least = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        least = np.maximum(least, sinks[:, None, None])
    powers = np.exp(scores - least)
    total = powers.sum(axis=-1, keepdims=True) + (0.0 if sinks is None else np.exp(sinks[:, None, None] - least))
    shares: Array = powers / total
    return shares


def latent_attention(a: LatentAttention, weights: Weights, x: Array) -> Array:
    """With latents as keys and values, as they are cached."""
    if a.query_rank is None:
        q = product(weights, "q", x)
    else:
        q = norm(a.latent_norm, product(weights, "q_a", x), weights["q_a_norm"]) @ weights["q_b"].T
    q = q.reshape(len(x), a.num_heads, a.key_dim + a.rope.dim)
    latent = product(weights, "kv_a", x)
    key = rotated(a.rope, latent[:, None, a.kv_rank :])[:, 0]
    latent = norm(a.latent_norm, latent[:, : a.kv_rank], weights["kv_a_norm"])
    asked = np.einsum("qhd,hrd->qhr", q[..., : a.key_dim], weights["k_b"])
    scores = np.einsum("qhr,kr->hqk", asked, latent) + np.einsum("qhd,kd->hqk", rotated(a.rope, q[..., a.key_dim :]), key)
    found = np.einsum("hqk,kr->qhr", attention_weights(scores * a.scale, None, None), latent)
    out = np.einsum("qhr,hdr->qhd", found, weights["v_b"])
    return product(weights, "attention_output", out.reshape(len(x), a.output_width))


def linear_attention(a: LinearAttention, weights: Weights, x: Array) -> Array:
    """The gated delta rule: a state [key_dim, value_dim] of each value head fades, forgets what it had under a key, and takes a value."""
    before = np.zeros((a.conv_width - 1, a.qkv_width))
    padded = np.concatenate([before, x @ weights["qkv"].T])
    taps = [padded[tap : tap + len(x)] * weights["conv"][:, tap] for tap in range(a.conv_width)]
    mixed = silu(np.sum(taps, axis=0))
    keys_width = a.num_key_heads * a.key_dim
    q, k = (unit_length(part.reshape(len(x), a.num_key_heads, a.key_dim)) for part in np.split(mixed[:, : 2 * keys_width], 2, axis=1))
    v = mixed[:, 2 * keys_width :].reshape(len(x), a.num_value_heads, a.value_dim)
    heads = np.arange(a.num_value_heads)
    key_heads = heads % a.num_key_heads if a.tiled else heads // (a.num_value_heads // a.num_key_heads)
    q, k = q[:, key_heads] / math.sqrt(a.key_dim), k[:, key_heads]
    kept = np.exp(weights["decay"] * np.logaddexp(0.0, x @ weights["alpha"].T + weights["time_step_bias"]))
    taken = sigmoid(x @ weights["beta"].T)
    state, out = np.zeros((a.num_value_heads, a.key_dim, a.value_dim)), np.empty_like(v)
    for row in range(len(x)):
        state = state * kept[row, :, None, None]
        known = np.einsum("hk,hkv->hv", k[row], state)
        state = state + np.einsum("hk,hv->hkv", k[row], taken[row, :, None] * (v[row] - known))
        out[row] = np.einsum("hk,hkv->hv", q[row], state)
    gate = silu(x @ weights["output_gate"].T).reshape(out.shape)
    gated = norm(a.output_norm, out, weights["linear_norm"]) * gate
    return product(weights, "attention_output", gated.reshape(len(x), a.value_width))


def feed_forward(described: DenseFeedForward | ExpertFeedForward, weights: Weights, x: Array) -> Array:
    if isinstance(described, DenseFeedForward):
        inner = gated(described.activation, product(weights, "gate", x), product(weights, "up", x))
        return product(weights, "down", inner)
    out = np.stack([experts(described, weights, row) for row in x])
    if not described.shared_intermediate_size:
        return out
    inner = gated(described.activation, x @ weights["shared_gate"].T, x @ weights["shared_up"].T)
    shared = inner @ weights["shared_down"].T
    return out + (shared * sigmoid(x @ weights["shared_router"].T) if described.shared_gate else shared)


def experts(described: ExpertFeedForward, weights: Weights, row: Array) -> Array:
    """What the chosen ones make of a row [inputs]."""
    scores = weights["router"] @ row + weights.get("router_bias", 0.0)
    out = np.zeros_like(row)
    for expert, weight in chosen(described.router, described.num_experts_used, scores, weights.get("router_selection_bias")):
        gate, up = (weights[f"expert_{role}"][expert] @ row + _expert_bias(weights, role, expert) for role in ("gate", "up"))
        inner = gated(described.activation, gate, up)
        out = out + weight * (weights["expert_down"][expert] @ inner + _expert_bias(weights, "down", expert))
    return out


def _expert_bias(weights: Weights, role: str, expert: int) -> Array | float:
    biases = weights.get(f"expert_{role}_bias")
    return 0.0 if biases is None else biases[expert]


def chosen(router: Router, count: int, scores: Array, selection_bias: Array | None) -> list[tuple[int, float]]:
    """The experts of a row and their weights, best first; of equal ones the first."""
    if router.kind == "sigmoid":
        scores = sigmoid(scores)
    elif router.kind == "softmax":
        scores = softmax(scores)
    choice = scores + (0.0 if selection_bias is None else selection_bias)
    if router.num_groups > 1:
        groups = choice.reshape(router.num_groups, -1)
        goodness = np.sort(groups, axis=1)[:, -router.group_best :].sum(axis=1)
        used = np.argsort(-goodness, kind="stable")[: router.num_groups_used]
        choice = np.where(np.isin(np.arange(router.num_groups), used)[:, None], groups, -np.inf).ravel()
    best = np.argsort(-choice, kind="stable")[:count]
    weights = softmax(scores[best]) if router.kind == "softmax_of_chosen" else scores[best]
    if router.normalised:
        weights = weights / weights.sum()
    return [(int(expert), float(weight) * router.scale) for expert, weight in zip(best, weights, strict=True)]


def gated(activation: Activation, gate: Array, up: Array) -> Array:
    if activation.kind == "silu_clamped" and activation.limit is not None:
        gate, up = np.minimum(gate, activation.limit), np.clip(up, -activation.limit, activation.limit)
    return activated(activation, gate) * (up + 1 if activation.kind == "silu_clamped" else up)


def activated(activation: Activation, x: Array) -> Array:
    if activation.kind == "gelu_tanh":
        gelu: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return gelu
    return x * sigmoid(activation.alpha * x)


def softcapped(x: Array, bound: float | None) -> Array:
    return x if bound is None else bound * np.tanh(x / bound)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max())
    shares: Array = powers / powers.sum()
    return shares


def unit_length(x: Array) -> Array:
    scaled: Array = x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + 1e-6)
    return scaled
