"""The interface of the extension. Mistakes in arguments raise ValueError with one sentence; no call keeps the GIL while it computes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class BlockFormat(NamedTuple):
    """How a tensor's numbers are stored: `block_size` numbers along a row share a block of `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int

BLOCK_FORMATS: Mapping[str, BlockFormat]
"""F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, MXFP4 and TQ2_0, laid out as in GGUF files."""

WIRE_ENCODINGS: tuple[str, ...]
"""F32, F16, Q8_0, Q8_0_OUTLIERS: the place in the tuple is the encoding's id, and the protocol's enum value less one."""

KV_ELEMENT_TYPES: tuple[str, ...]
"""F16, F32: what a KvCache may hold."""

def optimization_info() -> dict[str, object]:
    """What the kernels use: `isa` in use, `isa_available` (slowest first), `isa_cap` (DAIRLLM_ISA or None), `cpu_features`, `compiler`."""

def _set_isa(cap: str | None) -> str:
    """Use the best available instruction set not above `cap` ("scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neondot", "neoni8mm";
    None: no cap) and return its name. For tests and benchmarks; not while another thread computes."""

def quantize_q8_0(x: NDArray[np.float32]) -> bytes:
    """Numbers [n] as n/32 GGUF blocks of Q8_0: scale = largest magnitude / 127, rounding half to even. A block with a NaN has NaN for its
    scale; magnitudes over 127 * 65504 count as that."""

def quantize_q4_0(x: NDArray[np.float32]) -> bytes:
    """Finite numbers [n] as n/32 GGUF blocks of Q4_0; the number of largest magnitude in a block becomes -8 times its scale."""

QUANTIZED_FORMATS: tuple[str, ...]
"""Q8_0, Q4_0, Q4_K: what quantize_rows makes."""

def quantize_rows(block_format: str, x: NDArray[np.float32]) -> bytes:
    """Numbers [rows, n] of magnitudes up to 65504 in blocks of one of QUANTIZED_FORMATS, row after row; the same bytes on every machine.
    n is a multiple of the block. Q8_0 and Q4_0 as quantize_q8_0 and quantize_q4_0; Q4_K searches scales and minima."""

def dequantize(block_format: str, data: Buffer, count: int) -> NDArray[np.float32]:
    """`count` numbers in their GGUF layout as float32 [count], exactly the values that the blocks stand for."""

class WeightMemory:
    """Memory, zero at first, that matrices are laid into: several matrices may lie at one place, if only one of them is used at a time.
    It lives as long as they do. MemoryError if there is none."""

    def __init__(self, size_bytes: int) -> None: ...
    @property
    def size_bytes(self) -> int: ...

