"""The interface of the extension. Mistakes in arguments raise ValueError with one sentence; no call keeps the GIL while it computes."""

from collections.abc import Mapping
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

def optimization_info() -> dict[str, object]:
    """What the kernels use: `isa` in use, `isa_available` (slowest first), `isa_cap` (DAIRLLM_ISA or None), `cpu_features`, `compiler`."""

def _set_isa(cap: str | None) -> str:
    """Use the best available instruction set not above `cap` ("scalar", "avx2", "avx512vnni"; None: no cap) and return its name.
    For tests and benchmarks; not while another thread computes."""

def quantize_q8_0(x: NDArray[np.float32]) -> bytes:
    """Numbers [n] as n/32 GGUF blocks of Q8_0: scale = largest magnitude / 127, rounding half to even. NaN counts as 0, magnitudes over
    127 * 65504 as that."""

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

    F32: as they are. F16: magnitudes over 65504 saturate, NaN becomes 0. Q8_0: ceil(width / 32) GGUF blocks as quantize_q8_0 makes them,
    the last one filled up with zeros. Q8_0_OUTLIERS: 8 pairs (u16 index, f16 value) of the numbers of largest magnitude (of equals the
    lower index; index ascending; 0xFFFF where the row has fewer), then the blocks of Q8_0, in which those count as zero; width up to 65535."""

def decode_rows(data: Buffer, rows: int, width: int, encoding: str) -> NDArray[np.float32]:
    """The activations [rows, width] that `data` encodes; its size and its outlier indices are checked."""
