# Stacks of matrices, such as one for each expert. Included by _kernels.pyx.
from libc.stdlib cimport calloc

cdef extern from "c/stacks.h" nogil:
    ctypedef struct expert_places:
        uint8_t** at
        int most
        void* context
        int (*want)(void* context, const int32_t* experts, int count, uint8_t* is_there) noexcept nogil
        int (*wait)(void* context, int whole) noexcept nogil

    ctypedef struct packed_stack:
        packed_matrix all
        int num_matrices
        int outputs
        const expert_places* places
        size_t offset

    void packed_stack_describe(packed_stack* stack, int format, int num_matrices, int outputs, int inputs)
    void packed_stack_free(packed_stack* stack)
    packed_matrix stack_matrix(const packed_stack* stack, int index)
    void pack_stack_rows(packed_stack* stack, int index, int first_row, int num_rows, const uint8_t* rows)
    size_t stack_resident_bytes(const packed_stack* stack)


cdef class ExpertPlaces:
    """Where the experts of a layer lie in a memory that is divided into places of one size."""

    cdef expert_places places
    cdef WeightMemory memory
    cdef object keeper, error
    cdef readonly int num_experts
    cdef readonly size_t place_bytes

    def __cinit__(self, num_experts: int, memory: WeightMemory, place_bytes: int, most: int, keeper: object) -> None:
        require_within("num_experts", num_experts, 1, 1 << 16)
        require_within("most", most, 1, 1 << 28)
        if place_bytes < MATRIX_ALIGNMENT or place_bytes % MATRIX_ALIGNMENT or place_bytes > memory.size_bytes:
            raise ValueError(f"place_bytes is {place_bytes}, expected a multiple of {MATRIX_ALIGNMENT} up to {memory.size_bytes}")
        self.places.at = <uint8_t**>calloc(num_experts, sizeof(uint8_t*))
        if self.places.at == NULL:
            raise MemoryError(f"no memory for the places of {num_experts} experts")
        self.places.most, self.places.context = most, <void*>self
        self.places.want, self.places.wait = want_experts, wait_for_experts
        self.memory, self.keeper, self.num_experts, self.place_bytes = memory, keeper, num_experts, place_bytes

    def __dealloc__(self) -> None:
        free(self.places.at)

    def put(self, expert: int, place: int | None) -> None:
        require_within("expert", expert, 0, self.num_experts - 1)
        if place is None:
            self.places.at[expert] = NULL
            return
        require_within("place", place, 0, self.memory.size_bytes // self.place_bytes - 1)
        self.places.at[expert] = self.memory.memory + <size_t>place * self.place_bytes

    cdef int want(self, const int32_t* experts, int count, uint8_t* is_there) except -1:
        wanted = [experts[i] for i in range(count)]
        for i, is_one_there in enumerate(self.keeper.want(wanted)):
            is_there[i] = bool(is_one_there)
        for expert in wanted:
            if self.places.at[<int>expert] == NULL:
                raise RuntimeError(f"expert {expert} is wanted and has no place")
        return 0

    cdef int raise_error(self) except -1:
        """What went wrong while a kernel waited, if anything did."""
        error, self.error = self.error, None
        if error is not None:
            raise error
        return 0


cdef int want_experts(void* context, const int32_t* experts, int count, uint8_t* is_there) noexcept with gil:
    places = <ExpertPlaces>context
    try:
        places.want(experts, count, is_there)
    except BaseException as error:
        places.error = error
        return -1
    return 0


cdef int wait_for_experts(void* context, int whole) noexcept with gil:
    places = <ExpertPlaces>context
    try:
        places.keeper.wait(bool(whole))
    except BaseException as error:
        places.error = error
        return -1
    return 0


cdef class PackedStack:
    """Weight matrices [outputs, inputs] of many experts or heads, in tiles as a PackedMatrix."""

    cdef packed_stack stack
    cdef WeightMemory memory
    cdef ExpertPlaces places

    def __cinit__(
        self, block_format: str, num_matrices: int, outputs: int, inputs: int, *, memory: WeightMemory | None = None, offset_bytes: int = 0,
        places: ExpertPlaces | None = None,
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
        if places is not None:
            self.put_into(places, offset_bytes)
            return
        place_tiles(&self.stack.all, memory, offset_bytes, f"{num_matrices} {block_format} matrices of {outputs} x {inputs}")
        self.memory = memory

    cdef int put_into(self, ExpertPlaces places, object offset_bytes) except -1:
        cdef size_t matrix_bytes = packed_matrix_bytes(&self.stack.all) // <size_t>self.stack.num_matrices
        if places.num_experts != self.stack.num_matrices:
            raise ValueError(f"the places are for {places.num_experts} experts, expected {self.stack.num_matrices}, the matrices")
        if offset_bytes < 0 or offset_bytes % MATRIX_ALIGNMENT or offset_bytes + matrix_bytes > places.place_bytes:
            raise ValueError(
                f"offset_bytes is {offset_bytes}, expected a multiple of {MATRIX_ALIGNMENT} with {matrix_bytes} bytes behind it in a place of "
                f"{places.place_bytes}"
            )
        self.stack.places, self.stack.offset, self.places = &places.places, offset_bytes, places
        return 0

    cdef int require_matrix(self, object index) except -1:
        if not 0 <= index < self.stack.num_matrices:
            raise ValueError(f"index is {index}, expected 0 to {self.stack.num_matrices - 1}")
        if stack_matrix(&self.stack, index).tiles == NULL:
            raise ValueError(f"matrix {index} is in no place")
        return 0

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
        if self.places is not None:
            raise ValueError("the matrices lie in places that others share, expected a memory of their own")
        return stack_resident_bytes(&self.stack)

    def pack_rows(self, index: int, first_row: int, data) -> None:
        cdef const uint8_t[::1] source = byte_view(data, "data")
        cdef size_t row_bytes = self.stack.all.tile_bytes // 16
        num_rows, rest = divmod(source.shape[0], row_bytes)
        self.require_matrix(index)
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
        self.require_matrix(index)
        cdef packed_matrix matrix = stack_matrix(&self.stack, index)
        result = np.empty((self.stack.outputs, self.stack.all.inputs), np.float32)
        cdef float[:, ::1] out = result
        cdef int row
        with nogil:
            for row in range(matrix.outputs):
                c_dequantize_row(&matrix, row, &out[row, 0])
        return result
