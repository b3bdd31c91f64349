# Stages. Included by _kernels.pyx.
from libc.string cimport memset


cdef extern from "c/stage.h" nogil:
    ctypedef struct stage_spec:
        int hidden_size
        int carried_width
        int num_layers
        int boundary_encoding
        float embedding_scale
        float logit_scale
        float logit_softcap

    ctypedef struct stage_slice:
        int num_rows
        int first_position
        const int32_t* block_table
        const int32_t* state_slots

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

    enum: STAGE_LACKS_EXPERTS

    c_stage* stage_create(const stage_spec* spec, int max_rows, int max_context)
    void stage_free(c_stage* s)
    void stage_set_embedding(c_stage* s, const packed_matrix* table, const per_layer_embedding* per_layer)
    int stage_add_layer(c_stage* s, int index, const stage_layer* layer)
    void stage_set_head(c_stage* s, const norm_spec* norm, const packed_matrix* output)
    size_t stage_scratch_bytes(const c_stage* s)
    int stage_run(c_stage* s, const stage_batch* batch)


class StageSlice(NamedTuple):
    """Consecutive rows of one sequence. `block_table` names the KV blocks of positions 0 to first_position + num_rows - 1."""

    num_rows: int
    first_position: int
    block_table: object
    state_slots: object = None


