# Feed-forward blocks of many experts. Included by _kernels.pyx.
cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef extern from "c/router.h" nogil:
    ctypedef enum router_kind:
        ROUTER_SOFTMAX
        ROUTER_SIGMOID
        ROUTER_SOFTMAX_OF_CHOSEN

    ctypedef struct router_spec:
        router_kind kind
        int num_experts
        int num_used
        int num_groups
        int num_groups_used
        int group_best
        int normalised
        float scale

    int router_scratch_numbers(const router_spec* router)
    void choose_experts(
        const kernel_table* kernels, const router_spec* router, float* logits, const float* selection_bias, float* scratch, int32_t* chosen,
        float* weights
    )

cdef extern from "c/experts.h" nogil:
    ctypedef struct expert_block:
        router_spec choice
        activation_spec activation
        const packed_matrix* router
        const float* router_bias
        const float* selection_bias
        const packed_stack* gate
        const packed_stack* up
        const packed_stack* down
        const float* gate_bias
        const float* up_bias
        const float* down_bias
        const packed_matrix* shared_gate
        const packed_matrix* shared_up
        const packed_matrix* shared_down
        const packed_matrix* shared_router

    ctypedef struct experts_rows:
        int num_rows
        const float* x
        float* logits
        float* shared_logits
        float* out

    size_t experts_scratch_bytes(const expert_block* block, int max_rows)
    int experts_run(const expert_block* block, const kernel_table* kernels, int num_threads, const experts_rows* rows, void* scratch)

cdef extern from "c/stage.h" nogil:
    const block_kind EXPERT_FEED_FORWARD

cdef extern from *:
    """
    static expert_block* experts_of(stage_layer* layer) { return &layer->feed_forward.experts; }
    """
    expert_block* experts_of(stage_layer* layer) noexcept nogil


class StageRouter(NamedTuple):
    kind: str
    normalised: bool = False
    scale: float = 1.0
    num_groups: int = 1
    num_groups_used: int = 1
    group_best: int = 2


cdef enum:
    MOST_EXPERTS_USED = 1 << 10  # times the rows of a micro-batch stays within C's int

cdef dict ROUTER_KINDS = {"softmax": ROUTER_SOFTMAX, "sigmoid": ROUTER_SIGMOID, "softmax_of_chosen": ROUTER_SOFTMAX_OF_CHOSEN}


cdef router_spec router_of(object router, object num_experts, object num_used) except *:
    require_within("num_experts", num_experts, 1, 1 << 16)
    require_within("num_experts_used", num_used, 1, min(num_experts, MOST_EXPERTS_USED))
    if router.kind not in ROUTER_KINDS:
        raise ValueError(f"router is {router.kind!r}, expected one of {', '.join(ROUTER_KINDS)}")
    require_positive("scale of the router", router.scale)
    require_within("num_groups", router.num_groups, 1, num_experts)
    require_within("num_groups_used", router.num_groups_used, 1, router.num_groups)
    if num_experts % router.num_groups:
        raise ValueError(f"num_experts is {num_experts}, expected a multiple of num_groups, {router.num_groups}")
    group_size = num_experts // router.num_groups
    require_within("group_best", router.group_best, 1, group_size if router.num_groups > 1 else 1 << 16)
    in_groups = group_size * router.num_groups_used
    if num_used > in_groups:
        raise ValueError(f"num_experts_used is {num_used}, expected at most the {in_groups} of the groups used")
    return router_spec(
        kind=<router_kind><int>ROUTER_KINDS[router.kind], num_experts=num_experts, num_used=num_used, num_groups=router.num_groups,
        num_groups_used=router.num_groups_used, group_best=router.group_best, normalised=bool(router.normalised), scale=router.scale,
    )


