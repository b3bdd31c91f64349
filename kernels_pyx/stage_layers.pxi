# The layers of stages as data: norms, rotary positions, blocks of attention and feed-forward. Included by _kernels.pyx.
cdef extern from "c/elementwise.h" nogil:
    ctypedef enum norm_kind:
        NORM_NONE
        NORM_RMS
        NORM_LAYER
    ctypedef struct norm_spec:
        norm_kind kind
        float epsilon
        const float* weight
    ctypedef enum activation_kind:
        ACTIVATION_SILU
        ACTIVATION_GELU_TANH
        ACTIVATION_SILU_CLAMPED
    ctypedef struct activation_spec:
        activation_kind kind
        float alpha
        float limit

cdef extern from "c/stage.h" nogil:
    ctypedef struct block_kind:
        pass

    const block_kind SELF_ATTENTION
    const block_kind DENSE_FEED_FORWARD

    ctypedef struct rope_spec:
        int dim
        int interleaved
        float magnitude
        const double* frequencies

    ctypedef struct self_attention:
        int num_heads
        int num_kv_heads
        int key_dim
        int value_dim
        int window
        int output_gate
        float scale
        float softcap
        rope_spec rope
        norm_spec q_norm
        norm_spec k_norm
        norm_spec v_norm
        int norm_spans_heads
        const float* q_bias
        const float* k_bias
        const float* v_bias
        const float* output_bias
        const float* sinks
        const packed_matrix* q
        const packed_matrix* k
        const packed_matrix* v
        const packed_matrix* output
        int carried_keys

    ctypedef struct dense_feed_forward:
        int intermediate_size
        activation_spec activation
        const float* gate_bias
        const float* up_bias
        const float* down_bias
        const packed_matrix* gate
        const packed_matrix* up
        const packed_matrix* down

    # Members of unions in C.
    ctypedef struct attention_part:
        self_attention self

    ctypedef struct feed_forward_part:
        dense_feed_forward dense

    ctypedef struct per_layer_input:
        int width
        int offset
        activation_spec activation
        norm_spec post_norm
        const packed_matrix* gate
        const packed_matrix* output

    ctypedef struct per_layer_embedding:
        int width
        float embedding_scale
        float scale
        norm_spec norm
        const packed_matrix* table
        const packed_matrix* projection

    ctypedef struct stage_layer:
        norm_spec attention_norm
        norm_spec attention_post_norm
        norm_spec feed_forward_norm
        norm_spec feed_forward_post_norm
        float residual_scale
        const block_kind* attention_kind
        const block_kind* feed_forward_kind
        attention_part attention
        feed_forward_part feed_forward
        per_layer_input input
        float output_scale

    void rope_frequencies(double theta, int rope_dim, const double* factors, double* out)


class StageNorm(NamedTuple):
    kind: str
    eps: float
    offset_by_one: bool = False
    weighted: bool = True


class StageRope(NamedTuple):
    theta: float
    dim: int
    interleaved: bool
    freq_factors: object = ()
    magnitude: float = 1.0


class StageActivation(NamedTuple):
    kind: str = "silu"
    alpha: float = 1.0
    limit: object = None


class StagePerLayerEmbedding(NamedTuple):
    width: int
    norm: object
    embedding_scale: float = 1.0
    scale: float = 1.0


class StagePerLayerInput(NamedTuple):
    width: int
    offset: int
    activation: object
    post_norm: object


cdef dict NORM_KINDS = {"rms": NORM_RMS, "layer": NORM_LAYER}
cdef dict ACTIVATION_KINDS = {"silu": ACTIVATION_SILU, "gelu_tanh": ACTIVATION_GELU_TANH, "silu_clamped": ACTIVATION_SILU_CLAMPED}


cdef int check_norm(str name, object norm) except -1:
    if norm.kind not in NORM_KINDS:
        raise ValueError(f"the kind of {name} is {norm.kind!r}, expected one of {', '.join(NORM_KINDS)}")
    return require_positive(f"eps of {name}", norm.eps)


cdef double softcap_number(str name, object softcap) except -1:
    """0 for none."""
    if softcap is None:
        return 0.0
    require_positive(name, softcap)
    return softcap


