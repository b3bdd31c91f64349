# Linear attention as a block of a layer. Included by _kernels.pyx.
cdef extern from "c/linear.h" nogil:
    ctypedef struct linear_shape:
        int num_key_heads
        int num_value_heads
        int key_dim
        int value_dim
        int conv_width
        int tiled

    int linear_channels(const linear_shape* s)
    int linear_value_width(const linear_shape* s)
    size_t linear_state_numbers(const linear_shape* s)

cdef extern from "c/stage.h" nogil:
    const block_kind LINEAR_ATTENTION

    ctypedef struct linear_attention:
        linear_shape shape
        norm_spec output_norm
        const float* conv
        const float* decay
        const float* time_bias
        const packed_matrix* qkv
        const packed_matrix* gate
        const packed_matrix* alpha
        const packed_matrix* beta
        const packed_matrix* output

cdef extern from *:
    """
    static linear_attention* linear_of(stage_layer* layer) { return &layer->attention.linear; }
    """
    linear_attention* linear_of(stage_layer* layer) nogil


cdef class LinearAttentionBlock(LayerBlock):
    cdef linear_attention part
    cdef object norm

    def __init__(self, *, num_key_heads, num_value_heads, key_dim, value_dim, conv_width, output_norm, tiled=False):
        for name, value in (("num_key_heads", num_key_heads), ("num_value_heads", num_value_heads)):
            require_within(name, value, 1, 1 << 12)
        for name, value in (("key_dim", key_dim), ("value_dim", value_dim)):
            require_within(name, value, 1, MAX_HEAD_DIM)
        require_within("conv_width", conv_width, 1, 64)
        if num_value_heads % num_key_heads:
            raise ValueError(f"num_value_heads is {num_value_heads}, expected a multiple of num_key_heads, which is {num_key_heads}")
        check_norm("output_norm", output_norm)
        self.norm = output_norm
        self.part.shape = linear_shape(
            num_key_heads=num_key_heads, num_value_heads=num_value_heads, key_dim=key_dim, value_dim=value_dim, conv_width=conv_width,
            tiled=bool(tiled),
        )
        self.cache_shape = (linear_state_numbers(&self.part.shape),)

    cdef dict shapes(self, int hidden_size):
        cdef int channels = linear_channels(&self.part.shape), values = linear_value_width(&self.part.shape)
        heads = self.part.shape.num_value_heads
        found = {"qkv": (channels, hidden_size), "output_gate": (values, hidden_size), "alpha": (heads, hidden_size)}
        found |= {"beta": (heads, hidden_size), "conv": (channels, self.part.shape.conv_width), "time_step_bias": (heads,)}
        return found | {"decay": (heads,), "linear_norm": (self.part.shape.value_dim,), "attention_output": (hidden_size, values)}

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        cdef linear_attention* part = linear_of(layer)
        layer.attention_kind = &LINEAR_ATTENTION
        part[0] = self.part
        weights.fill_norm(&part.output_norm, "linear_norm", self.norm)
        weights.kept["conv"] = self.transposed(weights.kept["conv"])
        part.conv, part.decay, part.time_bias = weights.vector("conv"), weights.vector("decay"), weights.vector("time_step_bias")
        part.qkv, part.gate = weights.matrix("qkv"), weights.matrix("output_gate")
        part.alpha, part.beta, part.output = weights.matrix("alpha"), weights.matrix("beta"), weights.matrix("attention_output")
        return 0

    cdef object transposed(self, object conv):
        """[conv_width x channels], so that channels lie across lanes."""
        array, shape = f32_array(conv, 2, "conv"), (linear_channels(&self.part.shape), self.part.shape.conv_width)
        if array.shape != shape:
            raise ValueError(f"conv has the shape {array.shape}, expected {shape}")
        return np.ascontiguousarray(array.T).reshape(-1)