cdef class ExpertBlock(LayerBlock):
    cdef expert_block part
    cdef int intermediate_size, shared_intermediate_size, shared_gate

    def __init__(
        self, *, num_experts, num_experts_used, intermediate_size, router, activation=StageActivation(), shared_intermediate_size=0,
        shared_gate=False,
    ):
        require_within("intermediate_size", intermediate_size, 1, 1 << 24)
        require_within("shared_intermediate_size", shared_intermediate_size, 0, 1 << 24)
        if shared_gate and not shared_intermediate_size:
            raise ValueError("shared_gate is True, expected False where there is no shared expert")
        self.part = expert_block(choice=router_of(router, num_experts, num_experts_used), activation=activation_of(activation))
        self.intermediate_size, self.shared_intermediate_size = intermediate_size, shared_intermediate_size
        self.shared_gate = bool(shared_gate)

    cdef dict shapes(self, int hidden_size):
        cdef int experts = self.part.choice.num_experts, width = self.intermediate_size, shared = self.shared_intermediate_size
        found = {"router": (experts, hidden_size), "router_bias": (experts,), "router_selection_bias": (experts,)}
        found |= {"expert_gate": (experts, width, hidden_size), "expert_up": (experts, width, hidden_size)}
        found |= {"expert_down": (experts, hidden_size, width), "expert_gate_bias": (experts, width)}
        found |= {"expert_up_bias": (experts, width), "expert_down_bias": (experts, hidden_size)}
        if shared:
            found |= {"shared_gate": (shared, hidden_size), "shared_up": (shared, hidden_size), "shared_down": (hidden_size, shared)}
        return found | ({"shared_router": (1, hidden_size)} if self.shared_gate else {})

    cdef set optional(self):
        return {"router_bias", "router_selection_bias", "expert_gate_bias", "expert_up_bias", "expert_down_bias"}

    cdef int fill(self, stage_layer* layer, LayerWeights weights) except -1:
        layer.feed_forward_kind = &EXPERT_FEED_FORWARD
        return self.fill_experts(experts_of(layer), weights)

    cdef int fill_experts(self, expert_block* part, LayerWeights weights) except -1:
        part[0] = self.part
        part.router = weights.matrix("router")
        part.router_bias, part.selection_bias = weights.vector("router_bias"), weights.vector("router_selection_bias")
        part.gate, part.up, part.down = weights.stack("expert_gate"), weights.stack("expert_up"), weights.stack("expert_down")
        part.gate_bias, part.up_bias = weights.table("expert_gate_bias"), weights.table("expert_up_bias")
        part.down_bias = weights.table("expert_down_bias")
        part.shared_gate = part.shared_up = part.shared_down = part.shared_router = NULL
        if self.shared_intermediate_size:
            part.shared_gate, part.shared_up = weights.matrix("shared_gate"), weights.matrix("shared_up")
            part.shared_down = weights.matrix("shared_down")
        if self.shared_gate:
            part.shared_router = weights.matrix("shared_router")
        return 0

    def _run(self, weights, x):
        array = f32_array(x, 2, "x")
        require_within("rows", array.shape[0], 1, LARGEST_DIMENSION // self.part.choice.num_used)
        held = LayerWeights("the experts", weights, self.shapes(array.shape[1]), self.optional())
        cdef expert_block part
        self.fill_experts(&part, held)
        cdef PackedMatrix matrix = weights["router"]
        logits, result = matrix.matmul(array), np.empty_like(array)
        cdef const float[:, ::1] source = array
        cdef float[:, ::1] scores = logits, shared, out = result
        cdef experts_rows rows = experts_rows(
            num_rows=array.shape[0], x=&source[0, 0], logits=&scores[0, 0], shared_logits=NULL, out=&out[0, 0]
        )
        if self.shared_gate:
            matrix = weights["shared_router"]
            shared_scores = matrix.matmul(array)
            shared = shared_scores
            rows.shared_logits = &shared[0, 0]
        if run_experts(&part, &rows) != 0:
            (<PackedStack>weights["expert_gate"]).places.raise_error()
        return result


cdef int run_experts(const expert_block* block, const experts_rows* rows) except? -1:
    """1 if experts did not come into memory."""
    cdef size_t bytes = experts_scratch_bytes(block, rows.num_rows)
    cdef void* scratch = aligned_alloc(64, bytes)
    if scratch == NULL:
        raise MemoryError(f"no memory for {bytes} bytes of scratch")
    cdef int status
    with nogil:
        status = experts_run(block, active_kernels(), pool_num_threads(pool_shared()), rows, scratch)
    free(scratch)
    return status != 0


def _choose_experts(router, num_used, logits, selection_bias=None):
    scores = f32_array(logits, 2, "logits").copy()
    cdef router_spec choice = router_of(router, scores.shape[1], num_used)
    chosen, weights = np.empty((scores.shape[0], num_used), np.int32), np.empty((scores.shape[0], num_used), np.float32)
    scratch = np.empty(router_scratch_numbers(&choice), np.float32)
    cdef float[:, ::1] rows = scores, weighed = weights
    cdef int32_t[:, ::1] indexes = chosen
    cdef float[::1] numbers = scratch
    cdef const float[::1] biases = None if selection_bias is None else vector_of("selection_bias", selection_bias, scores.shape[1])
    cdef const float* bias = NULL
    if selection_bias is not None:
        bias = &biases[0]
    for row in range(scores.shape[0]):
        choose_experts(active_kernels(), &choice, &rows[row, 0], bias, &numbers[0], &indexes[row, 0], &weighed[row, 0])
    return chosen, weights