cdef activation_spec activation_of(object activation) except *:
    if activation.kind not in ACTIVATION_KINDS:
        raise ValueError(f"activation is {activation.kind!r}, expected one of {', '.join(ACTIVATION_KINDS)}")
    require_positive("alpha of the activation", activation.alpha)
    if activation.limit is not None:
        require_positive("limit of the activation", activation.limit)
    return activation_spec(
        kind=<activation_kind><int>ACTIVATION_KINDS[activation.kind], alpha=activation.alpha,
        limit=math.inf if activation.limit is None else activation.limit,
    )


cdef int check_rope(object rope, int most) except -1:
    """most: numbers of a head."""
    require_within("dim of rope", rope.dim, 2, most)
    if rope.dim % 2:
        raise ValueError(f"dim of rope is {rope.dim}, expected an even number")
    require_positive("theta of rope", rope.theta)
    return require_positive("magnitude of rope", rope.magnitude)


cdef object find_frequencies(object rope):
    """Of each pair, from the highest on, with one number more."""
    half = rope.dim // 2
    factors = np.ones(half) if not len(rope.freq_factors) else np.array(rope.freq_factors, np.float64)
    if factors.shape != (half,):
        raise ValueError(f"freq_factors of rope has shape {factors.shape}, expected ({half},), half of its dim")
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ValueError("freq_factors of rope must be positive finite numbers")
    result = np.zeros(half + 1)
    cdef double[::1] out = result
    cdef const double[::1] divisors = np.append(factors, 1.0)
    rope_frequencies(rope.theta, rope.dim, &divisors[0], &out[0])
    return result


cdef const packed_matrix* matrix_pointer(str name, object weight, int outputs, int inputs) except NULL:
    """outputs 0: any number of them."""
    if not isinstance(weight, PackedMatrix):
        raise ValueError(f"{name} is a {type(weight).__name__}, expected a PackedMatrix")
    cdef PackedMatrix packed = weight
    if packed.matrix.inputs != inputs or (outputs and packed.matrix.outputs != outputs):
        raise ValueError(
            f"{name} is a matrix of {packed.matrix.outputs} x {packed.matrix.inputs}, expected {outputs or 'any number of outputs'} x {inputs}"
        )
    return &packed.matrix


cdef const packed_stack* stack_pointer(str name, object weight, tuple shape) except NULL:
    if not isinstance(weight, PackedStack):
        raise ValueError(f"{name} is a {type(weight).__name__}, expected a PackedStack")
    cdef PackedStack packed = weight
    found = (packed.num_matrices, packed.outputs, packed.inputs)
    if found != shape:
        raise ValueError(f"{name} is a stack of {' x '.join(map(str, found))}, expected {' x '.join(map(str, shape))}")
    return &packed.stack


cdef object table_of(str name, object weight, tuple shape):
    """A copy of it."""
    table = f32_array(weight, 2, name).copy()
    if table.shape != shape:
        raise ValueError(f"{name} has the shape {table.shape}, expected {shape}")
    return table


cdef object vector_of(str name, object weight, int width):
    """A copy of it."""
    vector = f32_array(weight, 1, name).copy()
    if vector.shape[0] != width:
        raise ValueError(f"{name} has {vector.shape[0]} numbers, expected {width}")
    return vector


