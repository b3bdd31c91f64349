# Stacks of matrices, such as one for each expert. Included by _kernels.pyx.
cdef extern from "c/stacks.h" nogil:
    ctypedef struct packed_stack:
        packed_matrix all
        int num_matrices
        int outputs

    void packed_stack_describe(packed_stack* stack, int format, int num_matrices, int outputs, int inputs)
    void packed_stack_free(packed_stack* stack)
    packed_matrix stack_matrix(const packed_stack* stack, int index)
    void pack_stack_rows(packed_stack* stack, int index, int first_row, int num_rows, const uint8_t* rows)
    size_t stack_resident_bytes(const packed_stack* stack)


cdef class PackedStack:
    """Weight matrices [outputs, inputs] of many experts or heads, in tiles as a PackedMatrix."""

    cdef packed_stack stack
    cdef WeightMemory memory

    def __cinit__(
        self, block_format: str, num_matrices: int, outputs: int, inputs: int, *, memory: WeightMemory | None = None, offset_bytes: int = 0
    ) -> None:
        cdef int format = format_index(block_format)
        block_size = C_BLOCK_FORMATS[format].block_size
        for name, value in (("num_matrices", num_matrices), ("outputs", outputs), ("inputs", inputs)):
            if not 1 <= value <= LARGEST_DIMENSION:
                raise ValueError(f"{name} is {value}, expected 1 to {LARGEST_DIMENSION}")
        if num_matrices * (outputs + 15) > LARGEST_DIMENSION:
            raise ValueError(f"num_matrices x outputs is {num_matrices * outputs}, expected at most {LARGEST_DIMENSION}")
        if inputs % block_size:
            raise ValueError(f"inputs is {inputs}, expected a multiple of {block_size}, the block of {block_format}")
        packed_stack_describe(&self.stack, format, num_matrices, outputs, inputs)
        place_tiles(&self.stack.all, memory, offset_bytes, f"{num_matrices} {block_format} matrices of {outputs} x {inputs}")
        self.memory = memory

    def __dealloc__(self) -> None:
        packed_stack_free(&self.stack)

    @property
    def block_format(self) -> str:
        return FORMAT_NAMES[self.stack.all.format]

    @property
    def num_matrices(self) -> int:
        return self.stack.num_matrices

    @property
    def outputs(self) -> int:
        return self.stack.outputs

    @property
    def inputs(self) -> int:
        return self.stack.all.inputs

    @property
    def size_bytes(self) -> int:
        return packed_matrix_bytes(&self.stack.all)

    @property
    def resident_bytes(self) -> int:
        return stack_resident_bytes(&self.stack)

    def pack_rows(self, index: int, first_row: int, data) -> None:
        cdef const uint8_t[::1] source = byte_view(data, "data")
        cdef size_t row_bytes = self.stack.all.tile_bytes // 16
        num_rows, rest = divmod(source.shape[0], row_bytes)
        if not 0 <= index < self.stack.num_matrices:
            raise ValueError(f"index is {index}, expected 0 to {self.stack.num_matrices - 1}")
        if rest or not num_rows:
            raise ValueError(f"data has {source.shape[0]} bytes, expected a positive multiple of a row's {row_bytes}")
        if first_row < 0 or first_row % 16 or first_row + num_rows > self.stack.outputs:
            raise ValueError(
                f"rows {first_row} to {first_row + num_rows - 1} do not fit: first_row must be a multiple of 16, a matrix has "
                f"{self.stack.outputs} rows"
            )
        if num_rows % 16 and first_row + num_rows != self.stack.outputs:
            raise ValueError(f"data has {num_rows} rows, expected a multiple of 16 unless they end a matrix of {self.stack.outputs} rows")
        cdef int c_index = index, first = first_row, count = num_rows
        with nogil:
            pack_stack_rows(&self.stack, c_index, first, count, &source[0])

    def dequantize_rows(self, index: int):
        """All rows of one matrix."""
        if not 0 <= index < self.stack.num_matrices:
            raise ValueError(f"index is {index}, expected 0 to {self.stack.num_matrices - 1}")
        cdef packed_matrix matrix = stack_matrix(&self.stack, index)
        result = np.empty((self.stack.outputs, self.stack.all.inputs), np.float32)
        cdef float[:, ::1] out = result
        cdef int row
        with nogil:
            for row in range(matrix.outputs):
                c_dequantize_row(&matrix, row, &out[row, 0])
        return result
