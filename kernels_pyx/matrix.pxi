# Instruction sets, block formats, packed matrices. Included by _kernels.pyx.
import os
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from libc.stdint cimport int32_t, uint8_t, uint16_t
from libc.stdlib cimport free, malloc


cdef extern from "c/kernel_table.h" nogil:
    ctypedef struct block_format:
        const char* name
        int block_size
        int block_bytes

    enum: NUM_FORMATS
    const block_format* C_BLOCK_FORMATS "BLOCK_FORMATS"

    ctypedef struct packed_matrix:
        int format
        int outputs
        int inputs
        size_t tile_bytes
        uint8_t* tiles

    ctypedef struct kernel_table:
        const char* name
        void (*quantize_q8_0)(const float* x, size_t num_blocks, uint8_t* out) noexcept nogil
        void (*encode_row)(int encoding, const float* x, int width, uint8_t* out) noexcept nogil
        void (*decode_row)(int encoding, const uint8_t* data, int width, float* out) noexcept nogil
        void (*round_row)(int encoding, float* x, int width) noexcept nogil

    size_t activation_bytes(int format, int rows, int inputs)
    int num_available_isas()
    const char* available_isa(int index)
    int select_isa(const char* cap)
    const kernel_table* active_kernels()
    int cpu_features(const char** names, int capacity)

cdef extern from "c/packing.h" nogil:
    uint8_t* map_weight_memory(size_t bytes)
    void unmap_weight_memory(uint8_t* memory, size_t bytes)
    void packed_matrix_describe(packed_matrix* w, int format, int outputs, int inputs)
    int packed_matrix_allocate(packed_matrix* w)
    void packed_matrix_free(packed_matrix* w)
    size_t packed_matrix_bytes(const packed_matrix* w)
    void c_pack_rows "pack_rows"(packed_matrix* w, int first_row, int num_rows, const uint8_t* rows)
    void c_dequantize_row "dequantize_row"(const packed_matrix* w, int row, float* out)

cdef extern from "c/dequantize.h" nogil:
    void c_dequantize_blocks "dequantize_blocks"(int format, const uint8_t* blocks, size_t num_blocks, float* out)

cdef extern from "c/quantizers.h" nogil:
    void c_quantize_q4_0 "quantize_q4_0"(const float* x, size_t num_blocks, uint8_t* out)
    void c_quantize_q4_k "quantize_q4_k"(const float* x, size_t num_blocks, uint8_t* out)

cdef extern from "c/matmul.h" nogil:
    ctypedef struct pool_t:
        pass

    pool_t* pool_shared()
    void matmul(
        pool_t* pool, const kernel_table* kernels, const packed_matrix* w, const float* x, size_t ldx, int rows, void* act, float* y, size_t ldy
    )

cdef extern from *:
    """
    #if defined(__clang__)
    #define COMPILER_NAME "clang " __clang_version__
    #else
    #define COMPILER_NAME "gcc " __VERSION__
    #endif
    """
    const char* COMPILER_NAME