cdef class LayerWeights:
    """The weights of a layer by role, checked against their shapes; whoever holds this keeps them alive."""

    cdef str where
    cdef dict kept, shapes

    def __init__(self, str where, object weights, dict shapes, set optional):
        """shapes: one number for a vector, two for a matrix of outputs x inputs or a table of numbers, three for a stack of matrices."""
        missing = sorted(shapes.keys() - optional - set(weights))
        unknown = sorted(set(weights) - shapes.keys())
        if missing or unknown:
            raise ValueError(f"{where} lacks the weights {missing} and has the unknown weights {unknown}, expected neither")
        self.where, self.kept, self.shapes = where, {}, shapes
        for role, weight in weights.items():
            self.kept[role] = vector_of(f"{role} of {where}", weight, shapes[role][0]) if len(shapes[role]) == 1 else weight

    cdef const packed_matrix* matrix(self, str role) except NULL:
        outputs, inputs = self.shapes[role]
        return matrix_pointer(f"{role} of {self.where}", self.kept[role], outputs, inputs)

    cdef const packed_stack* stack(self, str role) except NULL:
        return stack_pointer(f"{role} of {self.where}", self.kept[role], self.shapes[role])

    cdef const float* table(self, str role) except? NULL:
        """Numbers of two dimensions. NULL if there are none."""
        if role not in self.kept:
            return NULL
        self.kept[role] = table_of(f"{role} of {self.where}", self.kept[role], self.shapes[role])
        cdef const float[:, ::1] view = self.kept[role]
        return &view[0, 0]

    cdef const float* vector(self, str role):
        """NULL if there is none."""
        cdef const float[::1] view = self.kept.get(role)
        return NULL if view is None else &view[0]

    cdef int fill_norm(self, norm_spec* out, str role, object norm) except -1:
        """Once for each. norm: None for none."""
        out.kind = NORM_NONE
        if norm is not None:
            if norm.weighted and norm.offset_by_one:
                self.kept[role] = self.kept[role] + np.float32(1)
            out.kind, out.epsilon = <norm_kind><int>NORM_KINDS[norm.kind], norm.eps
            out.weight = self.vector(role) if norm.weighted else NULL
        return 0


cdef class LayerBlock:
    """Attention or feed-forward of a layer. A further kind is a subclass in a file of its own that fills its part of stage_layer's unions."""

    cdef readonly tuple cache_shape        # kv heads, key_dim, value_dim of its KV cache, or numbers of a state, or None
    cdef readonly double largest_frequency

    cdef dict shapes(self, int hidden_size):
        """Of its weights, by role."""
        raise NotImplementedError

    cdef set optional(self):
        """Roles of weights that it may lack."""
        return set()

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        raise NotImplementedError

    @property
    def end_of_carried(self) -> int:
        return 0


# Of what a block does not have that takes keys and values of another layer.
cdef set KEY_ROLES = {"k", "v", "k_bias", "v_bias", "k_norm", "v_norm"}


