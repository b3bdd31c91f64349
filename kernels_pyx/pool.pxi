# The thread pool of the process. Included by _kernels.pyx.
cdef extern from "c/pool.h" nogil:
    ctypedef struct pool_t:
        pass
    enum: POOL_MAX_THREADS
    pool_t* pool_shared()
    int pool_num_threads(pool_t* pool)
    int pool_set_num_threads(pool_t* pool, int num_threads)
    void pool_run(pool_t* pool, int num_chunks, void (*function)(void* context, int chunk) noexcept nogil, void* context)
    int pool_thread_index()
    int pool_cores_of_cgroups(const char* root)


def get_num_threads() -> int:
    return pool_num_threads(pool_shared())


def set_num_threads(num_threads: int) -> None:
    if not 1 <= num_threads <= POOL_MAX_THREADS:
        raise ValueError(f"num_threads is {num_threads}, expected 1 to {POOL_MAX_THREADS}")
    cdef int wanted = num_threads
    with nogil:
        pool_set_num_threads(pool_shared(), wanted)


def _cores_of_cgroups(root: str) -> int:
    """As many as the quotas of this process's control groups allow, as a tree of files says; for tests."""
    return pool_cores_of_cgroups(root.encode())


cdef struct chunk_counts:
    int32_t* taken
    int32_t* threads


cdef void count_chunk(void* context, int chunk) noexcept nogil:
    cdef chunk_counts* counts = <chunk_counts*>context
    counts.taken[chunk] += 1
    counts.threads[chunk] = pool_thread_index()


def _count_pool_chunks(num_chunks: int):
    """Run the pool over chunks that count themselves; for tests. Returns how often each ran and the index of the thread that ran it."""
    counted = np.zeros((2, max(num_chunks, 1)), np.int32)
    cdef int32_t[:, ::1] view = counted
    cdef chunk_counts counts
    cdef int total = num_chunks
    counts.taken = &view[0, 0]
    counts.threads = &view[1, 0]
    with nogil:
        pool_run(pool_shared(), total, count_chunk, &counts)
    return counted[0, :num_chunks], counted[1, :num_chunks]
