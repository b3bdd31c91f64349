# Stages and their KV caches. Included by _kernels.pyx.
import math
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset


cdef extern from "c/kv_cache.h" nogil:
    enum: KEY_GROUP
    ctypedef enum kv_type:
        KV_F16
        KV_F32
    ctypedef struct kv_cache:
        kv_type type
        int num_blocks
        int block_tokens
        int num_kv_heads
        int head_dim
        size_t block_bytes
        size_t size_bytes
    int kv_cache_create(kv_cache* cache, kv_type type, int num_blocks, int block_tokens, int num_kv_heads, int head_dim)
    int kv_cache_resize(kv_cache* cache, int num_blocks)
    void kv_cache_free(kv_cache* cache)
    size_t kv_cache_resident_bytes(const kv_cache* cache)
    uint8_t* kv_cache_block(const kv_cache* cache, int block)

cdef extern from "c/attention.h" nogil:
    enum: MAX_HEAD_DIM

cdef extern from "c/stage.h" nogil:
    ctypedef struct stage_spec:
        int hidden_size
        int intermediate_size
        int num_heads
        int num_kv_heads
        int head_dim
        int rope_dim
        int rope_interleaved
        int num_layers
        int boundary_encoding
        float rms_norm_eps
        float attention_scale
        const double* rope_frequencies

    ctypedef struct stage_layer:
        const float* attention_norm
        const float* ffn_norm
        const float* q_bias
        const float* k_bias
        const float* v_bias
        const float* attention_output_bias
        const packed_matrix* q
        const packed_matrix* k
        const packed_matrix* v
        const packed_matrix* attention_output
        const packed_matrix* gate
        const packed_matrix* up
        const packed_matrix* down

    ctypedef struct stage_slice:
        int num_rows
        int first_position
        const int32_t* block_table

    ctypedef struct stage_batch:
        int first_unit
        int end_unit
        const kv_cache* const* caches
        const int32_t* token_ids
        const float* hidden
        const stage_slice* slices
        int num_slices
        int num_rows
        const int32_t* logits_rows
        int num_logits_rows
        float* out

    ctypedef struct c_stage "stage":
        pass

    c_stage* stage_create(const stage_spec* spec, int max_rows, int max_context)
    void stage_free(c_stage* s)
    void stage_set_embedding(c_stage* s, const packed_matrix* table)
    void stage_add_layer(c_stage* s, int index, const stage_layer* layer)
    void stage_set_head(c_stage* s, const float* norm, const packed_matrix* output)
    size_t stage_scratch_bytes(const c_stage* s)
    int stage_run(c_stage* s, const stage_batch* batch)
    void rope_frequencies(double theta, int rope_dim, const double* factors, double* out)

# The range in which positions times frequencies keep their full precision (deterministic_math.h).
cdef double LARGEST_ANGLE = 1e6


cdef int require_within(str name, object value, int64_t least, int64_t most) except -1:
    if not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}, expected an integer from {least} to {most}")
    return 0


cdef int require_positive(str name, double value) except -1:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} is {value!r}, expected a positive finite number")
    return 0


class StageSlice(NamedTuple):
    """Consecutive rows of one sequence. `block_table` names the KV blocks of positions 0 to first_position + num_rows - 1."""

    num_rows: int
    first_position: int
    block_table: object