cdef class SelfAttentionBlock(LayerBlock):
    cdef self_attention part
    cdef object rope, frequencies
    cdef dict norms
    cdef bint has_keys

    def __init__(
        self, *, num_heads, num_kv_heads, key_dim, value_dim, scale, rope=None, window=None, q_norm=None, k_norm=None, v_norm=None,
        norm_spans_heads=False, softcap=None, output_gate=False, carried_keys=None, has_keys=True,
    ):
        self.check_heads(num_heads, num_kv_heads, key_dim, value_dim, output_gate)
        require_positive("scale", scale)
        if window is not None:
            require_within("window", window, 1, (1 << 31) - 1)
        self.norms = {"q_norm": q_norm, "k_norm": k_norm, "v_norm": v_norm}
        for name, norm in self.norms.items():
            if norm is not None:
                check_norm(name, norm)
        if norm_spans_heads and output_gate:
            raise ValueError("norm_spans_heads is True, expected False where the output is gated")
        self.part.num_heads, self.part.num_kv_heads, self.part.key_dim, self.part.value_dim = num_heads, num_kv_heads, key_dim, value_dim
        self.part.window, self.part.output_gate, self.part.scale = window or 0, bool(output_gate), scale
        self.part.softcap, self.part.norm_spans_heads = softcap_number("softcap", softcap), bool(norm_spans_heads)
        if carried_keys is None and not has_keys:
            raise ValueError("has_keys is False and carried_keys is None, expected the place where rows carry the keys of another layer")
        if carried_keys is not None:
            require_within("carried_keys", carried_keys, 0, LARGEST_DIMENSION)
        self.part.carried_keys, self.has_keys = -1 if carried_keys is None else carried_keys, bool(has_keys)
        self.cache_shape = (num_kv_heads, key_dim, value_dim)
        self.rope = rope
        if rope is not None:
            self.set_rope(rope)

    cdef int check_heads(self, object num_heads, object num_kv_heads, object key_dim, object value_dim, object output_gate) except -1:
        for name, value in (("num_heads", num_heads), ("num_kv_heads", num_kv_heads)):
            require_within(name, value, 1, 1 << 24)
        for name, value in (("key_dim", key_dim), ("value_dim", value_dim)):
            require_within(name, value, 2, MAX_HEAD_DIM)
            if value % 2:
                raise ValueError(f"{name} is {value}, expected an even number")
        if num_heads % num_kv_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a multiple of num_kv_heads, which is {num_kv_heads}")
        widest = max(key_dim * (2 if output_gate else 1), value_dim)
        if num_heads * widest > LARGEST_DIMENSION:
            raise ValueError(f"num_heads x numbers of a head is {num_heads * widest}, expected at most {LARGEST_DIMENSION}")
        if output_gate and key_dim != value_dim:
            raise ValueError(f"key_dim is {key_dim} and value_dim {value_dim}, expected equal ones where the output is gated")
        return 0

    cdef int set_rope(self, object rope) except -1:
        check_rope(rope, self.part.key_dim)
        self.frequencies = find_frequencies(rope)
        self.largest_frequency = self.frequencies.max()
        cdef const double[::1] view = self.frequencies
        self.part.rope = rope_spec(dim=rope.dim, interleaved=bool(rope.interleaved), magnitude=rope.magnitude, frequencies=&view[0])
        return 0

    cdef dict shapes(self, int hidden_size):
        cdef int key_dim = self.part.key_dim
        q, k = self.part.num_heads * key_dim * (2 if self.part.output_gate else 1), self.part.num_kv_heads * key_dim
        v, output = self.part.num_kv_heads * self.part.value_dim, self.part.num_heads * self.part.value_dim
        found = {"q": (q, hidden_size), "k": (k, hidden_size), "v": (v, hidden_size), "attention_output": (hidden_size, output)}
        found |= {"q_bias": (q,), "k_bias": (k,), "v_bias": (v,), "attention_output_bias": (hidden_size,)}
        found |= {"attention_sinks": (self.part.num_heads,)}
        widths = {"q_norm": q, "k_norm": k} if self.part.norm_spans_heads else {"q_norm": key_dim, "k_norm": key_dim}
        widths["v_norm"] = self.part.value_dim
        found |= {role: (widths[role],) for role, norm in self.norms.items() if norm is not None and norm.weighted}
        return found if self.has_keys else {role: shape for role, shape in found.items() if role not in KEY_ROLES}

    @property
    def end_of_carried(self) -> int:
        """How many numbers rows must carry for it."""
        return 0 if self.part.carried_keys < 0 else self.part.carried_keys + self.part.num_kv_heads * (self.part.key_dim + self.part.value_dim)

    cdef set optional(self):
        return {"q_bias", "k_bias", "v_bias", "attention_output_bias", "attention_sinks"}

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        cdef self_attention* part = &layer.attention.self
        layer.attention_kind = &SELF_ATTENTION
        part[0] = self.part
        weights.fill_norm(&part.q_norm, "q_norm", self.norms["q_norm"])
        weights.fill_norm(&part.k_norm, "k_norm", self.norms["k_norm"])
        weights.fill_norm(&part.v_norm, "v_norm", self.norms["v_norm"])
        part.q_bias, part.k_bias, part.v_bias = weights.vector("q_bias"), weights.vector("k_bias"), weights.vector("v_bias")
        part.output_bias, part.sinks = weights.vector("attention_output_bias"), weights.vector("attention_sinks")
        part.q = weights.matrix("q")
        if self.has_keys:
            part.k, part.v = weights.matrix("k"), weights.matrix("v")
        part.output = weights.matrix("attention_output")
        return 0


