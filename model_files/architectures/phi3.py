"""Phi 3, 3.5 and 4: q, k and v are one matrix, gate and up another; contexts longer than the original one have rotary factors of their
own.
"""

from dairllm.model_files.attention import SelfAttention
from dairllm.model_files.checkpoints.architecture import Architecture, Checkpoint
from dairllm.model_files.checkpoints.parts import decoder, dense, each_layer, pre_norm_layer, rms, rotation, self_attention
from dairllm.model_files.checkpoints.stored import Names, Rows, Stored
from dairllm.model_files.feed_forward import DenseFeedForward
from dairllm.model_files.spec import LayerSpec, ModelSpec


def describe(checkpoint: Checkpoint) -> ModelSpec:
    norm, rope, window = rms(checkpoint), rotation(checkpoint), checkpoint.window()

    def layer(index: int) -> LayerSpec:
        return pre_norm_layer(norm, self_attention(checkpoint, index, rope=rope, window=window), dense(checkpoint, index))

    return decoder(checkpoint, each_layer(checkpoint, layer))


def _attention(layer: LayerSpec) -> SelfAttention:
    assert isinstance(layer.attention, SelfAttention)
    return layer.attention


def _widths(layer: LayerSpec) -> tuple[int, int, int]:
    """Of q, of q and k, of all three."""
    attention = _attention(layer)
    return attention.q_width, attention.q_width + attention.k_width, attention.q_width + attention.k_width + attention.v_width


def _q(layer: LayerSpec) -> Rows:
    q, _, whole = _widths(layer)
    return Rows(whole, 0, q)


def _k(layer: LayerSpec) -> Rows:
    q, keys, whole = _widths(layer)
    return Rows(whole, q, keys)


def _v(layer: LayerSpec) -> Rows:
    _, keys, whole = _widths(layer)
    return Rows(whole, keys, whole)


def _half(layer: LayerSpec, number: int) -> Rows:
    assert isinstance(layer.feed_forward, DenseFeedForward)
    size = layer.feed_forward.intermediate_size
    return Rows(2 * size, number * size, (number + 1) * size)


def _fused(attention: str, feed_forward: str) -> Names:
    return {
        **{role: (Stored(attention, (), rows),) for role, rows in (("q", _q), ("k", _k), ("v", _v))},
        "gate": (Stored(feed_forward, (), lambda layer: _half(layer, 0)),),
        "up": (Stored(feed_forward, (), lambda layer: _half(layer, 1)),),
    }


ARCHITECTURE = Architecture(
    name="phi3",
    model_types=("phi3",),
    describe=describe,
    gguf=_fused("blk.{layer}.attn_qkv.weight", "blk.{layer}.ffn_up.weight"),
    transformers=_fused("model.layers.{layer}.self_attn.qkv_proj.weight", "model.layers.{layer}.mlp.gate_up_proj.weight"),
)
