"""The interface of the extension. Mistakes in arguments raise ValueError with one sentence; no call keeps the GIL while it computes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

class BlockFormat(NamedTuple):
    """How a tensor's numbers are stored: `block_size` numbers along a row share a block of `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int

BLOCK_FORMATS: Mapping[str, BlockFormat]
"""F32, F16, BF16, Q4_0, Q4_1, Q8_0, with the layouts that they have in GGUF files."""

WIRE_ENCODINGS: tuple[str, ...]
"""F32, F16, Q8_0, Q8_0_OUTLIERS: the place in the tuple is the encoding's id, and the protocol's enum value less one."""

KV_ELEMENT_TYPES: tuple[str, ...]
"""F16, F32: what a KvCache may hold."""

def optimization_info() -> dict[str, object]:
    """What the kernels use: `isa` in use, `isa_available` (slowest first), `isa_cap` (DAIRLLM_ISA or None), `cpu_features`, `compiler`."""

def _set_isa(cap: str | None) -> str:
    """Use the best available instruction set not above `cap` ("scalar", "avx2", "avx512vnni"; None: no cap) and return its name.
    For tests and benchmarks; not while another thread computes."""

def quantize_q8_0(x: NDArray[np.float32]) -> bytes:
    """Numbers [n] as n/32 GGUF blocks of Q8_0: scale = largest magnitude / 127, rounding half to even. A block with a NaN has NaN for its
    scale; magnitudes over 127 * 65504 count as that."""

def quantize_q4_0(x: NDArray[np.float32]) -> bytes:
    """Finite numbers [n] as n/32 GGUF blocks of Q4_0; the number of largest magnitude in a block becomes -8 times its scale."""

def dequantize(block_format: str, data: Buffer, count: int) -> NDArray[np.float32]:
    """`count` numbers in their GGUF layout as float32 [count], exactly the values that the blocks stand for."""

class PackedMatrix:
    """A weight matrix [outputs, inputs] in tiles of 16 outputs, in exactly the bytes of its block format (outputs rounded up to 16); all
    zero at first. The memory is its own, 64-byte aligned, and freed with it. MemoryError if there is none."""

    def __init__(self, block_format: str, outputs: int, inputs: int) -> None: ...
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
        NaN gives NaN), and per block, in order: sum = fma(scale_w * scale_x, exact integer dot product, sum); Q4_1 then adds
        fma(minimum_w, scale_x * sum of int8, sum). Other formats: sum = fma(w, x, sum), input after input."""

    def dequantize_rows(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Rows `ids` [n] as [n, inputs], exactly the values that their blocks stand for."""

def encoded_row_bytes(encoding: str, width: int) -> int:
    """Size of one encoded row of `width` numbers."""

def encode_rows(x: NDArray[np.float32], encoding: str) -> bytes:
    """Activations [rows, width] for the wire, row after row.

    F32: as they are. F16: magnitudes over 65504 saturate. Q8_0: ceil(width / 32) GGUF blocks as quantize_q8_0 makes
    them, the last one filled up with zeros. Q8_0_OUTLIERS: 8 pairs (u16 index, f16 value) of the numbers of largest magnitude (of
    equals the lower index; index ascending; 0xFFFF where the row has fewer), then the blocks of Q8_0, in which those count as zero;
    width up to 65535. NaN stays NaN, in Q8_0 with its whole block."""

def decode_rows(data: Buffer, rows: int, width: int, encoding: str) -> NDArray[np.float32]:
    """The activations [rows, width] that `data` encodes; its size and its outlier indices are checked."""

def round_rows(x: NDArray[np.float32], encoding: str) -> NDArray[np.float32]:
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