cdef class DenseBlock(LayerBlock):
    cdef dense_feed_forward part

    def __init__(self, *, intermediate_size, activation=StageActivation()):
        require_within("intermediate_size", intermediate_size, 1, 1 << 24)
        self.part.intermediate_size, self.part.activation = intermediate_size, activation_of(activation)

    cdef dict shapes(self, int hidden_size):
        cdef int width = self.part.intermediate_size
        found = {"gate": (width, hidden_size), "up": (width, hidden_size), "down": (hidden_size, width)}
        return found | {"gate_bias": (width,), "up_bias": (width,), "down_bias": (hidden_size,)}

    cdef set optional(self):
        return {"gate_bias", "up_bias", "down_bias"}

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        cdef dense_feed_forward* part = &layer.feed_forward.dense
        layer.feed_forward_kind = &DENSE_FEED_FORWARD
        part[0] = self.part
        part.gate_bias, part.up_bias, part.down_bias = weights.vector("gate_bias"), weights.vector("up_bias"), weights.vector("down_bias")
        part.gate, part.up, part.down = weights.matrix("gate"), weights.matrix("up"), weights.matrix("down")
        return 0


cdef class StageLayer:
    cdef readonly LayerBlock attention, feed_forward
    cdef dict norms  # by role of their weights
    cdef float residual_scale
    cdef per_layer_input input
    cdef bint has_output_scale

    def __init__(
        self, *, attention_norm=None, LayerBlock attention not None, attention_post_norm=None, feed_forward_norm=None,
        LayerBlock feed_forward not None, feed_forward_post_norm=None, residual_scale=1.0, per_layer_input=None, output_scale=False,
    ):
        self.norms = {
            "attention_norm": attention_norm, "attention_post_norm": attention_post_norm, "ffn_norm": feed_forward_norm,
            "ffn_post_norm": feed_forward_post_norm, "per_layer_post_norm": None if per_layer_input is None else per_layer_input.post_norm,
        }
        for name, norm in self.norms.items():
            if norm is not None:
                check_norm(name, norm)
        require_positive("residual_scale", residual_scale)
        self.attention, self.feed_forward, self.residual_scale = attention, feed_forward, residual_scale
        self.has_output_scale = bool(output_scale)
        if per_layer_input is not None:
            require_within("width of the per-layer input", per_layer_input.width, 1, LARGEST_DIMENSION)
            require_within("offset of the per-layer input", per_layer_input.offset, 0, LARGEST_DIMENSION)
            self.input.width, self.input.offset = per_layer_input.width, per_layer_input.offset
            self.input.activation = activation_of(per_layer_input.activation)

    @property
    def end_of_carried(self) -> int:
        """How many numbers rows must carry for it."""
        return max(self.attention.end_of_carried, self.feed_forward.end_of_carried, self.input.offset + self.input.width)

    @property
    def cache_shape(self):
        return self.attention.cache_shape

    @property
    def largest_frequency(self) -> float:
        return self.attention.largest_frequency

    cdef LayerWeights weights_of(self, int index, object weights, int hidden_size):
        shapes = {role: (hidden_size,) for role, norm in self.norms.items() if norm is not None and norm.weighted}
        shapes |= self.attention.shapes(hidden_size) | self.feed_forward.shapes(hidden_size)
        if self.input.width:
            shapes |= {"per_layer_gate": (self.input.width, hidden_size), "per_layer_output": (hidden_size, self.input.width)}
        if self.has_output_scale:
            shapes["layer_scale"] = (1,)
        return LayerWeights(f"layer {index}", weights, shapes, self.attention.optional() | self.feed_forward.optional())

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        memset(layer, 0, sizeof(layer[0]))
        layer.residual_scale = self.residual_scale
        weights.fill_norm(&layer.attention_norm, "attention_norm", self.norms["attention_norm"])
        weights.fill_norm(&layer.attention_post_norm, "attention_post_norm", self.norms["attention_post_norm"])
        weights.fill_norm(&layer.feed_forward_norm, "ffn_norm", self.norms["ffn_norm"])
        weights.fill_norm(&layer.feed_forward_post_norm, "ffn_post_norm", self.norms["ffn_post_norm"])
        layer.input = self.input
        if self.input.width:
            weights.fill_norm(&layer.input.post_norm, "per_layer_post_norm", self.norms["per_layer_post_norm"])
            layer.input.gate, layer.input.output = weights.matrix("per_layer_gate"), weights.matrix("per_layer_output")
        layer.output_scale = weights.vector("layer_scale")[0] if self.has_output_scale else 1.0
        self.attention.fill(layer, weights)
        return self.feed_forward.fill(layer, weights)
