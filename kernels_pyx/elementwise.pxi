# Exponentials and probabilities, and the speed of arithmetic. Included by _kernels.pyx.
cdef extern from *:
    """
    static void c_exp_row(const float* x, int width, float* out) { active_kernels()->exp_row(x, width, out); }
    static int c_fmas_per_round(void) { return active_kernels()->fmas_per_round; }
    static float c_fma_rounds(int rounds) { return active_kernels()->fma_rounds(rounds); }
    static void c_log_softmax_row(const float* x, int width, float* out) { active_kernels()->log_softmax_row(x, width, out); }
    """
    void c_exp_row(const float* x, int width, float* out) noexcept nogil
    int c_fmas_per_round() noexcept nogil
    float c_fma_rounds(int rounds) noexcept nogil
    void c_log_softmax_row(const float* x, int width, float* out) noexcept nogil


def exp_f32(x):
    array = f32_array(x, 1, "x")
    if array.size > LARGEST_DIMENSION:
        raise ValueError(f"x has {array.size} numbers, expected at most {LARGEST_DIMENSION}")
    result = np.empty_like(array)
    cdef const float[::1] source = array
    cdef float[::1] out = result
    if source.shape[0]:
        with nogil:
            c_exp_row(&source[0], <int>source.shape[0], &out[0])
    return result


def log_softmax_rows(logits):
    array = f32_array(logits, 2, "logits")
    if not 1 <= array.shape[1] <= LARGEST_DIMENSION:
        raise ValueError(f"logits have {array.shape[1]} columns, expected 1 to {LARGEST_DIMENSION}")
    cdef const float[:, ::1] source = array
    result = np.empty_like(array)
    cdef float[:, ::1] out = result
    cdef Py_ssize_t row
    with nogil:
        for row in range(source.shape[0]):
            c_log_softmax_row(&source[row, 0], <int>source.shape[1], &out[row, 0])
    return result


def _run_fmas(rounds: int) -> int:
    require_within("rounds", rounds, 1, 1 << 30)
    cdef int c_rounds = rounds
    with nogil:
        c_fma_rounds(c_rounds)
    return rounds * c_fmas_per_round()