class BlockFormat(NamedTuple):
    """How a tensor's numbers are stored: `block_size` numbers along a row share a block of `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int


cdef list FORMAT_NAMES = [C_BLOCK_FORMATS[i].name.decode() for i in range(NUM_FORMATS)]
BLOCK_FORMATS = MappingProxyType(
    {
        FORMAT_NAMES[i]: BlockFormat(FORMAT_NAMES[i], C_BLOCK_FORMATS[i].block_size, C_BLOCK_FORMATS[i].block_bytes)
        for i in range(NUM_FORMATS)
    }
)

cdef enum:
    LARGEST_DIMENSION = 1 << 28  # tile numbers, rows and widths stay within C's int with room to multiply


def _set_isa(cap: str | None) -> str:
    """Use the best instruction set that the CPU has and that is not above `cap`; for tests and benchmarks. Returns its name."""
    cdef bytes name = b"" if cap is None else cap.encode()
    if select_isa(NULL if cap is None else <const char*>name) != 0:
        raise ValueError(f"DAIRLLM_ISA is {cap!r}, expected scalar, avx2, avxvnni, avx512vnni, neon, neondot or neoni8mm")
    return active_kernels().name.decode()


_set_isa(os.environ.get("DAIRLLM_ISA") or None)


cdef dict describe_isa():
    cdef const char* features[16]
    cdef int num_features = cpu_features(features, 16)
    return {
        "isa": active_kernels().name.decode(),
        "isa_available": [available_isa(i).decode() for i in range(num_available_isas())],
        "isa_cap": os.environ.get("DAIRLLM_ISA") or None,
        "cpu_features": [features[i].decode() for i in range(num_features)],
        "compiler": COMPILER_NAME.decode(),
    }


cdef int format_index(object block_format) except -1:
    if block_format not in BLOCK_FORMATS:
        raise ValueError(f"unknown block format {block_format!r}, expected one of {', '.join(FORMAT_NAMES)}")
    return FORMAT_NAMES.index(block_format)


cdef object f32_array(object values, int dimensions, str what):
    """`values` as a C-contiguous float32 array; other element types are refused, since a silent conversion would hide a mistake."""
    array = np.asarray(values)
    if array.dtype != np.float32 or array.ndim != dimensions:
        raise ValueError(f"{what} must be a {dimensions}-dimensional array of float32, got {array.ndim} dimensions of {array.dtype}")
    return np.ascontiguousarray(array)


cdef const uint8_t[::1] byte_view(object data, str what):
    """The bytes of any contiguous buffer, without a copy."""
    try:
        return np.frombuffer(data, dtype=np.uint8) if memoryview(data).nbytes else np.empty(0, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ValueError(f"{what} must be a contiguous buffer of bytes: {error}") from None


cdef enum:
    MATRIX_ALIGNMENT = 64


cdef class WeightMemory:
    """Memory that matrices are laid into by whoever counts on its size."""

    cdef uint8_t* memory
    cdef readonly size_t size_bytes

    def __cinit__(self, size_bytes: int) -> None:
        if not 1 <= size_bytes <= 1 << 46:
            raise ValueError(f"size_bytes is {size_bytes}, expected 1 to {1 << 46}")
        self.memory = map_weight_memory(size_bytes)
        if self.memory == NULL:
            raise MemoryError(f"no memory for {size_bytes} bytes of weights")
        self.size_bytes = size_bytes

    def __dealloc__(self) -> None:
        unmap_weight_memory(self.memory, self.size_bytes)


cdef int place_tiles(packed_matrix* matrix, WeightMemory memory, object offset_bytes, str what) except -1:
    """Tiles of its own without a memory, else those at the offset."""
    cdef size_t size_bytes = packed_matrix_bytes(matrix)
    if memory is None:
        if packed_matrix_allocate(matrix) != 0:
            raise MemoryError(f"no memory for {what}")
        return 0
    if offset_bytes < 0 or offset_bytes % MATRIX_ALIGNMENT or offset_bytes + size_bytes > memory.size_bytes:
        raise ValueError(
            f"offset_bytes is {offset_bytes}, expected a multiple of {MATRIX_ALIGNMENT} with {size_bytes} bytes behind it in a memory of "
            f"{memory.size_bytes}"
        )
    matrix.tiles = memory.memory + <size_t>offset_bytes
    return 0


cdef class PackedMatrix:
    """A weight matrix [outputs, inputs] in tiles of 16 outputs, in exactly the bytes of its block format."""

    cdef packed_matrix matrix
    cdef WeightMemory memory

    def __cinit__(self, block_format: str, outputs: int, inputs: int, *, memory: WeightMemory | None = None, offset_bytes: int = 0) -> None:
        cdef int index = format_index(block_format)
        block_size = C_BLOCK_FORMATS[index].block_size
        for name, value in (("outputs", outputs), ("inputs", inputs)):
            if not 1 <= value <= LARGEST_DIMENSION:
                raise ValueError(f"{name} is {value}, expected 1 to {LARGEST_DIMENSION}")
        if inputs % block_size:
            raise ValueError(f"inputs is {inputs}, expected a multiple of {block_size}, the block of {block_format}")
        packed_matrix_describe(&self.matrix, index, outputs, inputs)
        place_tiles(&self.matrix, memory, offset_bytes, f"a {block_format} matrix of {outputs} x {inputs}")
        self.memory = memory

    def __dealloc__(self) -> None:
        packed_matrix_free(&self.matrix)

    @property
    def block_format(self) -> str:
        return FORMAT_NAMES[self.matrix.format]

    @property
    def outputs(self) -> int:
        return self.matrix.outputs

    @property
    def inputs(self) -> int:
        return self.matrix.inputs

    @property
    def size_bytes(self) -> int:
        return packed_matrix_bytes(&self.matrix)

    def pack_rows(self, first_row: int, data) -> None:
        cdef const uint8_t[::1] source = byte_view(data, "data")
        cdef size_t row_bytes = self.matrix.tile_bytes // 16
        num_rows, rest = divmod(source.shape[0], row_bytes)
        if rest or not num_rows:
            raise ValueError(f"data has {source.shape[0]} bytes, expected a positive multiple of a row's {row_bytes}")
        if first_row < 0 or first_row % 16 or first_row + num_rows > self.matrix.outputs:
            raise ValueError(
                f"rows {first_row} to {first_row + num_rows - 1} do not fit: first_row must be a multiple of 16, the matrix has "
                f"{self.matrix.outputs} rows"
            )
        if num_rows % 16 and first_row + num_rows != self.matrix.outputs:
            raise ValueError(f"data has {num_rows} rows, expected a multiple of 16 unless they end the matrix of {self.matrix.outputs} rows")
        cdef int first = first_row, count = num_rows
        with nogil:
            c_pack_rows(&self.matrix, first, count, &source[0])

    def matmul(self, x):
        array = f32_array(x, 2, "x")
        if array.shape[1] != self.matrix.inputs:
            raise ValueError(f"x has {array.shape[1]} columns, expected {self.matrix.inputs}, the inputs of the matrix")
        if array.shape[0] > LARGEST_DIMENSION:
            raise ValueError(f"x has {array.shape[0]} rows, expected at most {LARGEST_DIMENSION}")
        result = np.empty((array.shape[0], self.matrix.outputs), np.float32)
        if array.shape[0]:
            self.multiply(array, result)
        return result

    cdef int multiply(self, const float[:, ::1] x, float[:, ::1] y) except -1:
        cdef int rows = <int>x.shape[0]
        cdef void* activations = malloc(activation_bytes(self.matrix.format, rows, self.matrix.inputs))
        if activations == NULL:
            raise MemoryError(f"no memory for the activations of {rows} x {self.matrix.inputs}")
        with nogil:
            matmul(
                pool_shared(), active_kernels(), &self.matrix, &x[0, 0], self.matrix.inputs, rows, activations, &y[0, 0], self.matrix.outputs
            )
        free(activations)
        return 0

    def dequantize_rows(self, ids):
        indices = np.asarray(ids)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise ValueError(f"ids must be a 1-dimensional array of integers, got {indices.ndim} dimensions of {indices.dtype}")
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < self.matrix.outputs:
            raise ValueError(f"ids reach from {indices.min()} to {indices.max()}, expected 0 to {self.matrix.outputs - 1}")
        cdef const int32_t[::1] rows = np.ascontiguousarray(indices, np.int32)
        result = np.empty((indices.size, self.matrix.inputs), np.float32)
        cdef float[:, ::1] out = result
        cdef Py_ssize_t i
        with nogil:
            for i in range(rows.shape[0]):
                c_dequantize_row(&self.matrix, rows[i], &out[i, 0])
        return result