cdef class StageSpec:
    cdef stage_spec spec
    cdef object frequencies
    cdef readonly double largest_frequency

    def __init__(
        self, *, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, rope_dim, rope_theta, rope_interleaved,
        rope_freq_factors=None, rms_norm_eps, attention_scale=None, num_layers, activation="silu",
        boundary_encoding="F32",
    ):
        for name, value in (
            ("hidden_size", hidden_size), ("intermediate_size", intermediate_size), ("num_heads", num_heads), ("num_kv_heads", num_kv_heads),
            ("num_layers", num_layers),
        ):
            require_within(name, value, 1, 1 << 24)
        require_within("head_dim", head_dim, 2, MAX_HEAD_DIM)
        require_within("rope_dim", rope_dim, 0, head_dim)
        for name, value in (("head_dim", head_dim), ("rope_dim", rope_dim)):
            if value % 2:
                raise ValueError(f"{name} is {value}, expected an even number")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a multiple of num_kv_heads, which is {num_kv_heads}")
        if num_heads * head_dim > LARGEST_DIMENSION:
            raise ValueError(f"num_heads x head_dim is {num_heads * head_dim}, expected at most {LARGEST_DIMENSION}")
        if activation != "silu":
            raise ValueError(f"activation is {activation!r}, expected 'silu'")
        require_positive("rope_theta", rope_theta)
        require_positive("rms_norm_eps", rms_norm_eps)
        scale = head_dim ** -0.5 if attention_scale is None else attention_scale
        require_positive("attention_scale", scale)
        self.set_frequencies(rope_theta, rope_dim, rope_freq_factors)
        self.spec = stage_spec(
            hidden_size=hidden_size, intermediate_size=intermediate_size, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            rope_dim=rope_dim, rope_interleaved=bool(rope_interleaved), num_layers=num_layers,
            boundary_encoding=encoding_index(boundary_encoding, hidden_size), rms_norm_eps=rms_norm_eps, attention_scale=scale,
            rope_frequencies=self.spec.rope_frequencies,
        )

    cdef int set_frequencies(self, double theta, int rope_dim, object freq_factors) except -1:
        factors = np.ones(rope_dim // 2) if freq_factors is None else np.array(freq_factors, np.float64)
        if factors.shape != (rope_dim // 2,):
            raise ValueError(f"rope_freq_factors has shape {factors.shape}, expected ({rope_dim // 2},), half of rope_dim")
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            raise ValueError("rope_freq_factors must be positive finite numbers")
        self.frequencies = np.empty(rope_dim // 2 + 1)
        cdef double[::1] out = self.frequencies
        cdef const double[::1] divisors = np.append(factors, 1.0)
        rope_frequencies(theta, rope_dim, &divisors[0], &out[0])
        self.spec.rope_frequencies = &out[0]
        self.largest_frequency = self.frequencies[: rope_dim // 2].max(initial=0.0)
        return 0

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden_size

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers


# The place of a name is its kv_type.
KV_ELEMENT_TYPES = ("F16", "F32")


cdef class KvCache:
    cdef kv_cache cache
    cdef int num_users  # runs in progress, under the GIL; -1 while it is resized

    def __cinit__(self, num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int, element_type: str = "F16"):
        if element_type not in KV_ELEMENT_TYPES:
            raise ValueError(f"element_type is {element_type!r}, expected one of {', '.join(KV_ELEMENT_TYPES)}")
        for name, value in (("num_blocks", num_blocks), ("block_tokens", block_tokens), ("num_kv_heads", num_kv_heads)):
            require_within(name, value, 1, 1 << 24)
        require_within("head_dim", head_dim, 2, MAX_HEAD_DIM)
        if block_tokens % KEY_GROUP:
            raise ValueError(f"block_tokens is {block_tokens}, expected a multiple of {KEY_GROUP}")
        cdef kv_type c_type = <kv_type><int>KV_ELEMENT_TYPES.index(element_type)
        if kv_cache_create(&self.cache, c_type, num_blocks, block_tokens, num_kv_heads, head_dim) != 0:
            raise MemoryError(f"no memory for a KV cache of {num_blocks} blocks of {block_tokens} tokens")

    def __dealloc__(self):
        kv_cache_free(&self.cache)

    def resize(self, num_blocks: int) -> None:
        require_within("num_blocks", num_blocks, 1, 1 << 24)
        self.require_settled()
        if self.num_users > 0:
            raise RuntimeError("the KV cache is used by a run in progress and can't be resized until that has ended")
        cdef int c_blocks = num_blocks, status
        self.num_users = -1
        with nogil:
            status = kv_cache_resize(&self.cache, c_blocks)
        self.num_users = 0
        if status != 0:
            raise MemoryError(f"no memory for a KV cache of {num_blocks} blocks of {self.cache.block_tokens} tokens")

    def read_block(self, block_id: int) -> bytes:
        return (<char*>self.block(block_id))[: self.cache.block_bytes]

    def write_block(self, block_id: int, const uint8_t[::1] data not None) -> None:
        cdef uint8_t* block = self.block(block_id)
        if <size_t>data.shape[0] != self.cache.block_bytes:
            raise ValueError(f"data has {data.shape[0]} bytes, expected {self.cache.block_bytes}, the size of a block")
        memcpy(block, &data[0], self.cache.block_bytes)

    cdef uint8_t* block(self, object block_id) except NULL:
        """Its memory, which stays where it is for as long as the GIL is held."""
        self.require_settled()
        require_within("block_id", block_id, 0, self.cache.num_blocks - 1)
        return kv_cache_block(&self.cache, block_id)

    cdef int require_settled(self) except -1:
        if self.num_users < 0:
            raise RuntimeError("the KV cache is being resized by another thread and can't be used until that has ended")
        return 0

    @property
    def resident_bytes(self) -> int:
        self.require_settled()
        return kv_cache_resident_bytes(&self.cache)

    @property
    def size_bytes(self) -> int:
        return self.cache.size_bytes

    @property
    def block_bytes(self) -> int:
        return self.cache.block_bytes

    @property
    def num_blocks(self) -> int:
        return self.cache.num_blocks

    @property
    def block_tokens(self) -> int:
        return self.cache.block_tokens

    @property
    def num_kv_heads(self) -> int:
        return self.cache.num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.cache.head_dim

    @property
    def element_type(self) -> str:
        return KV_ELEMENT_TYPES[self.cache.type]


cdef bint same_geometry(const kv_cache* a, const kv_cache* b) noexcept:
    return a.type == b.type and a.num_blocks == b.num_blocks and a.block_tokens == b.block_tokens


cdef int hold_caches(tuple caches) except -1:
    """Until release_caches none of them is resized: a run needs them where and as large as they are."""
    cdef KvCache cache
    for cache in caches:
        cache.require_settled()
    for cache in caches:
        cache.num_users += 1
    return 0


cdef void release_caches(tuple caches) noexcept:
    cdef KvCache cache
    for cache in caches:
        cache.num_users -= 1


cdef dict LAYER_BIASES = {"q_bias": "q", "k_bias": "k", "v_bias": "v", "attention_output_bias": "attention_output"}


cdef class Stage:
    cdef c_stage* stage
    cdef stage_spec spec
    cdef object owned_spec, embedding, head_norm, head
    cdef dict layers  # global index -> weights; keeps them alive
    cdef readonly object layers_held
    cdef int max_rows, max_context

    def __cinit__(self, StageSpec spec not None, *, max_rows: int, max_context: int):
        require_within("max_rows", max_rows, 1, 1 << 20)
        require_within("max_context", max_context, 1, 1 << 24)
        if max_context * spec.largest_frequency > LARGEST_ANGLE:
            raise ValueError(f"max_context is {max_context}, expected at most {int(LARGEST_ANGLE / spec.largest_frequency)} for these rope frequencies")
        self.max_rows, self.max_context = max_rows, max_context
        self.spec = spec.spec
        self.owned_spec = spec
        self.layers = {}
        self.layers_held = range(0)
        self.stage = stage_create(&self.spec, self.max_rows, self.max_context)
        if self.stage == NULL:
            raise MemoryError("no memory for a stage")

    def __dealloc__(self):
        stage_free(self.stage)

    @property
    def scratch_bytes(self) -> int:
        return stage_scratch_bytes(self.stage)

    @property
    def units_held(self) -> range:
        layers, num_layers = self.layers_held, self.spec.num_layers
        if self.embedding is None and self.head is None and not layers:
            return range(0)
        first = 0 if self.embedding is not None else layers.start + 1 if layers else num_layers + 1
        end = num_layers + 2 if self.head is not None else layers.stop + 1 if layers else 1
        return range(first, end)

    # ---- weights ----

    cdef const packed_matrix* matrix_of(self, str name, object weight, int outputs, int inputs) except NULL:
        if not isinstance(weight, PackedMatrix):
            raise ValueError(f"{name} is a {type(weight).__name__}, expected a PackedMatrix")
        cdef PackedMatrix packed = weight
        if packed.matrix.inputs != inputs or (outputs and packed.matrix.outputs != outputs):
            raise ValueError(
                f"{name} is a matrix of {packed.matrix.outputs} x {packed.matrix.inputs}, expected {outputs or 'any number of outputs'} x {inputs}"
            )
        return &packed.matrix

    cdef object vector_of(self, str name, object weight, int width):
        vector = f32_array(weight, 1, name).copy()
        if vector.shape[0] != width:
            raise ValueError(f"{name} has {vector.shape[0]} numbers, expected {width}")
        return vector

    def set_embedding(self, table) -> None:
        stage_set_embedding(self.stage, self.matrix_of("the embedding", table, 0, self.spec.hidden_size))
        self.embedding = table

    def set_head(self, norm, output) -> None:
        cdef const packed_matrix* matrix = self.matrix_of("the output projection", output, 0, self.spec.hidden_size)
        vector = self.vector_of("the output norm", norm, self.spec.hidden_size)
        cdef const float[::1] view = vector
        stage_set_head(self.stage, &view[0], matrix)
        self.head_norm, self.head = vector, output

    def add_layer(self, index: int, weights) -> None:
        require_within("index", index, 0, self.spec.num_layers - 1)
        if self.layers and index not in self.layers and index != max(self.layers) + 1:
            raise ValueError(f"layer {index} does not follow layer {max(self.layers)}: the layers of a stage are contiguous and added in order")
        q, k, hidden, ffn = self.spec.num_heads * self.spec.head_dim, self.spec.num_kv_heads * self.spec.head_dim, self.spec.hidden_size, self.spec.intermediate_size
        shapes = {
            "q": (q, hidden), "k": (k, hidden), "v": (k, hidden), "attention_output": (hidden, q),
            "gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn),
        }
        vectors = {"attention_norm": hidden, "ffn_norm": hidden}
        vectors |= {name: shapes[matrix][0] for name, matrix in LAYER_BIASES.items() if name in weights}
        missing = sorted((shapes.keys() | vectors.keys()) - set(weights))
        unknown = sorted(set(weights) - shapes.keys() - vectors.keys())
        if missing or unknown:
            raise ValueError(f"layer {index} lacks the weights {missing} and has the unknown weights {unknown}, expected neither")
        kept = {name: self.vector_of(f"{name} of layer {index}", weights[name], width) for name, width in vectors.items()}
        cdef stage_layer layer
        memset(&layer, 0, sizeof(layer))
        self.point_at_matrices(index, weights, shapes, &layer)
        layer.attention_norm = vector_pointer(kept, "attention_norm")
        layer.ffn_norm = vector_pointer(kept, "ffn_norm")
        layer.q_bias = vector_pointer(kept, "q_bias")
        layer.k_bias = vector_pointer(kept, "k_bias")
        layer.v_bias = vector_pointer(kept, "v_bias")
        layer.attention_output_bias = vector_pointer(kept, "attention_output_bias")
        cdef int c_index = index
        with nogil:
            stage_add_layer(self.stage, c_index, &layer)
        self.layers[index] = kept | {name: weights[name] for name in shapes}
        self.layers_held = range(min(self.layers), max(self.layers) + 1)

    cdef int point_at_matrices(self, int index, object weights, dict shapes, stage_layer* layer) except -1:
        cdef const packed_matrix* matrix
        for name, (outputs, inputs) in shapes.items():
            matrix = self.matrix_of(f"{name} of layer {index}", weights[name], outputs, inputs)
            if name == "q":
                layer.q = matrix
            elif name == "k":
                layer.k = matrix
            elif name == "v":
                layer.v = matrix
            elif name == "attention_output":
                layer.attention_output = matrix
            elif name == "gate":
                layer.gate = matrix
            elif name == "up":
                layer.up = matrix
            else:
                layer.down = matrix
        return 0

    # ---- running ----

    cdef int check_units(self) except -1:
        layers = self.layers_held
        if self.embedding is None and self.head is None and not layers:
            raise ValueError("the stage is empty: add an embedding, layers or a head first")
        follows = not layers or layers.start == 0
        leads = not layers or layers.stop == self.spec.num_layers
        if self.embedding is not None and (not follows or (self.head is not None and not layers)):
            raise ValueError("the stage's units are not contiguous: layer 0 must follow its embedding")
        if self.head is not None and not leads:
            raise ValueError(f"the stage's units are not contiguous: layer {self.spec.num_layers - 1} must precede its head")
        return 0

    cdef int find_units(self, object units, stage_batch* batch) except -1:
        """What a run computes: `units`, or all that are held."""
        held = self.units_held
        span = held if units is None else units
        if not isinstance(span, range) or span.step != 1 or not held.start <= span.start < span.stop <= held.stop:
            raise ValueError(f"units is {units!r}, expected a part of {held}, the units of the stage, with one unit or more")
        batch.first_unit, batch.end_unit = span.start, span.stop
        return 0

    cdef tuple checked_caches(self, object kv, const stage_batch* batch):
        """Of all layers that are held, if any layer is computed."""
        cdef KvCache first, cache
        if batch.end_unit == 1 or batch.first_unit > self.spec.num_layers:
            return ()
        if kv is None:
            raise ValueError("kv is None, expected a KvCache for each layer of the stage")
        caches = tuple(kv)
        if len(caches) != len(self.layers) or len(set(caches)) != len(caches):
            raise ValueError(f"kv has {len(set(caches))} different caches of {len(caches)}, expected {len(self.layers)}, one for each layer of the stage")
        first = caches[0]
        for cache in caches:
            if cache.cache.num_kv_heads != self.spec.num_kv_heads or cache.cache.head_dim != self.spec.head_dim:
                raise ValueError(
                    f"a cache is for {cache.cache.num_kv_heads} kv heads of {cache.cache.head_dim} numbers, "
                    f"expected {self.spec.num_kv_heads} of {self.spec.head_dim}"
                )
            if not same_geometry(&cache.cache, &first.cache):
                raise ValueError(
                    f"a cache has {cache.num_blocks} blocks of {cache.block_tokens} tokens in {cache.element_type}, "
                    f"expected {first.num_blocks} of {first.block_tokens} in {first.element_type}, as the first has"
                )
        return caches

    cdef object checked_inputs(self, object inputs, const stage_batch* batch):
        if batch.first_unit > 0:
            array = f32_array(inputs, 2, "inputs")
            if array.shape[1] != self.spec.hidden_size:
                raise ValueError(f"inputs have {array.shape[1]} columns, expected {self.spec.hidden_size}, the hidden size")
        else:
            array = index_array(inputs, "inputs", self.embedding.outputs)
        if not 1 <= array.shape[0] <= self.max_rows:
            raise ValueError(f"inputs have {array.shape[0]} rows, expected 1 to {self.max_rows}, the most that this stage was made for")
        return array

    cdef object checked_slice(self, KvCache cache, object part, stage_slice* out):
        """Fills `out`; returns the array that it points into. cache: of any layer, None if no layer is computed."""
        num_rows, first_position, block_table = part
        require_within("num_rows of a slice", num_rows, 1, self.max_rows)
        require_within("first_position of a slice", first_position, 0, self.max_context - 1)
        if first_position + num_rows > self.max_context:
            raise ValueError(f"a slice ends at position {first_position + num_rows - 1}, expected at most {self.max_context - 1}")
        memset(out, 0, sizeof(out[0]))
        out.num_rows, out.first_position = num_rows, first_position
        cdef const int32_t[::1] blocks
        table = None
        if cache is not None:
            table = index_array(block_table, "block_table", cache.cache.num_blocks)
            needed = (first_position + num_rows + cache.cache.block_tokens - 1) // cache.cache.block_tokens
            if table.shape[0] < needed:
                raise ValueError(f"block_table has {table.shape[0]} blocks, expected {needed} for positions up to {first_position + num_rows - 1}")
            blocks = table
            out.block_table = &blocks[0]
        return table

    def run(self, kv, inputs, slices, logits_rows=None, units=None):
        cdef stage_batch batch
        memset(&batch, 0, sizeof(batch))
        self.check_units()
        self.find_units(units, &batch)
        caches = self.checked_caches(kv, &batch)
        hold_caches(caches)
        try:
            return self.run_held(caches, inputs, list(slices), logits_rows, &batch)
        finally:
            release_caches(caches)

    cdef object run_held(self, tuple caches, object inputs, list slices, object logits_rows, stage_batch* batch):
        array = self.checked_inputs(inputs, batch)
        if not slices:
            raise ValueError("slices is empty, expected at least one slice")
        total = sum(part[0] for part in slices)
        if total != array.shape[0]:
            raise ValueError(f"the slices have {total} rows, expected {array.shape[0]}, the rows of inputs")
        cdef stage_slice* parts = <stage_slice*>malloc(len(slices) * sizeof(stage_slice))
        cdef const kv_cache** pointers = <const kv_cache**>malloc((len(caches) + 1) * sizeof(kv_cache*))
        cdef KvCache cache = caches[0] if caches else None
        try:
            if parts == NULL or pointers == NULL:
                raise MemoryError(f"no memory for {len(slices)} slices")
            kept = [self.checked_slice(cache, part, &parts[i]) for i, part in enumerate(slices)]
            for i, cache in enumerate(caches):
                pointers[i] = &cache.cache
            batch.caches, batch.slices, batch.num_slices = <const kv_cache* const*>pointers, parts, len(kept)
            return self.run_checked(array, self.checked_logits_rows(logits_rows, array.shape[0], batch), batch)
        finally:
            free(parts)
            free(pointers)

    cdef object checked_logits_rows(self, object logits_rows, Py_ssize_t rows, const stage_batch* batch):
        if batch.end_unit < self.spec.num_layers + 2:
            if logits_rows is not None:
                raise ValueError("logits_rows is given, expected None, since no head is computed")
            return None
        if logits_rows is None:
            raise ValueError("logits_rows is None, expected the rows whose logits are wanted, since the head is computed")
        array = index_array(logits_rows, "logits_rows", rows)
        if array.shape[0] > self.max_rows:
            raise ValueError(f"logits_rows has {array.shape[0]} rows, expected at most {self.max_rows}")
        return array

    cdef object run_checked(self, object inputs, object logits_rows, stage_batch* batch):
        cdef const float[:, ::1] hidden
        cdef const int32_t[::1] tokens, wanted
        batch.num_rows = inputs.shape[0]
        if batch.first_unit > 0:
            hidden = inputs
            batch.hidden = &hidden[0, 0]
        else:
            tokens = inputs
            batch.token_ids = &tokens[0]
        shape = (inputs.shape[0], self.spec.hidden_size)
        if logits_rows is not None:
            shape = (logits_rows.shape[0], self.head.outputs)
            wanted = logits_rows
            batch.num_logits_rows = shape[0]
            if shape[0]:
                batch.logits_rows = &wanted[0]
        result = np.empty(shape, np.float32)
        cdef float[:, ::1] out = result
        if result.size:
            batch.out = &out[0, 0]
        cdef int status
        with nogil:
            status = stage_run(self.stage, batch)
        if status != 0:
            raise MemoryError(f"no memory for {self.scratch_bytes} bytes of scratch")
        return result


cdef const float* vector_pointer(dict vectors, str name):
    if name not in vectors:
        return NULL
    cdef const float[::1] view = vectors[name]
    return &view[0]


cdef object index_array(object values, str what, int64_t bound):
    """`values` as a contiguous int32 array [n] of indices below `bound`."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{what} must be a 1-dimensional array of integers, got {array.ndim} dimensions of {array.dtype}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < bound:
        raise ValueError(f"{what} holds numbers from {array.min()} to {array.max()}, expected 0 to {bound - 1}")
    return np.ascontiguousarray(array, np.int32)
