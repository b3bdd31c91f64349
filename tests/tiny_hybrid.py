"""Makes a GGUF file of a small Qwen 3.5: layers with linear attention, which carry states along, between layers with full attention."""

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tests.tiny_gguf import TOKENIZER_VOCAB_SIZE, add_tokenizer

FloatArray = npt.NDArray[np.float32]

HIDDEN, INTERMEDIATE, NUM_LAYERS, FULL_INTERVAL, CONTEXT = 64, 96, 6, 3, 2048
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ROPE_DIM = 2, 1, 32, 16
KEY_HEADS, VALUE_HEADS, STATE_DIM, CONV_WIDTH = 2, 4, 16, 4
CHANNELS = (2 * KEY_HEADS + VALUE_HEADS) * STATE_DIM
VALUES = VALUE_HEADS * STATE_DIM

EVERY_LAYER = {
    **{"attn_norm.weight": (HIDDEN,), "post_attention_norm.weight": (HIDDEN,), "ffn_down.weight": (HIDDEN, INTERMEDIATE)},
    **{"ffn_gate.weight": (INTERMEDIATE, HIDDEN), "ffn_up.weight": (INTERMEDIATE, HIDDEN)},
}
LINEAR_LAYER = {
    **{"attn_qkv.weight": (CHANNELS, HIDDEN), "attn_gate.weight": (VALUES, HIDDEN), "ssm_conv1d.weight": (CHANNELS, CONV_WIDTH)},
    **{"ssm_alpha.weight": (VALUE_HEADS, HIDDEN), "ssm_beta.weight": (VALUE_HEADS, HIDDEN), "ssm_a": (VALUE_HEADS,)},
    **{"ssm_dt.bias": (VALUE_HEADS,), "ssm_norm.weight": (STATE_DIM,), "ssm_out.weight": (HIDDEN, VALUES)},
}
FULL_LAYER = {
    **{"attn_q.weight": (2 * NUM_HEADS * HEAD_DIM, HIDDEN), "attn_k.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN)},
    **{"attn_v.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN), "attn_output.weight": (HIDDEN, NUM_HEADS * HEAD_DIM)},
    **{"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)},
}


def write_tiny_hybrid(path: Path, *, seed: int = 0) -> Path:
    """Of random weights in F32, with a byte-level vocabulary; returns `path`."""
    writer = gguf.GGUFWriter(path, "qwen35")
    writer.add_name("tiny-qwen35")
    _add_shape(writer)
    add_tokenizer(writer, TOKENIZER_VOCAB_SIZE)
    numbers = np.random.default_rng(seed)
    for name, shape in _shapes().items():
        writer.add_tensor(name, _random_tensor(numbers, name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (TOKENIZER_VOCAB_SIZE, HIDDEN), "output_norm.weight": (HIDDEN,)}
    shapes["output.weight"] = (TOKENIZER_VOCAB_SIZE, HIDDEN)
    for layer in range(NUM_LAYERS):
        own = FULL_LAYER if (layer + 1) % FULL_INTERVAL == 0 else LINEAR_LAYER
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in (EVERY_LAYER | own).items()}
    return shapes


def _random_tensor(numbers: np.random.Generator, name: str, shape: tuple[int, ...]) -> FloatArray:
    values = numbers.standard_normal(shape)
    if name.endswith("ssm_a"):
        return (-np.exp(values - 2)).astype(np.float32)
    if name.endswith("bias"):
        return values.astype(np.float32)
    return (1 + values / 10 if len(shape) == 1 else values / np.sqrt(shape[-1])).astype(np.float32)


def _add_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(ROPE_DIM)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(TOKENIZER_VOCAB_SIZE)
    writer.add_uint32("qwen35.full_attention_interval", FULL_INTERVAL)
    writer.add_uint32("qwen35.ssm.conv_kernel", CONV_WIDTH)
    writer.add_uint32("qwen35.ssm.state_size", STATE_DIM)
    writer.add_uint32("qwen35.ssm.group_count", KEY_HEADS)
    writer.add_uint32("qwen35.ssm.time_step_rank", VALUE_HEADS)
    writer.add_uint32("qwen35.ssm.inner_size", VALUES)
