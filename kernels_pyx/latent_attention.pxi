# Attention over latents as a block of a layer. Included by _kernels.pyx.
cdef extern from "c/stage.h" nogil:
    const block_kind LATENT_ATTENTION

    ctypedef struct latent_attention:
        int num_heads
        int kv_rank
        int key_dim
        int value_dim
        float scale
        rope_spec rope
        norm_spec query_norm
        norm_spec latent_norm
        const float* q_a_bias
        const float* kv_a_bias
        const float* output_bias
        const packed_matrix* q_a
        const packed_matrix* q
        const packed_matrix* kv_a
        const packed_matrix* output
        const packed_stack* k_b
        const packed_stack* v_b

cdef extern from *:
    """
    static latent_attention* latent_of(stage_layer* layer) { return &layer->attention.latent; }
    """
    latent_attention* latent_of(stage_layer* layer) nogil


cdef class LatentAttentionBlock(LayerBlock):
    cdef latent_attention part
    cdef int query_rank
    cdef object frequencies, norm

    def __init__(self, *, num_heads, query_rank, kv_rank, key_dim, value_dim, scale, rope, latent_norm):
        require_within("num_heads", num_heads, 1, 1 << 24)
        for name, value in (("kv_rank", kv_rank), ("key_dim", key_dim), ("value_dim", value_dim)):
            require_within(name, value, 1, MAX_HEAD_DIM)
        require_within("kv_rank with the dim of rope", kv_rank + rope.dim, 2, MAX_HEAD_DIM)
        self.query_rank = 0
        if query_rank is not None:
            require_within("query_rank", query_rank, 1, 1 << 24)
            self.query_rank = query_rank
        widest = max(kv_rank, key_dim, value_dim) + rope.dim
        if num_heads * widest > LARGEST_DIMENSION:
            raise ValueError(f"num_heads x numbers of a head is {num_heads * widest}, expected at most {LARGEST_DIMENSION}")
        require_positive("scale", scale)
        check_norm("latent_norm", latent_norm)
        self.norm = latent_norm
        self.part.num_heads, self.part.kv_rank, self.part.key_dim, self.part.value_dim = num_heads, kv_rank, key_dim, value_dim
        self.part.scale = scale
        self.cache_shape = (1, kv_rank + rope.dim, 0)
        check_rope(rope, MAX_HEAD_DIM)
        self.frequencies = find_frequencies(rope)
        self.largest_frequency = self.frequencies.max()
        cdef const double[::1] view = self.frequencies
        self.part.rope = rope_spec(dim=rope.dim, interleaved=bool(rope.interleaved), magnitude=rope.magnitude, frequencies=&view[0])

    cdef dict shapes(self, int hidden_size):
        cdef int heads = self.part.num_heads, rank = self.query_rank, kv_rank = self.part.kv_rank, rope_dim = self.part.rope.dim
        queries, values = heads * (self.part.key_dim + rope_dim), heads * self.part.value_dim
        found = {"kv_a": (kv_rank + rope_dim, hidden_size), "kv_a_norm": (kv_rank,), "attention_output": (hidden_size, values)}
        found |= {"k_b": (heads, kv_rank, self.part.key_dim), "v_b": (heads, self.part.value_dim, kv_rank)}
        found |= {"kv_a_bias": (kv_rank + rope_dim,), "attention_output_bias": (hidden_size,)}
        if not rank:
            return found | {"q": (queries, hidden_size)}
        return found | {"q_a": (rank, hidden_size), "q_a_norm": (rank,), "q_b": (queries, rank), "q_a_bias": (rank,)}

    cdef set optional(self):
        return {"q_a_bias", "kv_a_bias", "attention_output_bias"}

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        cdef latent_attention* part = latent_of(layer)
        layer.attention_kind = &LATENT_ATTENTION
        part[0] = self.part
        weights.fill_norm(&part.latent_norm, "kv_a_norm", self.norm)
        part.kv_a, part.output = weights.matrix("kv_a"), weights.matrix("attention_output")
        part.kv_a_bias, part.output_bias = weights.vector("kv_a_bias"), weights.vector("attention_output_bias")
        part.k_b, part.v_b = weights.stack("k_b"), weights.stack("v_b")
        if not self.query_rank:
            part.q = weights.matrix("q")
            return 0
        weights.fill_norm(&part.query_norm, "q_a_norm", self.norm)
        part.q_a, part.q, part.q_a_bias = weights.matrix("q_a"), weights.matrix("q_b"), weights.vector("q_a_bias")
        return 0