def _count_pool_chunks(num_chunks: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Run the pool over chunks that count themselves; for tests. Returns how often each ran and the index of the thread that ran it."""

class StageSlice(NamedTuple):
    """Consecutive rows of one sequence in a micro-batch."""

    num_rows: int
    first_position: int
    block_table: NDArray[np.integer]
    """Ids of the KV blocks of positions 0 to first_position + num_rows - 1; more are allowed."""

class StageSpec:
    """A Llama-like architecture as data: RMS norm, rotary positions, grouped queries, SwiGLU; `num_layers` is the whole model's.

    `rope_interleaved`: pairs (2i, 2i+1), as in GGUF files of Llama; else (i, i + rope_dim/2). The angle of pair i at a position is
    position * rope_theta^(-2i/rope_dim) / rope_freq_factors[i]. `attention_scale` is head_dim^-0.5 unless given. head_dim is even and
    at most 256. `boundary_encoding`, one of WIRE_ENCODINGS, rounds the residual stream between any two units."""

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope_dim: int,
        rope_theta: float,
        rope_interleaved: bool,
        rope_freq_factors: Sequence[float] | NDArray[np.floating] | None = None,
        rms_norm_eps: float,
        attention_scale: float | None = None,
        num_layers: int,
        activation: str = "silu",
        boundary_encoding: str = "F32",
    ) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...

class KvCache:
    """Keys and values of one layer, in blocks of `block_tokens` positions (a multiple of 16). Pages that nothing was written to cost no
    memory. MemoryError if the address space is refused. RuntimeError for any use while another thread resizes it.

    `element_type`: "F16" rounds keys and values to half precision (magnitudes over 65504 saturate), "F32" keeps them as they are."""

    def __init__(
        self,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        element_type: str = "F16",
    ) -> None: ...
    def resize(self, num_blocks: int) -> None:
        """Blocks below both sizes keep their content, and pages that were not written still cost nothing; blocks that are new are zero, the
        memory of those that go is given back. RuntimeError while a run uses the cache; MemoryError, nothing changed."""

    def read_block(self, block_id: int) -> bytes:
        """Keys and values of all positions of a block, `block_bytes` long: opaque, the same on every machine, and for caches of equal
        block_tokens, num_kv_heads, head_dim and element_type to write_block. Their layout changes with the protocol's version only."""

    def write_block(self, block_id: int, data: Buffer) -> None:
        """What read_block gave. Attention over these positions then has the bits that it has over the cache that they were read from."""

    @property
    def block_bytes(self) -> int: ...
    @property
    def size_bytes(self) -> int:
        """When every block is written."""

    @property
    def resident_bytes(self) -> int:
        """Of the pages that are in memory now, as the system counts them: those written, and a few that were only read."""

    @property
    def num_blocks(self) -> int: ...
    @property
    def element_type(self) -> str: ...
    @property
    def block_tokens(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...

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

    def set_embedding(self, table: PackedMatrix) -> None:
        """Unit 0: [vocabulary, hidden]."""

    def add_layer(self, index: int, weights: Mapping[str, PackedMatrix | NDArray[np.float32]]) -> None:
        """The layer after the last one, by its index in the whole model; or one that is there, to replace its weights.

        Matrices q, k, v, attention_output, gate, up, down; vectors attention_norm, ffn_norm; optional vectors q_bias, k_bias, v_bias,
        attention_output_bias. Matrices are kept, not copied."""

    def set_head(self, norm: NDArray[np.float32], output: PackedMatrix) -> None:
        """The last unit: the final norm [hidden] and the output projection [vocabulary, hidden]."""

    def run(
        self,
        kv: Sequence[KvCache] | None,
        inputs: NDArray[np.integer] | NDArray[np.float32],
        slices: Sequence[StageSlice],
        logits_rows: NDArray[np.integer] | None = None,
        units: range | None = None,
    ) -> NDArray[np.float32]:
        """All units, or those of `units` (a part of units_held), over one micro-batch, in one call without the GIL. A second call on the
        same stage waits.

        `kv`: one cache per layer that the stage holds, in order, whichever of them are computed, all of one geometry; not looked at if no
        layer is computed. They can't be resized during the call: RuntimeError there, and here while one is being resized.
        `inputs`: token ids [n] if unit 0 is computed, else the residual stream [n, hidden]; the rows of the slices follow one another.
        Returns the residual stream [n, hidden], or, if the head is computed, the logits [m, vocabulary] of `logits_rows` (m may be 0).
        Keys and values of all rows are stored before any row attends, so slices may be consecutive chunks of one sequence; slices that
        write the same block at the same positions are the caller's mistake. Between two units of the run
        the residual stream is rounded by the spec's boundary_encoding, as round_rows does it; inputs [n, hidden] come rounded, and what is
        returned is not rounded yet. A row's bits depend on its sequence only."""

def memory_read_bandwidth(size_bytes: int, passes: int = 5) -> float:
    """Bytes per second at which all threads of the pool together read a buffer: the median of some passes over it. The limit of decoding.

    size_bytes: whole MiB, several times the caches. MemoryError if there is no room for the buffer."""