cdef class StageSpec:
    cdef stage_spec spec
    cdef readonly object output_norm, per_layer_embedding

    def __init__(
        self, *, hidden_size, num_layers, output_norm, embedding_scale=1.0, logit_scale=1.0, logit_softcap=None, boundary_encoding="F32",
        carried_width=0, per_layer_embedding=None,
    ):
        for name, value in (("hidden_size", hidden_size), ("num_layers", num_layers)):
            require_within(name, value, 1, 1 << 24)
        require_positive("embedding_scale", embedding_scale)
        require_positive("logit_scale", logit_scale)
        check_norm("output_norm", output_norm)
        if not output_norm.weighted:
            raise ValueError("output_norm has no weights, expected a norm that has")
        require_within("carried_width", carried_width, 0, LARGEST_DIMENSION - hidden_size)
        if per_layer_embedding is not None:
            self.check_per_layer(per_layer_embedding, carried_width, num_layers)
        self.output_norm, self.per_layer_embedding = output_norm, per_layer_embedding
        self.spec = stage_spec(
            hidden_size=hidden_size, carried_width=carried_width, num_layers=num_layers, boundary_encoding=encoding_index(boundary_encoding, hidden_size),
            embedding_scale=embedding_scale, logit_scale=logit_scale, logit_softcap=softcap_number("logit_softcap", logit_softcap),
        )

    cdef int check_per_layer(self, object per_layer, object carried_width, object num_layers) except -1:
        require_within("width of the per-layer embedding", per_layer.width, 1, carried_width // num_layers)
        check_norm("norm of the per-layer embedding", per_layer.norm)
        require_positive("embedding_scale of the per-layer embedding", per_layer.embedding_scale)
        require_positive("scale of the per-layer embedding", per_layer.scale)
        return 0

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden_size

    @property
    def row_width(self) -> int:
        return self.spec.hidden_size + self.spec.carried_width

    @property
    def num_layers(self) -> int:
        return self.spec.num_layers


cdef bint same_geometry(const kv_cache* a, const kv_cache* b) noexcept:
    return a.type == b.type and a.num_blocks == b.num_blocks and a.block_tokens == b.block_tokens


cdef int hold_caches(tuple caches) except -1:
    """Until release_caches none of them is resized: a run needs them where and as large as they are."""
    cdef LayerMemory cache
    for cache in caches:
        cache.require_settled()
    for cache in caches:
        cache.num_users += 1
    return 0


cdef void release_caches(tuple caches) noexcept:
    cdef LayerMemory cache
    for cache in caches:
        cache.num_users -= 1


# The range in which positions times frequencies keep their full precision (deterministic_math.h).
cdef double LARGEST_ANGLE = 1e6


cdef class Stage:
    cdef c_stage* stage
    cdef stage_spec spec
    cdef StageSpec owned_spec
    cdef object embedding, head
    cdef dict layers   # global index -> (StageLayer, its LayerWeights), which are kept alive
    cdef LayerWeights head_norm, per_layer_weights
    cdef norm_spec head_norm_spec
    cdef readonly object layers_held
    cdef int max_rows, max_context

    def __cinit__(self, StageSpec spec not None, *, max_rows: int, max_context: int):
        require_within("max_rows", max_rows, 1, 1 << 20)
        require_within("max_context", max_context, 1, 1 << 24)
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

    def set_embedding(self, table, per_layer=None) -> None:
        cdef const packed_matrix* matrix = matrix_pointer("the embedding", table, 0, self.spec.hidden_size)
        weights = self.checked_per_layer(table, {} if per_layer is None else per_layer)
        cdef per_layer_embedding filled
        if self.owned_spec.per_layer_embedding is not None:
            self.fill_per_layer(&filled, weights)
        stage_set_embedding(self.stage, matrix, NULL if self.owned_spec.per_layer_embedding is None else &filled)
        self.embedding, self.per_layer_weights = table, weights

    cdef LayerWeights checked_per_layer(self, object table, object weights):
        per_layer, shapes = self.owned_spec.per_layer_embedding, {}
        if per_layer is not None:
            width = per_layer.width * self.spec.num_layers
            shapes = {"per_layer_embedding": (table.outputs, width), "per_layer_projection": (width, self.spec.hidden_size)}
            if per_layer.norm.weighted:
                shapes["per_layer_norm"] = (per_layer.width,)
        return LayerWeights("the embedding", weights, shapes, set())

    cdef int fill_per_layer(self, per_layer_embedding* out, LayerWeights weights) except -1:
        per_layer = self.owned_spec.per_layer_embedding
        out.width, out.embedding_scale, out.scale = per_layer.width, per_layer.embedding_scale, per_layer.scale
        weights.fill_norm(&out.norm, "per_layer_norm", per_layer.norm)
        out.table, out.projection = weights.matrix("per_layer_embedding"), weights.matrix("per_layer_projection")
        return 0

    def set_head(self, norm, output) -> None:
        cdef const packed_matrix* matrix = matrix_pointer("the output projection", output, 0, self.spec.hidden_size)
        weights = LayerWeights("the head", {"output_norm": norm}, {"output_norm": (self.spec.hidden_size,)}, set())
        (<LayerWeights>weights).fill_norm(&self.head_norm_spec, "output_norm", self.owned_spec.output_norm)
        stage_set_head(self.stage, &self.head_norm_spec, matrix)
        self.head_norm, self.head = weights, output

    def set_output(self, output) -> None:
        if self.head is None:
            raise ValueError("the stage has no head, expected one whose output projection is replaced")
        stage_set_head(self.stage, &self.head_norm_spec, matrix_pointer("the output projection", output, 0, self.spec.hidden_size))
        self.head = output

    def check_layer(self, StageLayer layer not None) -> None:
        if self.max_context * layer.largest_frequency > LARGEST_ANGLE:
            most = int(LARGEST_ANGLE / layer.largest_frequency)
            raise ValueError(f"max_context is {self.max_context}, expected at most {most} for these rope frequencies")
        if layer.end_of_carried > self.spec.carried_width:
            raise ValueError(f"the layer needs {layer.end_of_carried} carried numbers, expected at most {self.spec.carried_width}, the carried_width")

    def add_layer(self, index: int, StageLayer layer not None, weights) -> None:
        require_within("index", index, 0, self.spec.num_layers - 1)
        if self.layers and index not in self.layers and index != max(self.layers) + 1:
            raise ValueError(f"layer {index} does not follow layer {max(self.layers)}: the layers of a stage are contiguous and added in order")
        self.check_layer(layer)
        kept = layer.weights_of(index, weights, self.spec.hidden_size)
        cdef stage_layer filled
        layer.fill(&filled, kept)
        cdef int c_index = index, status
        with nogil:
            status = stage_add_layer(self.stage, c_index, &filled)
        if status != 0:
            raise MemoryError(f"no memory for layer {index}")
        self.layers[index] = (layer, kept)
        self.layers_held = range(min(self.layers), max(self.layers) + 1)

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
        cdef LayerMemory cache
        if batch.end_unit == 1 or batch.first_unit > self.spec.num_layers:
            return ()
        if kv is None:
            raise ValueError("kv is None, expected a KvCache for each layer of the stage")
        caches = tuple(kv)
        if len(caches) != len(self.layers) or len(set(caches)) != len(caches):
            raise ValueError(f"kv has {len(set(caches))} different caches of {len(caches)}, expected {len(self.layers)}, one for each layer of the stage")
        for index, cache in zip(self.layers_held, caches):
            layer, _ = self.layers[index]
            if cache.shape() != layer.cache_shape:
                raise ValueError(f"the cache of layer {index} is for {described(cache.shape())}, expected {described(layer.cache_shape)}")
        require_same_geometry([cache for cache in caches if isinstance(cache, KvCache)])
        return caches

    cdef object checked_inputs(self, object inputs, const stage_batch* batch):
        if batch.first_unit > 0:
            array = f32_array(inputs, 2, "inputs")
            if array.shape[1] != self.owned_spec.row_width:
                raise ValueError(f"inputs have {array.shape[1]} columns, expected {self.owned_spec.row_width}, the width of a row")
        else:
            array = index_array(inputs, "inputs", self.embedding.outputs)
        if not 1 <= array.shape[0] <= self.max_rows:
            raise ValueError(f"inputs have {array.shape[0]} rows, expected 1 to {self.max_rows}, the most that this stage was made for")
        return array

    cdef object checked_slice(self, KvCache cache, object part, stage_slice* out):
        """Fills `out`; returns the arrays that it points into. cache: of any layer, None if no layer is computed that looks into one."""
        num_rows, first_position, block_table, state_slots = part
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
        return table, self.checked_slots(state_slots, out)

    cdef object checked_slots(self, object state_slots, stage_slice* out):
        """check_states looks at what is in them."""
        if state_slots is None:
            return None
        slots = np.ascontiguousarray(state_slots, np.int32)
        if slots.shape != (len(self.layers), 2):
            raise ValueError(f"state_slots has the shape {slots.shape}, expected ({len(self.layers)}, 2)")
        cdef const int32_t[:, ::1] view = slots
        out.state_slots = &view[0, 0]
        return slots

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
        cdef KvCache any_cache = next((one for one in caches if isinstance(one, KvCache)), None)
        cdef LayerMemory cache
        try:
            if parts == NULL or pointers == NULL:
                raise MemoryError(f"no memory for {len(slices)} slices")
            kept = [self.checked_slice(any_cache, part, &parts[i]) for i, part in enumerate(slices)]
            for i, cache in enumerate(caches):
                pointers[i] = &cache.cache
                if isinstance(cache, StateMemory) and batch.first_unit <= self.layers_held.start + 1 + i < batch.end_unit:
                    check_states(parts, len(kept), i, &cache.cache)
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
        shape = (inputs.shape[0], self.owned_spec.row_width)
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
        if status == STAGE_LACKS_EXPERTS:
            self.raise_error_of_places()
        elif status != 0:
            raise MemoryError(f"no memory for {self.scratch_bytes} bytes of scratch")
        return result

    cdef int raise_error_of_places(self) except -1:
        cdef LayerWeights kept
        cdef ExpertPlaces places
        for _, kept in self.layers.values():
            for weight in kept.kept.values():
                if isinstance(weight, PackedStack) and (<PackedStack>weight).places is not None:
                    places = (<PackedStack>weight).places
                    places.raise_error()
        raise RuntimeError("experts did not come into memory, and nobody says why")


cdef str described(tuple shape):
    if len(shape) == 1:
        return f"states of {shape[0]} numbers"
    num_kv_heads, key_dim, value_dim = shape
    return f"{num_kv_heads} kv heads of {key_dim} keys and {value_dim} values"


cdef int require_same_geometry(list caches) except -1:
    cdef KvCache first, cache
    for cache in caches:
        first = caches[0]
        if not same_geometry(&cache.cache, &first.cache):
            raise ValueError(
                f"a cache has {cache.num_blocks} blocks of {cache.block_tokens} tokens in {cache.element_type}, "
                f"expected {first.num_blocks} of {first.block_tokens} in {first.element_type}, as the first has"
            )
    return 0


cdef int check_states(const stage_slice* slices, int num_slices, int layer, const kv_cache* states) except -1:
    """Each slice goes on from a state that is there and leaves one where no other reads or writes."""
    cdef int i, j, read, written
    for i in range(num_slices):
        if slices[i].state_slots == NULL:
            raise ValueError("a slice has no state_slots, expected those of a layer that carries states along")
        read, written = slices[i].state_slots[2 * layer], slices[i].state_slots[2 * layer + 1]
        if (read < 0) != (slices[i].first_position == 0) or read >= states.num_blocks or not 0 <= written < states.num_blocks:
            raise ValueError(
                f"a slice at position {slices[i].first_position} reads state {read} and writes {written}, "
                f"expected two below {states.num_blocks}, and to read none at position 0"
            )
        for j in range(num_slices):
            if written == slices[j].state_slots[2 * layer] or (i != j and written == slices[j].state_slots[2 * layer + 1]):
                raise ValueError(f"state {written} is written by one slice and used by another, expected states of their own")
    return 0


cdef object index_array(object values, str what, int64_t bound):
    """`values` as a contiguous int32 array [n] of indices below `bound`."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{what} must be a 1-dimensional array of integers, got {array.ndim} dimensions of {array.dtype}")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) < bound:
        raise ValueError(f"{what} holds numbers from {array.min()} to {array.max()}, expected 0 to {bound - 1}")
    return np.ascontiguousarray(array, np.int32)