class PackedMatrix:
    """A weight matrix [outputs, inputs] in tiles of 16 outputs, in exactly the bytes of its block format (outputs rounded up to 16); all
    zero at first. The memory is its own, 64-byte aligned, and freed with it, MemoryError if there is none; or it is at offset_bytes, a
    multiple of 64, of a WeightMemory, as that was left."""

    def __init__(
        self, block_format: str, outputs: int, inputs: int, *, memory: WeightMemory | None = None, offset_bytes: int = 0
    ) -> None: ...
    @property
    def block_format(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def pack_rows(self, first_row: int, data: Buffer) -> None:
        """Fill rows first_row and on from their GGUF bytes, row-major. first_row is a multiple of 16, and so is the number of rows unless
        they end the matrix. Threads may fill different rows at once."""

    def matmul(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x [rows, inputs] times the matrix: [rows, outputs]. A row's bits depend on that row and the matrix only.

        With quantised weights, x is quantised per block of 32 to int8 with scale = largest magnitude / 127 (a block with an infinity or a
        NaN gives NaN), and per block of 32, in order: sum = fma(scale_w * scale_x, exact integer dot product, sum); where the format has
        minima, it then adds fma(minimum_w, scale_x * sum of int8, sum). Numbers: sum = fma(w, x, sum), input after input. docs/kernels.md
        has the rules of each format."""

    def dequantize_rows(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows `ids` [n] as [n, inputs], exactly the values that their blocks stand for."""

class ExpertKeeper(Protocol):
    """Brings the experts of a layer into their places when they are chosen. What it raises, whoever runs the kernels gets."""

    def want(self, experts: list[int]) -> list[bool]:
        """These experts, ascending, are wanted until the next call, and have places from now on; of each, whether all of it is there."""
        ...

    def wait(self, whole: bool) -> None:
        """Until gate and up of all that are wanted are there, or all of them."""
        ...

class ExpertPlaces:
    """Where the experts of a layer lie in a memory that is divided into places of one size. most: so many may be wanted at once."""

    def __init__(self, num_experts: int, memory: WeightMemory, place_bytes: int, most: int, keeper: ExpertKeeper) -> None: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def place_bytes(self) -> int: ...
    def put(self, expert: int, place: int | None) -> None:
        """place: its number; None: in none. Not while a kernel computes with it."""

class PackedStack:
    """Weight matrices [outputs, inputs] of many experts or heads, as so many PackedMatrix in one memory; each begins with a tile
    of its own. The memory is as that of a PackedMatrix. With places, each lies at the offset in its expert's place."""

    def __init__(
        self,
        block_format: str,
        num_matrices: int,
        outputs: int,
        inputs: int,
        *,
        memory: WeightMemory | None = None,
        offset_bytes: int = 0,
        places: ExpertPlaces | None = None,
    ) -> None: ...
    @property
    def block_format(self) -> str: ...
    @property
    def num_matrices(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def resident_bytes(self) -> int:
        """Of the pages that are in memory now, as the system counts them: those written, and those that were read."""

    def pack_rows(self, index: int, first_row: int, data: Buffer) -> None:
        """As PackedMatrix.pack_rows, for the matrix of that index."""

    def dequantize_rows(self, index: int) -> NDArray[np.float32]:
        """The matrix of that index [outputs, inputs], exactly the values that its blocks stand for."""

def encoded_row_bytes(encoding: str, width: int, carried: int = 0) -> int:
    """Size of one encoded row of `width` numbers, of which the last `carried` are in F16, or in F32 where the encoding is."""

def encode_rows(x: NDArray[np.float32], encoding: str, carried: int = 0) -> bytes:
    """Activations [rows, width] for the wire, row after row.

    F32: as they are. F16: magnitudes over 65504 saturate. Q8_0: ceil(width / 32) GGUF blocks as quantize_q8_0 makes
    them, the last one filled up with zeros. Q8_0_OUTLIERS: 8 pairs (u16 index, f16 value) of the numbers of largest magnitude (of
    equals the lower index; index ascending; 0xFFFF where the row has fewer), then the blocks of Q8_0, in which those count as zero;
    width up to 65535. NaN stays NaN, in Q8_0 with its whole block."""

def decode_rows(data: Buffer, rows: int, width: int, encoding: str, carried: int = 0) -> NDArray[np.float32]:
    """The activations [rows, width] that `data` encodes; its size and its outlier indices are checked."""

def round_rows(x: NDArray[np.float32], encoding: str, carried: int = 0) -> NDArray[np.float32]:
    """Activations [rows, width] as they are after encode_rows and decode_rows."""

def exp_f32(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp of numbers [n] by the kernels' own polynomial: at most 2 ulp off where the result is a normal number, 0 below -87.33."""

def log_softmax_rows(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits [m, v] less log(sum(exp)) of their row: log-probabilities [m, v]."""

def get_num_threads() -> int:
    """How many threads a run uses, the caller among them; at first the cores that the affinity mask and the cgroup's CPU quota leave."""

def set_num_threads(num_threads: int) -> None:
    """Use this many threads (1 to 256) from now on. Waits for a run in progress. No result depends on it."""

def _cores_of_cgroups(root: str) -> int:
    """As many as the quotas of this process's control groups allow, 256 without any. root: of a tree with /proc and /sys; for tests."""

def _run_fmas(rounds: int) -> int:
    """As many multiplications with addition of float32 as this returns, on one thread, at the speed of its arithmetic; for benchmarks."""

def _count_pool_chunks(num_chunks: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Run the pool over chunks that count themselves; for tests. Returns how often each ran and the index of the thread that ran it."""

class StageSlice(NamedTuple):
    """Consecutive rows of one sequence in a micro-batch."""

    num_rows: int
    first_position: int
    block_table: NDArray[np.integer]
    """Ids of the KV blocks of positions 0 to first_position + num_rows - 1; more are allowed."""

    state_slots: NDArray[np.integer] | None = None
    """[layers of the stage, 2]: of each layer that is computed and carries a state along, the slot that it goes on from (-1 at position 0,
    and only there) and the one that it leaves, which no slice reads. None where there are no such layers."""

class StageNorm(NamedTuple):
    """kind: "rms", x / sqrt(mean(x^2) + eps) * weight, or "layer", the same of x - mean(x). offset_by_one: weights come as those less one.
    weighted: False for a norm without weights.
    """

    kind: str
    eps: float
    offset_by_one: bool = False
    weighted: bool = True

class StageRope(NamedTuple):
    """Rotary positions of the first `dim` numbers of a head, whose pairs are (2i, 2i+1) if interleaved, else (i, i + dim/2).

    The angle of pair i at a position is position * theta^(-2i/dim) / freq_factors[i]. The rotated numbers are multiplied by magnitude.
    """

    theta: float
    dim: int
    interleaved: bool
    freq_factors: Sequence[float] = ()
    magnitude: float = 1.0

class StageActivation(NamedTuple):
    """activation(gate) * up: "silu", "gelu_tanh", or "silu_clamped", gate * sigmoid(alpha * gate) * (up + 1) with both bounded by limit."""

    kind: str = "silu"
    alpha: float = 1.0
    limit: float | None = None

class StagePerLayerEmbedding(NamedTuple):
    """Each token has `width` numbers for each layer, which rows carry along: scale * (norm(P x) + embedding_scale * E[token]).

    x: the row of the embedding. The norm is of the numbers of one layer. Weights: matrices per_layer_embedding (E, a row for each token)
    and per_layer_projection (P), both for all layers; vector per_layer_norm [width]."""

    width: int
    norm: StageNorm
    embedding_scale: float = 1.0
    scale: float = 1.0

class StagePerLayerInput(NamedTuple):
    """What a layer adds to x in the end: post_norm(per_layer_output(activation(per_layer_gate x) * e)), e being the `width` carried numbers
    from `offset` on. Weights: those two matrices, and the vector per_layer_post_norm."""

    width: int
    offset: int
    activation: StageActivation
    post_norm: StageNorm

class LayerBlock:
    """Attention or feed-forward of a layer, as data."""

    @property
    def cache_shape(self) -> tuple[int, int, int] | tuple[int] | None:
        """kv heads, key_dim and value_dim of the KvCache that it needs, or the numbers of a state of its StateMemory."""

class SelfAttentionBlock(LayerBlock):
    """Grouped queries over keys and values of all positions, or of the last `window`. Dims are even and at most 1024.

    softcap: bounds scores by tanh. q_norm, k_norm, v_norm: of each head, before the rotation; norm_spans_heads: the first two of all heads
    together. output_gate: behind each head's queries, q has as many rows that give, by their sigmoid, what its output is multiplied by.
    carried_keys: where, among the numbers that rows carry, keys and values are put for other layers, or taken from if has_keys is False.

    Matrices q, k, v, attention_output; vectors q_norm, k_norm, v_norm where there are such norms; optional vectors q_bias, k_bias, v_bias,
    attention_output_bias, and attention_sinks [heads], a score of each head beside those of its positions.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        key_dim: int,
        value_dim: int,
        scale: float,
        rope: StageRope | None = None,
        window: int | None = None,
        q_norm: StageNorm | None = None,
        k_norm: StageNorm | None = None,
        v_norm: StageNorm | None = None,
        norm_spans_heads: bool = False,
        softcap: float | None = None,
        output_gate: bool = False,
        carried_keys: int | None = None,
        has_keys: bool = True,
    ) -> None: ...

class LatentAttentionBlock(LayerBlock):
    """Heads over one latent of kv_rank numbers and one rotated key of each position. Its KvCache has one head of kv_rank + rope.dim keys
    and no values. query_rank: of the queries' own latent, None if they have none.

    Matrices q_a and q_b, or q alone; kv_a, the latent's rows first; attention_output. Stacks of one matrix for each head: k_b
    [kv_rank x key_dim], v_b [value_dim x kv_rank]. Vectors q_a_norm, kv_a_norm; optional ones q_a_bias, kv_a_bias, attention_output_bias.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        query_rank: int | None,
        kv_rank: int,
        key_dim: int,
        value_dim: int,
        scale: float,
        rope: StageRope,
        latent_norm: StageNorm,
    ) -> None: ...

class LinearAttentionBlock(LayerBlock):
    """Heads that carry a state along, by the gated delta rule; needs a StateMemory in place of a KvCache.

    tiled: value head i has key head i % num_key_heads, else i // (num_value_heads / num_key_heads).

    Matrices qkv, output_gate, alpha, beta, attention_output; conv [channels x conv_width] as numbers; vectors decay and time_step_bias
    [value heads], linear_norm [value_dim]. A head keeps exp(decay * log(1 + exp(alpha + time_step_bias))) of its state.
    """

    def __init__(
        self,
        *,
        num_key_heads: int,
        num_value_heads: int,
        key_dim: int,
        value_dim: int,
        conv_width: int,
        output_norm: StageNorm,
        tiled: bool = False,
    ) -> None: ...

class DenseBlock(LayerBlock):
    """down(activation(gate(x)) * up(x)): matrices gate, up, down; optional vectors gate_bias, up_bias, down_bias."""

    def __init__(self, *, intermediate_size: int, activation: StageActivation = ...) -> None: ...

class StageRouter(NamedTuple):
    """How experts are chosen and weighed, as c/router.h defines it.

    kind: scores are the "softmax" of the logits, the "sigmoid" of each, or a "softmax_of_chosen". normalised: weights are divided by their
    sum; then they are multiplied by `scale`. Only experts of the best num_groups_used of num_groups may be chosen; a group is as good as
    the sum of its best `group_best` scores.
    """

    kind: str
    normalised: bool = False
    scale: float = 1.0
    num_groups: int = 1
    num_groups_used: int = 1
    group_best: int = 2

class ExpertBlock(LayerBlock):
    """The sum over the chosen experts of weight * down(activation(gate(x)) * up(x)), in order of their index, and, last, the same of an
    expert that every row passes, whose weight is 1, or with shared_gate the sigmoid of shared_router(x).

    Matrices router [experts, hidden], and shared_gate, shared_up, shared_down, shared_router [1, hidden] where there are such; stacks
    expert_gate, expert_up, expert_down; optional vectors router_bias, and router_selection_bias, which is added to the scores to choose by;
    optional arrays expert_gate_bias, expert_up_bias, expert_down_bias [experts, outputs]. Of stacks, only what a row has chosen is read."""

    def __init__(
        self,
        *,
        num_experts: int,
        num_experts_used: int,
        intermediate_size: int,
        router: StageRouter,
        activation: StageActivation = ...,
        shared_intermediate_size: int = 0,
        shared_gate: bool = False,
    ) -> None: ...
    def _run(self, weights: Mapping[str, PackedMatrix | PackedStack | NDArray[np.float32]], x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The block alone, [rows, hidden] for x [rows, hidden]; for tests and benchmarks."""

def _choose_experts(
    router: StageRouter, num_used: int, logits: NDArray[np.float32], selection_bias: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Experts and weights [rows, num_used], best first, for logits [rows, experts]; for tests."""

class StageLayer:
    """x + residual_scale * attention_post_norm(attention(attention_norm(x))), then the same of the feed-forward block. None: no such norm.

    The norms' weights are the vectors attention_norm, attention_post_norm, ffn_norm, ffn_post_norm [hidden]. output_scale: what comes out
    of the layer is multiplied by the vector layer_scale [1].
    """

    def __init__(
        self,
        *,
        attention_norm: StageNorm | None = None,
        attention: LayerBlock,
        attention_post_norm: StageNorm | None = None,
        feed_forward_norm: StageNorm | None = None,
        feed_forward: LayerBlock,
        feed_forward_post_norm: StageNorm | None = None,
        residual_scale: float = 1.0,
        per_layer_input: StagePerLayerInput | None = None,
        output_scale: bool = False,
    ) -> None: ...
    @property
    def cache_shape(self) -> tuple[int, int, int] | tuple[int] | None: ...

class StageSpec:
    """A decoder as data, but for its layers; `num_layers` is the whole model's.

    embedding_scale: of the embedding's rows. Logits are multiplied by logit_scale, then bounded by logit_softcap through tanh.
    `boundary_encoding`, one of WIRE_ENCODINGS, rounds the residual stream between any two units. carried_width: so many numbers come behind
    the residual stream in each row, rounded to F16 (F32 where the encoding is) when they are made, and never changed."""

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        output_norm: StageNorm,
        embedding_scale: float = 1.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        boundary_encoding: str = "F32",
        carried_width: int = 0,
        per_layer_embedding: StagePerLayerEmbedding | None = None,
    ) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def row_width(self) -> int:
        """Of the residual stream and what rows carry beside it."""
    @property
    def num_layers(self) -> int: ...

class LayerMemory:
    """What one layer keeps of sequences. RuntimeError for any use while another thread resizes it."""

    def resize(self, num_blocks: int) -> None:
        """To another number of blocks, or slots. Those below both sizes keep their content, and pages that were not written still cost
        nothing; new ones are zero, the memory of those that go is given back. RuntimeError while a run uses it; MemoryError if there is no
        more, nothing changed."""

    @property
    def size_bytes(self) -> int:
        """When all of it is written."""

    @property
    def resident_bytes(self) -> int:
        """Of the pages that are in memory now, as the system counts them: those written, and a few that were only read."""

class StateMemory(LayerMemory):
    """States of a layer with linear attention, slot after slot, each of state_numbers float32. MemoryError if there are no addresses."""

    def __init__(self, num_slots: int, state_numbers: int) -> None: ...
    def read(self, slot: int, offset: int, size: int) -> bytes:
        """Bytes of a state: opaque, the same on every machine. Their layout changes with the protocol's version only."""

    def write(self, slot: int, offset: int, data: Buffer) -> None:
        """What `read` gave. Runs that go on from this state then have the bits that they have elsewhere."""

    @property
    def num_slots(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...

class KvCache(LayerMemory):
    """Keys and values of one layer, in blocks of `block_tokens` positions (a multiple of 16). Pages that nothing was written to cost no
    memory. MemoryError if the address space is refused. value_dim 0: the keys are the values, too (LatentAttentionBlock).

    `element_type`: "F16" rounds keys and values to half precision (magnitudes over 65504 saturate), "F32" keeps them as they are.
    "Q8_0" quantises each head's keys and values of a position in blocks of 32 numbers, the last maybe shorter, to f16 scales and int8."""

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        key_dim: int,
        value_dim: int,
        element_type: str = "F16",
    ) -> None: ...
    def read_block(self, block_id: int) -> bytes:
        """Keys and values of all positions of a block, `block_bytes` long: opaque, the same on every machine, and for caches of equal
        block_tokens, heads, dims and element_type to write_block. Their layout changes with the protocol's version only."""

    def write_block(self, block_id: int, data: Buffer) -> None:
        """What read_block gave. Attention over these positions then has the bits that it has over the cache that they were read from."""

    @property
    def block_bytes(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def element_type(self) -> str: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...

class Stage:
    """A contiguous run of units (embedding, layers, head) that computes micro-batches of up to `max_rows` rows, at positions below
    `max_context`."""

    def __init__(self, spec: StageSpec, *, max_rows: int, max_context: int) -> None: ...
    @property
    def scratch_bytes(self) -> int:
        """What runs need beside weights and KV cache, for the present units and number of threads; allocated at the first run."""

    @property
    def layers_held(self) -> range: ...
    @property
    def units_held(self) -> range:
        """Unit 0 is the embedding, unit i + 1 layer i, unit num_layers + 1 the head."""

    def set_embedding(self, table: PackedMatrix, per_layer: Mapping[str, PackedMatrix | NDArray[np.float32]] | None = None) -> None:
        """Unit 0: [vocabulary, hidden], and the weights of the per-layer embedding if there is one."""

    def check_layer(self, layer: StageLayer) -> None:
        """ValueError for a layer that can't be added, whatever its weights."""

    def add_layer(self, index: int, layer: StageLayer, weights: Mapping[str, PackedMatrix | PackedStack | NDArray[np.float32]]) -> None:
        """The layer after the last one, by its index in the whole model; or one that is there, to replace it.

        `weights`: those of its norms and blocks, by role. Matrices are kept, not copied."""

    def set_head(self, norm: NDArray[np.float32], output: PackedMatrix) -> None:
        """The last unit: weights of the final norm [hidden] and the output projection [vocabulary, hidden]."""

    def set_output(self, output: PackedMatrix) -> None:
        """Another output projection behind the same norm, also of some rows of the vocabulary only. ValueError without a head."""

    def run(
        self,
        kv: Sequence[LayerMemory] | None,
        inputs: NDArray[np.integer] | NDArray[np.float32],
        slices: Sequence[StageSlice],
        logits_rows: NDArray[np.integer] | None = None,
        units: range | None = None,
    ) -> NDArray[np.float32]:
        """All units, or those of `units` (a part of units_held), over one micro-batch, in one call without the GIL. A second call on the
        same stage waits.

        `kv`: one cache, or memory of states, per layer that the stage holds, in order, whichever of them are computed, caches with equal
        blocks; not looked at if no layer is computed. They can't be resized during the call: RuntimeError there, and here while one is
        being resized. `inputs`: token ids [n] if unit 0 is computed, else rows [n, row_width]; the rows of the slices follow one another.
        Returns rows [n, row_width], or, if the head is computed, the logits [m, vocabulary] of `logits_rows` (m may be 0).
        Keys and values of all rows are stored before any row attends, so slices may be consecutive chunks of one sequence; slices that
        write the same block at the same positions are the caller's mistake. Between two units of the run rows are rounded by the spec's
        boundary_encoding, as round_rows does it; inputs [n, row_width] come rounded, and what is returned is not rounded yet. A row's bits
        depend on its sequence only."""

def memory_read_bandwidth(size_bytes: int, passes: int = 5) -> float:
    """Bytes per second at which all threads of the pool together read a buffer: the median of some passes over it. The limit of decoding.

    size_bytes: whole MiB, several times the caches. MemoryError if there is no room for the buffer."""
