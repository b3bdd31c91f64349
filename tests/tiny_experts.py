"""Makes a GGUF file of a small Qwen 3 with experts in every layer."""

from pathlib import Path

import gguf
import numpy as np

HIDDEN, INTERMEDIATE, NUM_LAYERS, VOCABULARY, CONTEXT = 256, 256, 8, 512, 256
NUM_EXPERTS, NUM_USED = 16, 2
NUM_HEADS, HEAD_DIM = 4, 64
LAYER = {
    **{"attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,), "attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)},
    **dict.fromkeys(("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"), (NUM_HEADS * HEAD_DIM, HIDDEN)),
    "ffn_gate_inp.weight": (NUM_EXPERTS, HIDDEN),
    **dict.fromkeys(("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"), (NUM_EXPERTS, INTERMEDIATE, HIDDEN)),
}


def write_tiny_experts(path: Path) -> Path:
    """8 layers of 16 experts of 0.75 MiB, of which a row uses two, and 1 MiB for the rest: random weights in F32. Returns `path`."""
    assert INTERMEDIATE == HIDDEN == NUM_HEADS * HEAD_DIM, "down has the shape of up"
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_name("tiny-qwen3moe")
    _add_shape(writer)
    numbers = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(NUM_LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in LAYER.items()}
    for name, shape in shapes.items():
        values = numbers.standard_normal(shape)
        writer.add_tensor(name, (1 + values / 10 if len(shape) == 1 else values / np.sqrt(shape[-1])).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(NUM_LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_expert_feed_forward_length(INTERMEDIATE)
    writer.add_expert_count(NUM_EXPERTS)
    writer.add_expert_used_count(NUM_USED)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(VOCABULARY)
